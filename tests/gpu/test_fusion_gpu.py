"""The same mathematics on a CUDA device: equal to the definition, the same bits twice, nothing on the wrong device."""

import pytest
import torch

from gramfuse_shared.fusion import packing, symmetric
from gramfuse_shared.fusion.cholesky import Factor
from gramfuse_shared.merging.execution import choose_device
from support.fusion_oracle import least_squares, make_contributors, merge, relative_error
from support.merging_cases import merge_models, random_models, recipe_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("width", [1, 127, 300, 768])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_every_dtype_add_up_to_their_gram_matrix(width, dtype):
    rows = torch.randn(1000, width, generator=torch.Generator().manual_seed(0)).to("cuda", dtype)
    flat = packing.packed_zeros(width, device="cuda")
    for batch in rows.split(300):
        packing.accumulate_rows(flat, batch)
    expected = rows.double().T @ rows.double()
    assert relative_error(packing.unpack(flat, width), expected) < 2e-6


def test_bfloat16_rows_lose_nothing_on_the_way_into_float32():
    """Products of bf16 numbers are exact in fp32; a path through a bf16 result would show 4e-3."""
    rows = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)).to("cuda", torch.bfloat16)
    flat = packing.packed_zeros(256, device="cuda")
    packing.accumulate_rows(flat, rows)
    expected = rows.double().T @ rows.double()
    assert relative_error(packing.unpack(flat, 256), expected) < 1e-6


@pytest.mark.parametrize("width", [1, 500, 1024, 2100])
def test_products_and_factors_of_the_lower_triangle_are_those_of_the_matrix(width):
    generator = torch.Generator().manual_seed(2)
    rows, left = torch.randn(2 * width + 9, width, generator=generator), torch.randn(20, width, generator=generator)
    gram = (rows.double().T @ rows.double() / len(rows)).cuda()
    expected = left.double().cuda() @ gram
    garbage = torch.full_like(gram, 1e30).triu(1)
    product = torch.zeros_like(expected)
    symmetric.add_product_(product, left.double().cuda(), gram.tril() + garbage)
    assert relative_error(product, expected) < 1e-13
    factor = Factor.of(gram.tril() + garbage)
    assert relative_error(factor.solve_(expected, torch.empty_like(expected)), left) < 1e-9
    gram[width // 2, width // 2] = -1.0
    assert Factor.of(gram) is None


@pytest.mark.parametrize("width", [1, 300, 1024, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_sum_that_grows_in_coarse_blocks_is_the_same_in_the_usual_ones(width, dtype):
    rows = torch.randn(700, width, generator=torch.Generator().manual_seed(3)).to("cuda", dtype)
    coarse = packing.packed_zeros(width, device="cuda", block=packing.COARSE_BLOCK)
    for batch in rows.split(300):
        packing.accumulate_rows(coarse, batch, block=packing.COARSE_BLOCK)
    flat = packing.repack(coarse, width, block=packing.COARSE_BLOCK)
    assert relative_error(packing.unpack(flat, width), rows.double().T @ rows.double()) < 2e-6


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("width", "height"), [(40, 9), (768, 300)])
def test_a_merge_equals_least_squares_on_the_pooled_rows(alpha, width, height):
    base, contributors = make_contributors(3, members=3, width=width, height=height, rows=5 * width, scales=alpha < 1)
    merged, solution = merge(contributors, alpha=alpha, reference=base, device="cuda")
    assert relative_error(merged, least_squares(contributors, alpha=alpha)) < 2e-6
    assert solution.diagnosis.fallback == "none"


def test_too_few_rows_are_noticed_there_too():
    base, contributors = make_contributors(4, members=2, width=300, height=20, rows=30, scales=False)
    merged, solution = merge(contributors, alpha=1.0, reference=base, device="cuda")
    assert solution.diagnosis.fallback == "ridge"
    assert torch.isfinite(merged).all()
    assert relative_error(merged, base) < 1.0


def test_the_engine_gives_the_same_bits_twice_and_nearly_the_cpus(tmp_path):
    base, models = random_models(6, members=4, width=200, rows=2000)
    device = choose_device("auto")
    assert device.type == "cuda"
    one = merge_models(tmp_path / "one", models, base, recipe_of(), device=device)
    two = merge_models(tmp_path / "two", models[::-1], base, recipe_of(), device=device)
    cpu = merge_models(tmp_path / "cpu", models, base, recipe_of())
    assert one.results[0].file.sha256 == two.results[0].file.sha256
    for name, tensor in cpu.tensors.items():
        if tensor.is_floating_point():
            assert relative_error(one.tensors[name], tensor) < 2e-6


def test_tf32_in_the_surrounding_program_costs_no_digits(tmp_path):
    base, models = random_models(7, members=3, width=300, rows=3000)
    plain = merge_models(tmp_path / "plain", models, base, recipe_of(), device=torch.device("cuda"))
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        again = merge_models(tmp_path / "again", models, base, recipe_of(), device=torch.device("cuda"))
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert plain.results[0].file.sha256 == again.results[0].file.sha256
