"""A secure sum as its users type it: real server, worker and command line; a participant is killed on the way."""

import json
from contextlib import ExitStack

import torch
import yaml
from safetensors.torch import load_file

import gramfuse
from support import collaboration, tiny

ORGANIZATIONS = ("acme-sum", "globex-sum", "initech-sum")
POLICY = gramfuse.Policy(aggregation="secure", methods=("linear",), heads="shared", minimum_rows_per_dimension=1)
WEIGHT = "bert.encoder.layer.1.intermediate.dense.weight"


def test_three_organizations_merge_what_the_server_sees_the_sum_of_alone(deployment):
    made = collaboration.begin(deployment, ORGANIZATIONS, policy=POLICY)
    for seed, desk in enumerate(made.desks, start=1):
        tiny.write_tuned(desk.folder / "base", desk.folder / "tuned", seed=seed)
        desk.gramfuse("roster", "verify", made.project, "--yes")
        pushed = desk.run("contribution", "push", made.project, "--model", "tuned", "--yes")
        assert pushed.returncode == 0, pushed.stderr
        assert "the manifest" in pushed.stderr
        configuration = {"project": made.project, "model": "tuned", "allow": ["sum"]}
        (desk.folder / "participate.yaml").write_text(yaml.safe_dump(configuration))
    refused = made.coordinator.run("job", "submit", made.project, "--method", "linear")
    assert refused.returncode == 3
    assert "request sum" in refused.stderr
    watch = ("participate", "participate.yaml", "--watch", "--every", "1")
    with ExitStack() as stack:
        watching = [stack.enter_context(desk.start(*watch)) for desk in made.desks]
        summing = made.coordinator.start("request", "sum", made.project, "--method", "linear", "--id", "summed")
        stack.enter_context(summing)
        watching[2].kill()  # wherever it was: what it says next is what it would have said
        watching.append(stack.enter_context(made.desks[2].start(*watch)))
        try:
            assert summing.wait(180) == 0
        finally:
            for process in (*watching, summing):
                process.kill()
    globex = made.desks[1]
    globex.gramfuse("model", "pull", made.project, "summed", "merged")
    verified = json.loads(globex.gramfuse("model", "verify", "merged", "--format", "json"))
    assert verified
    found = load_file(globex.folder / "merged" / "model.safetensors")[WEIGHT]
    each = [load_file(desk.folder / "tuned" / "model.safetensors")[WEIGHT].double() for desk in made.desks]
    torch.testing.assert_close(found.double(), sum(each) / 3, rtol=1e-6, atol=1e-7)
