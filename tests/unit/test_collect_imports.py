"""Collecting needs torch, numpy, pydantic and nothing else, so that it runs on a bare CUDA machine."""

import subprocess
import sys

PROGRAM = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"typer", "rich", "httpx", "rfc8785", "yaml", "cryptography", "platformdirs",
                                      "datasets", "transformers"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
import torch
import gramfuse

model = torch.nn.Linear(3, 2)
with torch.no_grad(), gramfuse.Collector(model) as statistics:
    model(torch.ones(5, 3))
statistics.save(sys.argv[1])
assert gramfuse.Statistics.load(sys.argv[1]).taps[0].info.rows == 5
"""


def test_collecting_saving_and_loading_need_nothing_but_torch_numpy_and_pydantic(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "statistics.safetensors")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
