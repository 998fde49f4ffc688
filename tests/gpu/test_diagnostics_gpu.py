"""What a merge tells of its layers is the same on a CUDA device, but for the last digits."""

import pytest
import torch

from gramfuse_shared.fusion import packing, symmetric
from gramfuse_shared.fusion.cholesky import Factor
from support.merging_cases import merge_models, random_models, recipe_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("alpha", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("method", ["regmean", "wudi", "linear", "ties"])
def test_figures_are_the_cpus(tmp_path, method, alpha):
    base, models = random_models(3, members=4, width=300, rows=2000)
    recipe = recipe_of(method, alpha=alpha) if method == "regmean" else recipe_of(method)
    cpu = merge_models(tmp_path / "cpu", models, base, recipe)
    cuda = merge_models(tmp_path / "cuda", models, base, recipe, device=torch.device("cuda"))
    assert [entry["parameters"] for entry in cpu.diagnostics] == [entry["parameters"] for entry in cuda.diagnostics]
    for one, other in zip(cpu.diagnostics, cuda.diagnostics, strict=True):
        assert one.get("gained") == pytest.approx(other.get("gained"), abs=1e-3)
        assert one.get("condition") == pytest.approx(other.get("condition"), rel=1e-3)
        assert one.get("distances", {}) == pytest.approx(other.get("distances", {}), rel=1e-3)


@pytest.mark.parametrize("width", [1, 127, 600, 2100])
def test_few_rows_times_the_lower_triangle(width):
    generator = torch.Generator().manual_seed(5)
    full = torch.randn(width, width, generator=generator, dtype=torch.float64)
    full = (full + full.T).cuda()
    lower = torch.full_like(full, torch.nan)
    symmetric.expand(packing.pack(full), lower)
    left = torch.randn(5, width, generator=generator, dtype=torch.float64).cuda()
    torch.testing.assert_close(symmetric.times_few(left, lower), left @ full)


def test_a_bound_of_the_condition():
    matrix = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64, device="cuda")  # eigenvalues 1.8 and 0.2
    factor = Factor.of(matrix)
    assert factor.bound_condition(smallest=factor.estimate_smallest_eigenvalue()) == pytest.approx(9.0, rel=0.01)
