"""What an upload may not hold: NaN, infinity, and matrices that no rows can have."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gramfuse_shared.contract.fisher_file import FisherMetadata
from gramfuse_shared.contract.manifest import CollectorSettings, LayerInfo, TapInfo
from gramfuse_shared.contract.statistics_file import StatisticsMetadata
from gramfuse_shared.errors import StatisticsInvalidError, StatisticsMalformedError, WeightsInvalidError
from gramfuse_shared.fusion import packing
from gramfuse_shared.merging import schedule, streaming
from gramfuse_shared.merging.inspection import inspect_fisher, inspect_statistics, inspect_weights
from gramfuse_shared.merging.streaming import TensorFile
from gramfuse_shared.merging.writing import ShardWriter
from support.merging_cases import Memory, infos


@pytest.fixture
def written(tmp_path):
    """Return a function that writes tensors to a file and opens it."""

    def write(tensors: dict[str, torch.Tensor]) -> TensorFile:
        path = tmp_path / "file.safetensors"
        with ShardWriter(path, list(infos(tensors).values())) as shard:
            for name, tensor in tensors.items():
                shard.write(name, tensor)
        return TensorFile.open(Memory(path.read_bytes()))

    return write


def metadata_of(width: int) -> StatisticsMetadata:
    tap = TapInfo(name="x", width=width, rows=9, distinct_rows=9, source="mixed", layers=(LayerInfo(weight="w"),))
    return StatisticsMetadata(collector=CollectorSettings(collector_version="0"), taps=(tap,))


def inspect_gram(written, flat: torch.Tensor, width: int) -> None:
    inspect_statistics(written({"gram.x": flat}), metadata_of(width))


def gram_of(rows: torch.Tensor) -> torch.Tensor:
    flat = packing.packed_zeros(rows.shape[1])
    packing.accumulate_rows(flat, rows)
    return flat


class Values:
    """A reader of one tap, without a file, for the properties."""

    def __init__(self, flat: torch.Tensor) -> None:
        self._flat = flat

    @property
    def tensors(self):
        entry = streaming.TensorEntry("gram.x", "F32", tuple(self._flat.shape), 0, self._flat.numel() * 4)
        return {"gram.x": entry}

    def read(self, name: str) -> torch.Tensor:
        assert name == "gram.x"
        return self._flat

    def read_elements(self, name: str, start: int, stop: int, _memory: object = None) -> torch.Tensor:
        return self.read(name)[start:stop]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**20),
    width=st.sampled_from([1, 5, 130, 200]),
    rows=st.integers(0, 300),
    exponents=st.tuples(st.integers(-12, 5), st.integers(-12, 5)),
    dead=st.integers(0, 3),
)
def test_the_gram_matrix_of_any_rows_passes(seed, width, rows, exponents, dead):
    """Also of fewer rows than features, of features 17 orders of magnitude apart, and of features nobody uses."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width, generator=generator)
    values *= torch.logspace(*map(float, exponents), width)
    values[:, :dead] = 0.0
    inspect_statistics(Values(gram_of(values)), metadata_of(width))


def test_half_precision_rows_of_many_batches_pass():
    generator = torch.Generator().manual_seed(0)
    flat = packing.packed_zeros(140)
    for _ in range(200):
        packing.accumulate_rows(flat, torch.randn(16, 140, generator=generator).to(torch.bfloat16))
    inspect_statistics(Values(flat), metadata_of(140))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_refused_by_name(written, value, dtype):
    bad = torch.zeros(50, 3, dtype=dtype)
    bad[49, 2] = value
    with pytest.raises(WeightsInvalidError, match=r"tensor layer\.weight holds NaN or infinity"):
        inspect_weights(written({"fine": torch.ones(3), "layer.weight": bad}))


def test_finite_weights_of_every_kind_pass_and_are_counted(written):
    tensors = {
        "float": torch.tensor([3.4e38, -3.4e38]),
        "half": torch.ones(3, dtype=torch.float16),
        "brain": torch.ones(3, dtype=torch.bfloat16),
        "integer": torch.arange(4),
        "flag": torch.ones(2, dtype=torch.bool),
        "empty": torch.empty(0, 4),
    }
    steps: list[int] = []
    inspect_weights(written(tensors), steps.append)
    assert sum(steps) == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def test_a_bad_value_in_a_later_chunk_is_found(written, monkeypatch):
    monkeypatch.setattr(schedule, "CHUNK_BYTES", 16)
    bad = torch.zeros(10)
    bad[9] = float("nan")
    with pytest.raises(WeightsInvalidError):
        inspect_weights(written({"a": bad}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused(written, value):
    flat = gram_of(torch.randn(20, 5))
    flat[7] = value
    with pytest.raises(StatisticsInvalidError, match=r"tap x: .* NaN or infinity"):
        inspect_gram(written, flat, 5)


def test_a_negative_sum_of_squares_is_refused(written):
    flat = packing.pack(torch.diag(torch.tensor([1.0, -1e-6, 1.0])))
    with pytest.raises(StatisticsInvalidError, match="feature 1 has a negative sum of squares"):
        inspect_gram(written, flat, 3)


def test_an_asymmetric_tile_is_refused(written):
    gram = torch.eye(200)
    gram[150, 140] = 1e-4
    with pytest.raises(StatisticsInvalidError, match="not symmetric among features 128 to 199"):
        inspect_gram(written, packing.pack(gram), 200)


def test_rounding_is_no_asymmetry(written):
    gram = torch.eye(200)
    gram[150, 140] = 1e-6
    inspect_gram(written, packing.pack(gram), 200)


def test_an_indefinite_matrix_is_refused(written):
    gram = torch.eye(200)
    gram[150, 20] = gram[20, 150] = 1.01  # more than √(1·1): no two columns of real rows have such a product
    with pytest.raises(StatisticsInvalidError, match="not positive semi-definite"):
        inspect_gram(written, packing.pack(gram), 200)


def test_an_indefinite_matrix_whose_every_pair_is_plausible_is_refused(written):
    gram = torch.full((3, 3), -0.6)
    gram.diagonal().fill_(1.0)
    with pytest.raises(StatisticsInvalidError, match="not positive semi-definite"):
        inspect_gram(written, packing.pack(gram), 3)


def test_a_feature_without_energy_but_with_products_is_refused(written):
    gram = torch.eye(4)
    gram[2, 2] = 0.0
    gram[2, 1] = gram[1, 2] = 0.5
    with pytest.raises(StatisticsInvalidError, match="not positive semi-definite"):
        inspect_gram(written, packing.pack(gram), 4)


def test_the_zero_matrix_passes(written):
    inspect_gram(written, packing.packed_zeros(4), 4)


@pytest.mark.parametrize(
    "tensors",
    [
        {"gram.x": torch.zeros(7)},
        {"gram.x": torch.zeros(6, dtype=torch.float64)},
        {"gram.y": torch.zeros(6)},
    ],
)
def test_a_tensor_that_is_not_the_taps_is_refused_before_it_is_read(written, tensors):
    with pytest.raises(StatisticsMalformedError, match=r"gram\.x is not the packed float32 matrix of 3 features"):
        inspect_statistics(written(tensors), metadata_of(3))


def test_reading_statistics_is_counted(written):
    steps: list[int] = []
    flat = gram_of(torch.randn(30, 10))
    inspect_statistics(written({"gram.x": flat}), metadata_of(10), steps.append)
    assert steps == [flat.numel() * 4]


# --- Fisher information ----------------------------------------------------------------------------------------------


def inspect_values(written, values: torch.Tensor, norm: float | None = None, **options) -> None:
    told = float(values.double().norm()) if norm is None else norm
    metadata = FisherMetadata.model_validate(
        {
            "examples": 9,
            "distinct_examples": 9,
            "collector": {"collector_version": "0"},
            "parameters": [{"name": "w", "shape": tuple(values.shape), "norm": told, "source": "mixed"}],
        }
    )
    inspect_fisher(written({"w": values}), metadata, **options)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (5, 8)])
def test_sums_of_squares_of_any_size_pass_and_are_counted(written, monkeypatch, shape):
    monkeypatch.setattr(schedule, "CHUNK_BYTES", 64)
    values = 10.0 ** (40 * torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 30)
    counted: list[int] = []
    inspect_values(written, values, on_progress=counted.append)
    assert sum(counted) == 4 * values.numel()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e-30, 1.1e30])
def test_what_is_no_sum_of_squares_is_refused_in_any_chunk(written, monkeypatch, value):
    monkeypatch.setattr(schedule, "CHUNK_BYTES", 64)
    values = torch.ones(100)
    values[70] = value
    with pytest.raises(StatisticsInvalidError, match="of w holds what is no sum of squares"):
        inspect_values(written, values, norm=10.0)


@pytest.mark.parametrize("norm", [0.0, 9.9999, 10.0001])
def test_a_norm_that_is_not_that_of_the_values_is_refused(written, norm):
    """By it a recipe may divide: a smaller one would make its owner count for more."""
    with pytest.raises(StatisticsInvalidError, match="has the norm 10, not"):
        inspect_values(written, torch.ones(100), norm=norm)
