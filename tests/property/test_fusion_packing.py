"""Packed block rows are the matrix: every operation on them equals the same on the full matrix in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gramfuse_shared.fusion import packing

# Around the block edges, where an index is wrong if one is.
WIDTHS = st.sampled_from([1, 2, 7, 127, 128, 129, 200, 256, 300])


def rows_of(seed: int, count: int, width: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))


@given(width=WIDTHS, seed=st.integers(0, 2**20))
def test_unpacking_what_was_packed_gives_the_matrix_back_exactly(width, seed):
    half = rows_of(seed, width, width)
    gram = half + half.T
    flat = packing.pack(gram)
    assert flat.shape == (packing.packed_length(width),)
    assert torch.equal(packing.unpack(flat, width), gram)


@given(width=WIDTHS, seed=st.integers(0, 2**20), batches=st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_accumulating_in_batches_gives_the_gram_matrix_of_all_rows(width, seed, batches):
    rows = rows_of(seed, sum(batches), width)
    flat = packing.packed_zeros(width)
    for batch in rows.split(batches):
        packing.accumulate_rows(flat, batch)
    expected = rows.double().T @ rows.double()
    assert relative_error(packing.unpack(flat, width), expected) < 1e-6


@given(width=WIDTHS, seed=st.integers(0, 2**20))
def test_the_diagonal_is_the_diagonal(width, seed):
    gram = rows_of(seed, width, width)
    gram = gram + gram.T
    flat = packing.pack(gram)
    assert torch.equal(packing.diagonal(flat, width), gram.diagonal())
    assert packing.trace(flat, width) == pytest.approx(float(gram.double().trace()), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_of_another_dtype_are_added_in_the_dtype_of_the_sum(dtype):
    rows = rows_of(0, 50, 130).to(dtype)
    flat = packing.packed_zeros(130)
    packing.accumulate_rows(flat, rows)
    assert flat.dtype == torch.float32
    expected = rows.double().T @ rows.double()
    assert relative_error(packing.unpack(flat, 130), expected) < 1e-6


def test_no_rows_add_nothing():
    flat = packing.packed_zeros(5)
    packing.accumulate_rows(flat, torch.empty(0, 5))
    assert not flat.any()


def test_a_packed_matrix_of_another_width_is_refused():
    with pytest.raises(ValueError, match="width 4 is"):
        packing.accumulate_rows(packing.packed_zeros(5), torch.ones(1, 4))


@given(width=st.sampled_from([1, 128, 300, 1024, 1100]), seed=st.integers(0, 2**20))
def test_coarse_blocks_hold_the_same_matrix_as_the_usual_ones(width, seed):
    rows = rows_of(seed, 20, width)
    coarse = packing.packed_zeros(width, block=packing.COARSE_BLOCK)
    packing.accumulate_rows(coarse, rows, block=packing.COARSE_BLOCK)
    expected = rows.double().T @ rows.double()
    assert (
        relative_error(packing.unpack(packing.repack(coarse, width, block=packing.COARSE_BLOCK), width), expected)
        < 1e-6
    )
