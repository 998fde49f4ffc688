"""Linear layers refit to their owners' own: what is summed, how it travels, what is solved, against the definition."""

import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from gramfuse.contributing.loading import open_statistics_file
from gramfuse.measuring.layers import find_layers
from gramfuse.measuring.refit import RefitStatistics, collect_refit
from gramfuse.measuring.statistics import Statistics
from gramfuse_shared.contract.manifest import CollectorSettings, LayerInfo, TapInfo
from gramfuse_shared.contract.safetensors_header import format_header, parse_header
from gramfuse_shared.contract.statistics_file import (
    METADATA_KEY,
    StatisticsMetadata,
    parse_statistics_metadata,
    tensors_of_statistics,
)
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    CancelledError,
    StatisticsInvalidError,
    StatisticsMalformedError,
)
from gramfuse_shared.fusion.products import ProductTerm
from gramfuse_shared.fusion.refit import solve_correction
from gramfuse_shared.merging.inspection import inspect_statistics
from gramfuse_shared.merging.streaming import LocalFile, TensorFile
from support.refits import layer_statistics
from support.tiny_models import tiny_bert, tiny_model
from support.tokenizing import word_tokenizer

TEXTS = ["a b c", "d e", "f g h i j k", "l", "a b c", "m n o p", "q r"]
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


def watch(model: Any) -> tuple[dict[str, list[torch.Tensor]], dict[str, list[torch.Tensor]]]:
    """What each linear layer reads and gives from here on, float64 rows by its weight."""
    read, given = defaultdict(list), defaultdict(list)

    def note(weight: str, arguments: Any, output: torch.Tensor) -> None:
        read[weight].append(arguments[0].detach().double().reshape(-1, arguments[0].shape[-1]))
        given[weight].append(output.detach().double().reshape(-1, output.shape[-1]))

    for layer in find_layers(model):
        for module in layer.modules:
            module.register_forward_hook(lambda _, arguments, output, name=layer.weight: note(name, arguments, output))
    return read, given


def sums_by_definition(merged: Any, own: Any, inputs: list[dict[str, Any]]) -> dict[str, tuple[Any, Any]]:
    """The definition: each text alone, so that there is no padding; x̃ of the merged model, y of one's own."""
    (read, lacking), (_, wanted) = watch(merged), watch(own)
    for one in inputs:
        with torch.no_grad():
            merged(**one)
            own(**one)
    found = {}
    for weight in read:
        x = torch.cat(read[weight])
        x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
        found[weight] = (x.T @ x, x.T @ (torch.cat(wanted[weight]) - torch.cat(lacking[weight])))
    return found


def encoded(tokenizer: Any, *, two_sided: bool = False) -> list[dict[str, Any]]:
    inputs = [dict(tokenizer(text, return_tensors="pt", return_token_type_ids=False)) for text in TEXTS]
    return [one | {"labels": one["input_ids"]} for one in inputs] if two_sided else inputs


@pytest.mark.parametrize(
    ("kind", "batch_size"),
    # DeBERTa's relative embeddings are read once in each batch, whatever it holds
    [("bert", 3), ("bert", 100), ("distilbert", 3), ("gpt2", 3), ("llama", 3), ("t5", 3), ("deberta-v3", 1)],
)
def test_sums_are_products_of_rows_with_a_one_and_with_what_the_layer_lacks_to_ones_own(kind, batch_size, tokenizer):
    merged, own = tiny_model(kind, seed=0), tiny_model(kind, seed=1)
    found = collect_refit(merged, own, TEXTS, tokenizer=tokenizer, batch_size=batch_size)
    expected = sums_by_definition(merged, own, encoded(tokenizer, two_sided=kind == "t5"))
    tied = {"lm_head.weight"} if kind == "gpt2" else set()
    assert found.products.keys() == expected.keys() - tied
    for tap in found.statistics.taps:
        for layer in tap.info.layers:
            gram, product = expected[layer.weight]
            torch.testing.assert_close(tap.unpacked().double(), gram, atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(found.products[layer.weight].double(), product, atol=1e-3, rtol=1e-4)
        assert tap.info.rows == round(float(gram[-1, -1]))


def test_layers_that_read_the_same_share_a_tap_and_rows_of_an_example_count_once(tokenizer):
    found = collect_refit(tiny_bert(seed=0), tiny_bert(seed=1), TEXTS, tokenizer=tokenizer)
    taps = found.metadata().taps
    (tap,) = (tap for tap in taps if QUERY in {layer.weight for layer in tap.layers})
    assert [layer.weight.split(".")[-2] for layer in tap.layers] == ["key", "query", "value"]
    assert (tap.width, [layer.outputs for layer in tap.layers]) == (33, [32, 32, 32])
    assert (tap.rows, tap.distinct_rows, tap.source) == (35, 30, "embeddings")
    assert {other.source for other in taps if other is not tap} == {"mixed"}


def test_ones_own_model_runs_whole_so_what_its_earlier_layers_change_is_in_the_differences(tokenizer):
    merged, own = tiny_bert(seed=0), tiny_bert(seed=0)
    last = "bert.encoder.layer.1.output.dense.weight"
    same = collect_refit(merged, own, TEXTS, tokenizer=tokenizer, layers=[last])
    assert not same.products[last].any()
    with torch.no_grad():
        own.bert.encoder.layer[0].intermediate.dense.weight.mul_(3)
    assert collect_refit(merged, own, TEXTS, tokenizer=tokenizer, layers=[last]).products[last].any()


def test_layers_that_are_not_asked_for_are_not_measured(tokenizer):
    found = collect_refit(tiny_bert(seed=0), tiny_bert(seed=1), TEXTS, tokenizer=tokenizer, layers=[QUERY])
    assert [layer.weight for tap in found.metadata().taps for layer in tap.layers] == [QUERY]
    assert found.products.keys() == {QUERY}


def test_a_layer_that_reads_as_ones_own_does_is_refit_to_ones_own(tokenizer):
    """Both have the same embeddings, so the first block's queries read the same; alone and with hardly a ridge."""
    merged, own = tiny_bert(seed=0), tiny_bert(seed=0)
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            if ".embeddings." not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    texts = [f"{a} {b}" for a in "abcdefghijkl" for b in "mnopqrst"]
    found = collect_refit(merged, own, texts, tokenizer=tokenizer, layers=[QUERY])
    (tap,) = found.statistics.taps
    change = solve_correction([ProductTerm(tap.gram, found.products[QUERY], 1 / tap.info.rows)], ridge=1e-7)
    query, wanted = (model.bert.encoder.layer[0].attention.self.query for model in (merged, own))
    read, given = watch(own)
    with torch.no_grad():
        own(**tokenizer(texts, return_tensors="pt", return_token_type_ids=False))
    x = read[QUERY][0]
    with torch.no_grad():
        refit = x @ (query.weight.double() + change.weight).T + query.bias.double() + change.bias
        assert float((refit - given[QUERY][0]).abs().max()) < 1e-3
        assert float((query.weight - wanted.weight).abs().max()) > 0.1


def test_models_that_differ_in_more_than_weights_are_refused(tokenizer):
    with pytest.raises(ArchitectureMismatchError, match="computes other rows"):
        collect_refit(tiny_bert(), tiny_bert(intermediate_size=40), TEXTS, tokenizer=tokenizer)
    with pytest.raises(ArchitectureMismatchError, match="no linear layer of your own model"):
        collect_refit(tiny_bert(), tiny_model("distilbert"), TEXTS, tokenizer=tokenizer)
    with pytest.raises(ArchitectureMismatchError, match="none of the layers"):
        collect_refit(tiny_bert(), tiny_bert(), TEXTS, tokenizer=tokenizer, layers=["other.weight"])


def test_a_run_can_be_cancelled_and_leaves_no_hooks(tokenizer):
    merged, own = tiny_bert(), tiny_bert()
    with pytest.raises(CancelledError):
        collect_refit(merged, own, TEXTS, tokenizer=tokenizer, is_cancelled=lambda: True)
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for model in (merged, own) for module in model.modules()
    )


# --- the monoid ------------------------------------------------------------------------------------------------------


def same(one: RefitStatistics, other: RefitStatistics) -> bool:
    return (
        one.products.keys() == other.products.keys()
        and all(torch.allclose(one.products[name], other.products[name], atol=1e-4) for name in one.products)
        and [tap.info for tap in one.statistics.taps] == [tap.info for tap in other.statistics.taps]
        and all(
            torch.allclose(a.gram, b.gram, atol=1e-4)
            for a, b in zip(one.statistics.taps, other.statistics.taps, strict=True)
        )
    )


@given(st.tuples(*[st.integers(1, 4)] * 3))
def test_refit_statistics_form_a_commutative_monoid(sizes):
    a, b, c = (layer_statistics({"x.weight": 3, "y.weight": 2}, rows, seed) for seed, rows in enumerate(sizes))
    assert same((a + b) + c, a + (b + c))
    assert same(a + b, b + a)
    assert same(a + RefitStatistics(), a)
    assert same(RefitStatistics() + a, a)


def test_statistics_of_two_runs_add_to_those_of_one(tokenizer):
    def measure(texts: list[str]) -> RefitStatistics:
        return collect_refit(tiny_bert(seed=0), tiny_bert(seed=1), texts, tokenizer=tokenizer, layers=[QUERY])

    assert same(measure(TEXTS[:3]) + measure(TEXTS[3:]), measure(TEXTS))


def test_statistics_of_other_shapes_or_bases_do_not_add():
    one = layer_statistics({"x.weight": 3}, 9)
    for other in (
        layer_statistics({"x.weight": 4}, 9),
        layer_statistics({"x.weight": 3}, 9, width=6),
        layer_statistics({"x.weight": 3}, 9, base="0" * 64),
    ):
        with pytest.raises(StatisticsMalformedError):
            _ = layer_statistics({"x.weight": 3}, 9, base="1" * 64) + one + other


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_refit_file_keeps_its_bytes(tmp_path):
    """One row x̃ = (1, 2, 1); the one layer lacks (3), the other (4, 5)."""
    layers = (
        LayerInfo(weight="a.weight", outputs=1),
        LayerInfo(weight="b.weight", outputs=2, layout="in_out"),
    )
    tap = TapInfo(name="a", width=3, rows=1, distinct_rows=1, source="mixed", layers=layers)
    metadata = StatisticsMetadata(collector=CollectorSettings(collector_version="1.0.0"), kind="refit", taps=(tap,))
    document = (
        '{"base":null,"collector":{"collector_version":"1.0.0","padding":"dropped","precision":"float32"},'
        '"encoding":"float32","format":"gramfuse/statistics/1","kind":"refit","taps":[{"distinct_rows":1,'
        '"layers":[{"layout":"out_in","outputs":1,"weight":"a.weight"},'
        '{"layout":"in_out","outputs":2,"weight":"b.weight"}],"name":"a","rows":1,"source":"mixed","width":3}]}'
    )
    assert metadata.canonical().decode() == document
    assert tensors_of_statistics(metadata) == [
        ("gram.a", "F32", (9,)),
        ("product.a.weight", "F32", (3, 1)),
        ("product.b.weight", "F32", (3, 2)),
    ]
    raw = format_header(tensors_of_statistics(metadata), {METADATA_KEY: document})
    values = struct.pack("<9f", 1, 2, 1, 2, 4, 2, 1, 2, 1) + struct.pack("<9f", 3, 6, 3, 4, 5, 8, 10, 4, 5)
    assert parse_statistics_metadata(parse_header(raw + values, len(raw + values)), kind="refit") == metadata
    (tmp_path / "refit.safetensors").write_bytes(raw + values)
    inspect(tmp_path / "refit.safetensors")


def test_only_the_chosen_taps_are_written(tmp_path, tokenizer):
    found = collect_refit(tiny_bert(seed=0), tiny_bert(seed=1), TEXTS, tokenizer=tokenizer)
    first = found.metadata().taps[0]
    found.save(tmp_path / "refit.safetensors", [first.name])
    raw = (tmp_path / "refit.safetensors").read_bytes()
    metadata = parse_statistics_metadata(parse_header(raw, len(raw)), kind="refit")
    assert metadata == found.metadata([first.name])
    assert metadata.taps == (first,)
    inspect(tmp_path / "refit.safetensors")


def test_refit_statistics_are_no_contribution(tmp_path):
    layer_statistics({"x.weight": 3}, 9).save(tmp_path / "refit.safetensors")
    with pytest.raises(StatisticsMalformedError, match="of the kind refit, and gram is needed"):
        open_statistics_file(tmp_path / "refit.safetensors")
    with pytest.raises(StatisticsMalformedError, match="of the kind refit"):
        Statistics.load(tmp_path / "refit.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "gram"},
        {"kind": "head"},
        {"labels": 3},
        {"kind": "head", "labels": 3},
        {"encoding": "int16"},
        {"taps": ()},
        {"taps": [{"width": 1}]},
        {"taps": [{"layers": [{"weight": "x.weight", "outputs": 3}, {"weight": "y.weight"}]}]},
        {"taps": [{"layers": [{"weight": "x.weight", "outputs": 0}]}]},
    ],
)
def test_a_description_that_is_not_of_refit_layers_is_refused(change):
    described = json.loads(layer_statistics({"x.weight": 3, "y.weight": 2}, 9).metadata().canonical())
    taps = [described["taps"][0] | tap for tap in change.get("taps", described["taps"])]
    with pytest.raises(ValidationError):
        StatisticsMetadata.model_validate(described | change | {"taps": taps})


def test_what_is_not_finite_or_leaves_float32_is_not_saved(tmp_path):
    one = layer_statistics({"x.weight": 3}, 9)
    one.products["x.weight"][0, 0] = float("inf")
    with pytest.raises(StatisticsInvalidError, match=r"the sums of x\.weight hold NaN or infinity, or leave the range"):
        one.save(tmp_path / "refit.safetensors")
    huge = layer_statistics({"x.weight": 3}, 9, scale=1e20)
    with pytest.raises(StatisticsInvalidError, match="leave the range of float32"):
        huge.save(tmp_path / "refit.safetensors")
    assert list(tmp_path.iterdir()) == []


def inspect(path: Path) -> None:
    raw = path.read_bytes()
    header = parse_header(raw, len(raw))
    with LocalFile(path) as source:
        inspect_statistics(TensorFile(source, header), parse_statistics_metadata(header, kind="refit"))


def test_the_inspection_passes_what_was_measured(tmp_path):
    layer_statistics({"x.weight": 3, "y.weight": 2}, 200).save(tmp_path / "refit.safetensors")
    inspect(tmp_path / "refit.safetensors")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, float("nan"), "holds NaN"),
        (0, -1.0, "negative sum of squares"),
        (35, 203.0, "the constant's square is 203 with 200 rows"),
        (36, float("nan"), "product with the differences holds NaN"),
        (-1, float("inf"), "product with the differences holds NaN"),
    ],
)
def test_the_inspection_refuses_what_no_rows_give(place, value, message, tmp_path):
    path = tmp_path / "refit.safetensors"
    layer_statistics({"x.weight": 3, "y.weight": 2}, 200).save(path)
    raw = path.read_bytes()
    length = 4 * (36 + 6 * 5)
    values = torch.frombuffer(bytearray(raw[-length:]), dtype=torch.float32)
    values[place] = value
    path.write_bytes(raw[:-length] + values.numpy().tobytes())
    with pytest.raises(StatisticsInvalidError, match=message):
        inspect(path)


def test_the_inspection_refuses_a_product_of_a_feature_that_no_row_has(tmp_path):
    one = layer_statistics({"x.weight": 3}, 200, dead=2)
    one.save(tmp_path / "refit.safetensors")
    inspect(tmp_path / "refit.safetensors")
    one.products["x.weight"][2, 1] = 0.5
    one.save(tmp_path / "refit.safetensors")
    with pytest.raises(StatisticsInvalidError, match="a feature that no row has has a product with the differences"):
        inspect(tmp_path / "refit.safetensors")


@pytest.mark.parametrize("wrong", ["product.x", "product.z.weight"])
def test_a_file_whose_tensors_are_others_than_described_is_refused(wrong):
    metadata = layer_statistics({"x.weight": 3}, 9).metadata()
    gram, (_, dtype, shape) = tensors_of_statistics(metadata)
    raw = format_header([gram, (wrong, dtype, shape)], {METADATA_KEY: metadata.model_dump_json()})
    raw += bytes(4 * (36 + 18))
    with pytest.raises(StatisticsMalformedError, match="not the packed Gram matrices"):
        parse_statistics_metadata(parse_header(raw, len(raw)), kind="refit")


# --- the solution ----------------------------------------------------------------------------------------------------


def pooled(sizes: tuple[int, ...], scales: list[float], *, width: int = 6, outputs: int = 3) -> Any:
    """Terms of several owners, and their rows x̃ and differences e, each times the root of its scale."""
    generator = torch.Generator().manual_seed(sum(sizes))
    sizes_of_features = torch.tensor([100.0, 1, 1, 0.1, 1, 1])[:width]
    terms, xs, es = [], [], []
    for rows, scale in zip(sizes, scales, strict=True):
        x = torch.randn(rows, width, generator=generator, dtype=torch.float64) * sizes_of_features + 0.5
        x = torch.cat([x, torch.ones(rows, 1, dtype=torch.float64)], dim=1)
        e = torch.randn(rows, outputs, generator=generator, dtype=torch.float64)
        gram = (x.T @ x).reshape(-1)  # of less than a block, packed is whole
        terms.append(ProductTerm(gram, x.T @ e, scale))
        xs.append(scale**0.5 * x)
        es.append(scale**0.5 * e)
    return terms, torch.cat(xs), torch.cat(es)


@pytest.mark.parametrize("scales", [[1.0, 1.0, 1.0], [1 / 30, 2 / 50, 1 / 9]])
@pytest.mark.parametrize("ridge", [0.0, 0.01, 3.0])
def test_the_correction_is_least_squares_on_the_pooled_rows_over_one_row_of_no_difference_for_each_feature(
    scales, ridge
):
    terms, x, e = pooled((30, 50, 9), scales)
    rows = torch.diag((ridge * x.square().sum(dim=0)).sqrt())  # Marquardt: each feature in its own unit
    wanted = torch.linalg.lstsq(torch.cat([x, rows]), torch.cat([e, e.new_zeros(len(rows), e.shape[1])])).solution
    found = solve_correction(terms, ridge=ridge)
    torch.testing.assert_close(torch.cat([found.weight.T, found.bias[None]]), wanted, atol=1e-9, rtol=1e-7)
    assert found.diagnosis.fallback == "none"


def test_features_in_another_unit_give_the_same_layer():
    terms, _, _ = pooled((30, 50), [1.0, 1.0])
    units = torch.tensor([1e3, 1, 1e-2, 1, 7, 1, 1], dtype=torch.float64)
    other = [
        ProductTerm((one.gram.view(7, 7) * units * units[:, None]).reshape(-1), one.product * units[:, None], 1.0)
        for one in terms
    ]
    one, two = (solve_correction(some, ridge=0.1) for some in (terms, other))
    torch.testing.assert_close(two.weight * units[:6], one.weight, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(two.bias, one.bias, atol=1e-12, rtol=1e-9)


def test_layers_without_bias_are_fit_without_the_constant():
    terms, x, e = pooled((30, 50), [1.0, 1.0])
    found = solve_correction(terms, ridge=0.0, with_bias=False)
    torch.testing.assert_close(found.weight, torch.linalg.lstsq(x[:, :-1], e).solution.T, atol=1e-9, rtol=1e-7)
    assert found.bias.tolist() == [0.0, 0.0, 0.0]


def test_the_larger_the_ridge_the_less_changes_and_nothing_changes_where_nothing_lacks():
    terms, _, _ = pooled((30, 50), [1.0, 1.0])
    sizes = [float(solve_correction(terms, ridge=ridge).weight.norm()) for ridge in (0.01, 1.0, 100.0, 1e6)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-5 * sizes[0]
    still = [ProductTerm(one.gram, torch.zeros_like(one.product), 1.0) for one in terms]
    assert not solve_correction(still, ridge=0.01).weight.any()


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_a_feature_that_no_row_has_is_not_corrected(ridge):
    one = layer_statistics({"x.weight": 2}, 40, dead=2)
    (tap,) = one.statistics.taps
    found = solve_correction([ProductTerm(tap.gram, one.products["x.weight"], 1.0)], ridge=ridge)
    assert found.weight[:, 2].tolist() == [0.0, 0.0]
    assert bool((found.weight[:, [0, 1, 3]] != 0).all())


def test_fewer_rows_than_features_still_give_a_finite_correction():
    terms, _, _ = pooled((3,), [1.0])
    found = solve_correction(terms, ridge=0.0)
    assert found.diagnosis.fallback == "ridge"
    assert bool(found.weight.isfinite().all())
    assert solve_correction(terms, ridge=0.01).diagnosis.fallback == "none"


def test_the_order_of_the_terms_does_not_matter():
    terms, _, _ = pooled((30, 50, 9), [1.0, 0.5, 2.0])
    one, other = solve_correction(terms, ridge=0.1), solve_correction(terms[::-1], ridge=0.1)
    torch.testing.assert_close(one.weight, other.weight, atol=1e-12, rtol=1e-9)


def test_terms_that_do_not_fit_together_and_ridges_that_are_none_are_refused():
    terms, _, _ = pooled((30,), [1.0])
    others, _, _ = pooled((30,), [1.0], outputs=2)
    with pytest.raises(ArchitectureMismatchError, match=r"\[7, 3\], \[7, 2\]"):
        solve_correction([*terms, *others], ridge=0.1)
    with pytest.raises(ArchitectureMismatchError, match="none"):
        solve_correction([], ridge=0.1)
    for ridge in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="ridge"):
            solve_correction(terms, ridge=ridge)
