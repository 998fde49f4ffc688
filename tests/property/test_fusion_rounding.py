"""Gram matrices rounded to int16: the diagonal is exact, every entry within half a step of its correlation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gramfuse_shared.contract.statistics_file import INT16_ONE
from gramfuse_shared.fusion import packing
from gramfuse_shared.fusion.rounding import decode_int16, encode_int16, rounding_error


def gram_of(width: int, rows: int, dead: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, width, generator=generator) * torch.logspace(-8, 4, width)
    inputs[:, :dead] = 0.0
    flat = packing.packed_zeros(width)
    packing.accumulate_rows(flat, inputs)
    return flat


@given(
    width=st.sampled_from([1, 7, 128, 150]), rows=st.integers(1, 300), dead=st.integers(0, 3), seed=st.integers(0, 99)
)
def test_an_entry_is_off_by_half_a_step_and_the_diagonal_not_at_all(width, rows, dead, seed):
    gram = gram_of(width, rows, dead, seed)
    rounded, energy = encode_int16(gram, width)
    decoded = torch.empty_like(gram)
    decode_int16(rounded, energy, width, decoded)
    assert rounded.dtype == torch.int16
    assert torch.equal(packing.diagonal(decoded, width), packing.diagonal(gram, width))
    root = energy.double().sqrt()
    before, after = packing.unpack(gram, width).double(), packing.unpack(decoded, width).double()
    step = root[:, None] * root / INT16_ONE
    assert bool(((before - after).abs() <= 0.51 * step).all())
    assert not after[:dead].any()


def test_the_error_that_is_told_is_that_of_the_scaled_matrix():
    width = 150
    gram = gram_of(width, 400, 2, seed=1)
    rounded, energy = encode_int16(gram, width)
    decoded = torch.empty_like(gram)
    decode_int16(rounded, energy, width, decoded)
    alive = energy > 0
    scale = energy[alive].double().rsqrt()
    before, after = (
        packing.unpack(flat, width).double()[alive][:, alive] * scale * scale[:, None] for flat in (gram, decoded)
    )
    error = rounding_error(gram, rounded, energy, width)
    assert error == pytest.approx(float((before - after).norm() / before.norm()), rel=1e-4)
    assert error < 1e-3
