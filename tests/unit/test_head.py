"""Heads refit to a merged trunk: what is summed, how it travels, and what is solved, against the definition."""

import json
import struct
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from gramfuse.contributing.loading import open_statistics_file
from gramfuse.measuring.head import HeadStatistics, collect_head
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
    ConfigurationError,
    StatisticsInvalidError,
    StatisticsMalformedError,
)
from gramfuse_shared.fusion import packing
from gramfuse_shared.fusion.head import solve_head
from gramfuse_shared.fusion.products import ProductTerm
from gramfuse_shared.merging.inspection import inspect_statistics
from gramfuse_shared.merging.streaming import LocalFile, TensorFile
from support.tiny_models import PAD, tiny_bert, tiny_model
from support.tokenizing import word_tokenizer

TEXTS = ["a b c", "d e", "f g h i j k", "l", "a b c", "m n o p", "q r"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


def rows_of(model: Any, own: Any, tokenizer: Any, texts: list[str], layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition: each text alone, z of the merged model's last layer by a hook, t of one's own model."""
    read: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    logits = []
    for text in texts:
        encoded = tokenizer(text, return_tensors="pt")
        encoded.pop("token_type_ids", None)
        with torch.no_grad():
            model(**encoded)
            logits.append(own(**encoded).logits.reshape(-1, own.config.num_labels))
    hook.remove()
    read = [one.reshape(-1, one.shape[-1]) for one in read]
    if read[0].shape[0] != logits[0].shape[0]:  # a decoder's classifier reads every token and keeps the last
        read = [one[-1:] for one in read]
    z = torch.cat(read).double()
    return torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], dim=1), torch.cat(logits).double()


def decoder(seed: int) -> Any:
    import transformers as t  # noqa: PLC0415

    torch.manual_seed(seed)
    small = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 3}
    return t.LlamaForSequenceClassification(t.LlamaConfig(**small, intermediate_size=48, pad_token_id=PAD)).eval()


KINDS = {
    "bert": (lambda seed: tiny_bert(seed=seed), lambda model: model.classifier, "classifier.weight"),
    "roberta": (
        lambda seed: tiny_model("roberta", seed=seed),
        lambda model: model.classifier.out_proj,
        "classifier.out_proj.weight",
    ),
    "distilbert": (
        lambda seed: tiny_model("distilbert", seed=seed),
        lambda model: model.classifier,
        "classifier.weight",
    ),
    "deberta": (lambda seed: tiny_model("deberta-v2", seed=seed), lambda model: model.classifier, "classifier.weight"),
    "llama": (decoder, lambda model: model.score, "score.weight"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_head_statistics_are_the_products_of_features_with_a_one_and_of_ones_own_logits(kind, batch_size, tokenizer):
    make, layer_of, weight = KINDS[kind]
    merged, own = make(0), make(1)
    z, t = rows_of(merged, own, tokenizer, TEXTS, layer_of(merged))
    found = collect_head(merged, own, TEXTS, tokenizer=tokenizer, batch_size=batch_size)
    assert (found.weight, found.rows) == (weight, len(z))
    assert torch.allclose(packing.unpack(found.gram, z.shape[1]), z.T @ z, atol=1e-4)
    assert torch.allclose(found.product, z.T @ t, atol=1e-4)
    # one of the seven texts is there twice
    repeated = 1 if len(z) == len(TEXTS) else 5
    assert found.distinct_rows == found.rows - repeated


def test_ones_own_model_is_run_whole_not_its_head_on_the_merged_trunk(tokenizer):
    merged, own = tiny_bert(seed=0), tiny_bert(seed=1)
    product = collect_head(merged, own, TEXTS, tokenizer=tokenizer).product
    own.classifier.load_state_dict(merged.classifier.state_dict())
    assert not torch.allclose(collect_head(merged, own, TEXTS, tokenizer=tokenizer).product, product)
    assert not torch.allclose(collect_head(merged, merged, TEXTS, tokenizer=tokenizer).product, product)


def statistics(seed: int, rows: int, *, width: int = 5, labels: int = 3) -> HeadStatistics:
    generator = torch.Generator().manual_seed(seed)
    z, t = torch.randn(rows, width, generator=generator), torch.randn(rows, labels, generator=generator)
    return HeadStatistics.of("head.weight", z, t, {bytes([seed, row]): 1 for row in range(rows)})


def same(one: HeadStatistics, other: HeadStatistics) -> bool:
    return (
        torch.allclose(one.gram, other.gram)
        and torch.allclose(one.product, other.product)
        and (one.rows, one.distinct_rows) == (other.rows, other.distinct_rows)
    )


@given(st.tuples(*[st.integers(0, 4)] * 3))
def test_head_statistics_form_a_commutative_monoid(sizes):
    a, b, c = (statistics(seed, rows) for seed, rows in enumerate(sizes))
    assert same((a + b) + c, a + (b + c))
    assert same(a + b, b + a)
    assert same(a + HeadStatistics.zero("head.weight", 5, 3), a)


def test_rows_of_an_example_that_both_sides_know_count_once():
    one = statistics(1, 4)
    assert ((one + one).rows, (one + one).distinct_rows) == (8, 4)


def test_statistics_of_other_layers_shapes_or_bases_do_not_add():
    one = statistics(1, 4)
    for other in (statistics(1, 4, width=6), statistics(1, 4, labels=2), HeadStatistics.zero("score.weight", 5, 3)):
        with pytest.raises(StatisticsMalformedError, match="do not add"):
            _ = one + other
    with pytest.raises(StatisticsMalformedError, match="do not add"):
        _ = one + HeadStatistics.zero("head.weight", 5, 3, base="0" * 64)


def test_a_head_that_cannot_be_refit_is_told(tokenizer):
    with pytest.raises(ConfigurationError, match="no linear layer's output"):
        collect_head(tiny_model("gpt2"), tiny_model("gpt2"), TEXTS, tokenizer=tokenizer)
    scaled = tiny_bert()
    plain = scaled.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        output = plain(*arguments, **options)
        output.logits = 2 * output.logits
        return output

    scaled.forward = forward
    with pytest.raises(ConfigurationError, match="not that of classifier"):
        collect_head(scaled, tiny_bert(), TEXTS, tokenizer=tokenizer)


def test_models_of_other_labels_are_refused(tokenizer):
    with pytest.raises(ArchitectureMismatchError, match="the same labels the same ids"):
        collect_head(tiny_bert(), tiny_bert(num_labels=4), TEXTS, tokenizer=tokenizer)


def test_a_run_can_be_cancelled_and_no_tokens_are_no_statistics(tokenizer):
    with pytest.raises(CancelledError):
        collect_head(tiny_bert(), tiny_bert(), TEXTS, tokenizer=tokenizer, is_cancelled=lambda: True)
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]")), pad_token="[PAD]"
    )
    with pytest.raises(ConfigurationError, match="no text has a token"):
        collect_head(tiny_bert(), tiny_bert(), [""], tokenizer=bare)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_saved_file_holds_the_same_statistics_in_float32(tmp_path):
    one = statistics(1, 7)
    one.save(tmp_path / "head.safetensors")
    again = HeadStatistics.load(tmp_path / "head.safetensors")
    assert (again.weight, again.rows, again.distinct_rows, again.examples) == ("head.weight", 7, 7, {})
    assert torch.equal(again.gram, one.gram.float().double())
    assert torch.equal(again.product, one.product.float().double())
    assert [path.name for path in tmp_path.iterdir()] == ["head.safetensors"]


def test_the_head_file_keeps_its_bytes():
    """One row z = (1, 2), t = (3): G is that of (1, 2, 1), B = (3, 6, 3)."""
    tap = TapInfo(
        name="head", width=3, rows=1, distinct_rows=1, source="mixed", layers=(LayerInfo(weight="head.weight"),)
    )
    settings = CollectorSettings(collector_version="1.0.0")
    metadata = StatisticsMetadata(collector=settings, kind="head", labels=1, taps=(tap,))
    document = (
        '{"base":null,"collector":{"collector_version":"1.0.0","padding":"dropped","precision":"float32"},'
        '"encoding":"float32","format":"gramfuse/statistics/1","kind":"head","labels":1,"taps":[{"distinct_rows":1,'
        '"layers":[{"layout":"out_in","weight":"head.weight"}],"name":"head","rows":1,"source":"mixed","width":3}]}'
    )
    assert metadata.canonical().decode() == document
    assert tensors_of_statistics(metadata) == [("gram.head", "F32", (9,)), ("product.head", "F32", (3, 1))]
    raw = format_header(tensors_of_statistics(metadata), {METADATA_KEY: document})
    raw += struct.pack("<9f", 1, 2, 1, 2, 4, 2, 1, 2, 1) + struct.pack("<3f", 3, 6, 3)
    assert parse_statistics_metadata(parse_header(raw, len(raw)), kind="head") == metadata
    z, t = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])
    built = HeadStatistics.of("head.weight", z, t, {b"": 1})
    assert built.gram.tolist() == [1, 2, 1, 2, 4, 2, 1, 2, 1]
    assert built.product.flatten().tolist() == [3, 6, 3]


def test_head_statistics_are_no_contribution_and_a_contributions_are_no_head_statistics(tmp_path, tokenizer):
    statistics(1, 7).save(tmp_path / "head.safetensors")
    with pytest.raises(StatisticsMalformedError, match="of the kind head, and gram is needed"):
        open_statistics_file(tmp_path / "head.safetensors")
    with pytest.raises(StatisticsMalformedError, match="of the kind head"):
        Statistics.load(tmp_path / "head.safetensors")
    from gramfuse import collect  # noqa: PLC0415

    collect(tiny_bert(), TEXTS, tokenizer=tokenizer).save(tmp_path / "gram.safetensors")
    with pytest.raises(StatisticsMalformedError, match="of the kind gram, and head is needed"):
        HeadStatistics.load(tmp_path / "gram.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"labels": None},
        {"kind": "gram"},
        {"labels": 0},
        {"encoding": "int16"},
        {"taps": ()},
    ],
)
def test_a_description_that_is_not_of_one_head_is_refused(change):
    described = json.loads(statistics(1, 7).metadata.canonical())
    with pytest.raises(ValidationError):
        StatisticsMetadata.model_validate(described | change)


def test_what_is_not_finite_or_empty_is_not_saved(tmp_path):
    one = statistics(1, 3)
    one.product[0, 0] = 1e39
    with pytest.raises(StatisticsInvalidError, match=r"head\.weight hold NaN"):
        one.save(tmp_path / "head.safetensors")
    with pytest.raises(StatisticsMalformedError, match="no text"):
        HeadStatistics.zero("head.weight", 5, 3).save(tmp_path / "head.safetensors")
    assert list(tmp_path.iterdir()) == []


def inspect(path: Path) -> None:
    raw = path.read_bytes()
    header = parse_header(raw, len(raw))
    with LocalFile(path) as source:
        inspect_statistics(TensorFile(source, header), parse_statistics_metadata(header, kind="head"))


def test_the_inspection_passes_what_was_measured(tmp_path):
    statistics(1, 200).save(tmp_path / "head.safetensors")
    inspect(tmp_path / "head.safetensors")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda one: one.gram.mul_(-1), "negative sum of squares"),
        (lambda one: one.gram[-1].add_(3), "the constant's square is 203 with 200 rows"),
        (lambda one: one.gram.view(6, 6)[0].zero_() + one.gram.view(6, 6)[:, 0].zero_(), "a feature that no row has"),
    ],
)
def test_the_inspection_refuses_what_no_rows_give(fault, message, tmp_path):
    one = statistics(1, 200)
    fault(one)
    one.save(tmp_path / "head.safetensors")
    with pytest.raises(StatisticsInvalidError, match=message):
        inspect(tmp_path / "head.safetensors")


def test_the_inspection_refuses_a_product_that_is_not_finite(tmp_path):
    path = tmp_path / "head.safetensors"
    statistics(1, 200).save(path)
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", float("nan")))
    with pytest.raises(StatisticsInvalidError, match="product with the logits holds NaN"):
        inspect(path)


# --- the solution -----------------------------------------------------------------------------------------------------


def pooled(sizes: tuple[int, ...], scales: list[float], *, width: int = 6, labels: int = 3) -> Any:
    generator = torch.Generator().manual_seed(sum(sizes))
    parts = [
        (
            torch.randn(rows, width, generator=generator, dtype=torch.float64) + 1.5,
            torch.randn(rows, labels, generator=generator, dtype=torch.float64),
        )
        for rows in sizes
    ]
    terms = []
    for (z, t), scale in zip(parts, scales, strict=True):
        one = HeadStatistics.of("head.weight", z, t, {})
        terms.append(ProductTerm(one.gram, one.product, scale))
    roots = [scale**0.5 for scale in scales]
    z = torch.cat([root * torch.cat([z, torch.ones(len(z), 1)], 1) for root, (z, _) in zip(roots, parts, strict=True)])
    t = torch.cat([root * t for root, (_, t) in zip(roots, parts, strict=True)])
    return terms, z, t


@pytest.mark.parametrize("scales", [[1.0, 1.0, 1.0], [1 / 30, 2 / 50, 1 / 9]])
def test_without_a_ridge_the_head_is_least_squares_on_the_pooled_weighted_rows(scales):
    terms, z, t = pooled((30, 50, 9), scales)
    wanted = torch.linalg.lstsq(z, t).solution  # [d+1, labels]
    head = solve_head(terms, ridge=0.0)
    assert torch.allclose(head.weight, wanted[:-1].T, atol=1e-9)
    assert torch.allclose(head.bias, wanted[-1], atol=1e-9)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_a_ridge_is_rows_of_zero_logits_for_the_features_and_none_for_the_constant(ridge):
    terms, z, t = pooled((30, 50), [1.0, 0.5])
    width = z.shape[1] - 1
    penalty = (ridge * float((z[:, :-1] ** 2).sum()) / width) ** 0.5
    more = torch.cat([penalty * torch.eye(width, dtype=torch.float64), torch.zeros(width, 1, dtype=torch.float64)], 1)
    wanted = torch.linalg.lstsq(torch.cat([z, more]), torch.cat([t, t.new_zeros(width, t.shape[1])])).solution
    head = solve_head(terms, ridge=ridge)
    assert torch.allclose(torch.cat([head.weight.T, head.bias[None]]), wanted, atol=1e-9)


def test_logits_that_are_all_raised_alike_change_the_bias_alone():
    terms, _, _ = pooled((30, 50), [1.0, 1.0])
    raised = [
        ProductTerm(term.gram, term.product + 7 * packing.unpack(term.gram, 7)[:, -1:], term.scale) for term in terms
    ]
    one, other = solve_head(terms, ridge=0.5), solve_head(raised, ridge=0.5)
    assert torch.allclose(one.weight, other.weight, atol=1e-9)
    assert torch.allclose(one.bias + 7, other.bias, atol=1e-9)


def test_a_layer_without_bias_is_fit_without_the_constant():
    terms, z, t = pooled((30, 50), [1.0, 1.0])
    head = solve_head(terms, ridge=0.0, with_bias=False)
    assert torch.allclose(head.weight, torch.linalg.lstsq(z[:, :-1], t).solution.T, atol=1e-9)
    assert head.bias.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_a_feature_that_no_row_has_keeps_the_weight_zero(ridge):
    generator = torch.Generator().manual_seed(1)
    z, t = torch.randn(40, 4, generator=generator), torch.randn(40, 2, generator=generator)
    z[:, 2] = 0
    one = HeadStatistics.of("head.weight", z, t, {})
    head = solve_head([ProductTerm(one.gram, one.product, 1.0)], ridge=ridge)
    assert head.weight[:, 2].tolist() == [0.0, 0.0]
    assert bool((head.weight[:, [0, 1, 3]] != 0).all())


def test_fewer_rows_than_features_still_give_a_finite_head():
    terms, _, _ = pooled((3,), [1.0])
    head = solve_head(terms, ridge=0.0)
    assert head.diagnosis.fallback == "ridge"
    assert bool(head.weight.isfinite().all())
    assert float(head.weight.abs().max()) < 10


def test_a_head_refit_to_its_own_trunk_predicts_what_it_did(tokenizer):
    model, same = tiny_bert(initializer_range=0.5), tiny_bert(initializer_range=0.5)
    texts = [f"{a} {b}" for a in "abcdefghijkl" for b in "mnopqrst"]
    z, t = rows_of(model, same, tokenizer, texts, model.classifier)
    one = collect_head(model, same, texts, tokenizer=tokenizer)
    # its features are normalized, so with the constant they are linearly dependent, and the fit is not unique
    head = solve_head([ProductTerm(one.gram, one.product, 1.0)], ridge=1e-6)
    assert float((z[:, :-1] @ head.weight.T + head.bias - t).abs().max()) < 1e-2
    assert float(t.std()) > 1


def test_the_order_of_the_terms_does_not_matter():
    terms, _, _ = pooled((30, 50, 9), [1.0, 0.5, 2.0])
    one, other = solve_head(terms, ridge=0.1), solve_head(terms[::-1], ridge=0.1)
    assert torch.allclose(one.weight, other.weight, atol=1e-12)
    total = reduce(lambda a, b: a + b, [statistics(seed, 20) for seed in range(3)])
    apart = [ProductTerm(part.gram, part.product, 1.0) for part in (statistics(seed, 20) for seed in range(3))]
    together = solve_head([ProductTerm(total.gram, total.product, 1.0)], ridge=0.1)
    assert torch.allclose(solve_head(apart, ridge=0.1).weight, together.weight, atol=1e-12)


def test_terms_that_do_not_fit_together_are_refused():
    one, other = statistics(1, 9), statistics(1, 9, width=6)
    terms = [ProductTerm(part.gram, part.product, 1.0) for part in (one, other)]
    with pytest.raises(ArchitectureMismatchError, match=r"\[6, 3\], \[7, 3\]"):
        solve_head(terms, ridge=0.1)
    with pytest.raises(ArchitectureMismatchError, match="none"):
        solve_head([], ridge=0.1)
    for ridge in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="ridge"):
            solve_head(terms[:1], ridge=ridge)
