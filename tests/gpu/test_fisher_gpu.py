"""Fisher information on a CUDA device: the same sums as of every example alone, in fp32 and from bfloat16."""

import pytest
import torch
from torch import nn

from gramfuse.measuring.example_gradients import ExampleGradients
from support.merging_cases import Model, merge_models, random_models, recipe_of

pytestmark = pytest.mark.gpu


class Net(nn.Module):
    """A table that also makes the logits, a linear layer used twice, a normalization, one of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 96)
        self.twice = nn.Linear(96, 96)
        self.norm, self.own = nn.LayerNorm(96), nn.RMSNorm(96)
        self.logits = nn.Linear(96, 50, bias=False)
        self.logits.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.twice(torch.tanh(self.twice(self.table(ids)))))
        out: torch.Tensor = self.logits(self.own(hidden))
        return out


def loss_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(ids).float().flatten(0, 1), ids.roll(1, dims=1).flatten(), reduction="sum")


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_device_sums_the_squares_of_every_examples_gradient(dtype, most):
    torch.manual_seed(0)
    model = Net().to("cuda", dtype).eval()
    ids = torch.randint(50, (24, 17), device="cuda")
    sums = {parameter: torch.zeros(parameter.shape, device="cuda") for parameter in model.parameters()}
    with ExampleGradients(model, sums) as batch:
        batch.begin(len(ids))
        loss_of(model, ids).backward()
        batch.finish()
    exact = Net().to("cuda", torch.float64)
    exact.load_state_dict(model.state_dict())
    for parameter, other in zip(model.parameters(), exact.parameters(), strict=True):
        expected = torch.zeros_like(other)
        for row in ids:
            expected += torch.autograd.grad(loss_of(exact, row[None]), other)[0].square()
        assert float((sums[parameter].double() - expected).norm() / expected.norm()) < most


def test_the_device_weighs_elements_as_the_cpu_does(tmp_path):
    base, models = random_models(members=4)
    generator = torch.Generator().manual_seed(7)
    weighed = []
    for model in models:
        fisher = {
            name: 10.0 ** (8 * (torch.rand(tensor.shape, generator=generator) - 1))
            for name, tensor in base.items()
            if tensor.is_floating_point()
        }
        fisher["norm.weight"][:3] = 0.0
        weighed.append(Model(model.key, model.weights, weight=model.weight, fisher=fisher, examples=50))
    one = merge_models(tmp_path / "cpu", weighed, base, recipe_of("fisher"))
    other = merge_models(tmp_path / "cuda", weighed, base, recipe_of("fisher"), device=torch.device("cuda"))
    assert one.exceptions == other.exceptions
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(other.tensors[name], tensor, rtol=1e-6, atol=1e-7)
