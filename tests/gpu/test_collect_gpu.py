"""Collecting on a CUDA device: the same Gram matrices as on the CPU, in fp32 and from bfloat16 activations."""

import pytest
import torch
from torch import nn

from gramfuse.measuring.collection import Collector
from gramfuse.measuring.statistics import Statistics

pytestmark = pytest.mark.gpu


class Net(nn.Module):
    """Embeddings, a mixing step, and layers of a width that is no multiple of the block."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 200)
        self.query, self.key = nn.Linear(200, 64), nn.Linear(200, 64)
        self.up, self.down = nn.Linear(200, 300), nn.Linear(300, 200)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(input_ids)
        scores = self.query(hidden) @ self.key(hidden).transpose(1, 2) / 8
        scores = scores.masked_fill(attention_mask[:, None, :] == 0, -1e4)
        hidden = hidden + scores.softmax(-1) @ hidden
        out: torch.Tensor = self.down(torch.relu(self.up(hidden)))
        return out


def batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(4):
        lengths = torch.randint(3, 30, (16,), generator=generator)
        mask = (torch.arange(30)[None] < lengths[:, None]).long()
        found.append({"input_ids": torch.randint(1, 50, (16, 30), generator=generator) * mask, "attention_mask": mask})
    return found


def collect(device: str, dtype: torch.dtype) -> Statistics:
    torch.manual_seed(0)
    model = Net().to(device=device, dtype=dtype)
    with torch.no_grad(), Collector(model) as statistics:
        for batch in batches():
            model(**{name: tensor.to(device) for name, tensor in batch.items()})
    return statistics


@pytest.fixture(autouse=True)
def _full_precision() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def test_the_device_measures_what_the_cpu_measures():
    for one, two in zip(collect("cpu", torch.float32).taps, collect("cuda", torch.float32).taps, strict=True):
        assert one.info == two.info
        error = torch.linalg.norm(one.unpacked() - two.unpacked()) / torch.linalg.norm(one.unpacked())
        assert error < 1e-5, one.info.name


def test_bfloat16_activations_are_summed_in_fp32():
    model = Net().to(device="cuda", dtype=torch.bfloat16)
    seen: list[torch.Tensor] = []
    hook = model.up.register_forward_pre_hook(lambda _m, arguments: seen.append(arguments[0].double().cpu()))
    with torch.no_grad(), Collector(model) as statistics:
        for batch in batches():
            model(**{name: tensor.cuda() for name, tensor in batch.items()})
    hook.remove()
    rows = torch.cat([x[b["attention_mask"].bool()] for x, b in zip(seen, batches(), strict=True)])
    tap = next(tap for tap in statistics.taps if tap.info.name == "up")
    error = torch.linalg.norm(tap.unpacked().double() - rows.T @ rows) / torch.linalg.norm(rows.T @ rows)
    # bf16 rounds each value by up to 4e-3; sums taken in bf16 would be off by as much. Products in fp32 are exact.
    assert error < 1e-5


def test_sources_are_probed_on_the_device():
    sources = {tap.info.name: tap.info.source for tap in collect("cuda", torch.float32).taps}
    assert sources == {"key": "embeddings", "up": "mixed", "down": "mixed"}


def test_statistics_of_the_device_are_saved_and_added(tmp_path):
    statistics = collect("cuda", torch.float32)
    statistics.save(tmp_path / "statistics.safetensors")
    loaded = Statistics.load(tmp_path / "statistics.safetensors")
    assert loaded == statistics
    assert {tap.info.rows for tap in (loaded + statistics).taps} == {2 * statistics.taps[0].info.rows}


def test_autocast_on_the_device_does_not_round_the_sums():
    torch.manual_seed(0)
    model = Net().cuda()
    seen: list[torch.Tensor] = []
    hook = model.query.register_forward_pre_hook(lambda _m, arguments: seen.append(arguments[0].double().cpu()))
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16), Collector(model) as statistics:
        for batch in batches():
            model(**{name: tensor.cuda() for name, tensor in batch.items()})
    hook.remove()
    rows = torch.cat([x[b["attention_mask"].bool()] for x, b in zip(seen, batches(), strict=True)])
    tap = next(tap for tap in statistics.taps if tap.info.name == "key")
    assert torch.linalg.norm(tap.unpacked().double() - rows.T @ rows) < 1e-5 * torch.linalg.norm(rows.T @ rows)
