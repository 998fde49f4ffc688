"""Fisher information: what is summed is the square of every example's own gradient, as the definition says."""

import json
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gramfuse
from gramfuse.measuring.batching import TokenizedText, batch_inputs
from gramfuse.measuring.example_gradients import ExampleGradients, NotByExampleError
from gramfuse.measuring.example_losses import SampledLabels
from gramfuse.measuring.fisher import Fisher
from gramfuse.measuring.inference import open_model, ready_to_run
from gramfuse.measuring.sampled_loss import sampled_loss
from gramfuse.measuring.squared_gradients import SquaredGradients
from gramfuse_shared.contract.manifest import FisherSettings
from gramfuse_shared.digest import seed_of
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    CancelledError,
    ConfigurationError,
    StateError,
    StatisticsInvalidError,
    StatisticsMalformedError,
)
from support.tiny_models import tiny_model

IN_BATCHES = ("bert", "roberta", "distilbert", "gpt2", "llama", "qwen2")
ALONE = ("deberta-v2", "deberta-v3", "t5")
TEXTS = ["1 2 3 4", "5 6", "7 8 9", "1 1 2", "3 9", "4 4 4 4 2 1"]


class Words:
    """Just enough of a tokenizer: a token per word."""

    pad_token_id, eos_token_id, model_max_length = 0, None, 32

    def __call__(self, text=None, *_pair, text_target=None, **_options):
        return {"input_ids": [5 + int(word) for word in (text_target if text is None else text).split()]}


def collect(model, texts=TEXTS, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return gramfuse.collect_fisher(model, texts, tokenizer=Words(), **{"seed": 0} | options)


def plain_loop(model, texts=TEXTS, *, seed=0):
    """Σ (∂ log p(ŷ|x)/∂θ)² by autograd in float64, one text after the other, ŷ drawn from p."""
    model = model.double().eval()
    sums = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    generates = hasattr(model, "prepare_decoder_input_ids_from_labels")
    for number, text in enumerate(texts):
        ids = Words()(text)["input_ids"]
        inputs = batch_inputs(model, [TokenizedText(ids, None, ids if generates else None)], 0, torch.device("cpu"))
        drawn = torch.Generator().manual_seed(seed_of(f"{seed} {number}"))
        loss = sampled_loss(model(**inputs), inputs, drawn)
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for total, gradient in zip(sums.values(), found, strict=True):
            if gradient is not None:
                total.add_(gradient.square())
    return sums


@pytest.mark.parametrize("kind", [*IN_BATCHES, *ALONE])
def test_it_is_what_a_loop_over_examples_gives(kind):
    found = collect(tiny_model(kind), batch_size=4)
    expected = plain_loop(tiny_model(kind))
    assert found.values.keys() == expected.keys()
    typical = sum(float(e.sum()) for e in expected.values()) / sum(e.numel() for e in expected.values())
    for name, value in found.values.items():
        size = float(expected[name].norm()) + 1e-6 * typical * value.numel() ** 0.5  # keys' biases have no influence
        assert float((value.double() - expected[name]).norm()) < 1e-4 * size, name
    assert (found.examples, found.distinct_examples) == (6, 6)


@pytest.mark.parametrize("kind", IN_BATCHES)
def test_gradients_are_told_apart_within_a_batch(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gramfuse.collect_fisher(tiny_model(kind), TEXTS, tokenizer=Words())


@pytest.mark.parametrize("kind", ALONE)
def test_where_one_tensor_serves_several_examples_texts_are_passed_alone_and_a_warning_says_so(kind):
    with pytest.warns(UserWarning, match=r"passed one by one.*belongs to no single example"):
        gramfuse.collect_fisher(tiny_model(kind), TEXTS, tokenizer=Words())


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_batches_and_padding_change_nothing(kind):
    one, two, all_at_once = (collect(tiny_model(kind), batch_size=size) for size in (1, 2, 6))
    for name, value in one.values.items():
        noise = 1e-6 * float(value.numel()) ** 0.5 * float(one.values[next(iter(one.values))].mean())
        for other in (two, all_at_once):
            assert float((other.values[name] - value).norm()) <= 1e-4 * float(value.norm()) + noise, name


def test_the_fisher_information_of_logistic_regression_is_known_in_closed_form():
    """E (∂ log p/∂W)² = p(1 − p) x² for each class, and p(1 − p) for the biases."""
    torch.manual_seed(0)
    model, row, draws = nn.Linear(3, 4), torch.tensor([0.5, -2.0, 1.5]), 20_000
    sums = {parameter: torch.zeros(parameter.shape) for parameter in model.parameters()}
    with ExampleGradients(model, sums) as batch:
        batch.begin(draws)
        logits = model(row.expand(draws, 3))
        sampled_loss(Output(logits=logits), {}, torch.Generator().manual_seed(1)).backward()
        batch.finish()
    probabilities = model(row).softmax(-1).detach()
    expected = (probabilities * (1 - probabilities))[:, None] * row.square()
    torch.testing.assert_close(sums[model.weight] / draws, expected, rtol=0.05, atol=1e-3)
    torch.testing.assert_close(sums[model.bias] / draws, probabilities * (1 - probabilities), rtol=0.05, atol=1e-3)


class Output:
    def __init__(self, **values):
        self.__dict__.update(values)


class Everything(nn.Module):
    """A table that also makes the logits, a linear layer used twice, one that leads nowhere, one of its own kind."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4, padding_idx=0)
        self.twice = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.own = nn.RMSNorm(4)
        self.idle = nn.Linear(4, 2)
        self.unused = nn.Linear(4, 2)
        self.logits = nn.Linear(4, 7, bias=False)
        self.logits.weight = self.table.weight

    def forward(self, ids):
        hidden = self.norm(self.twice(torch.tanh(self.twice(self.table(ids)))))
        self.idle(hidden)
        return self.logits(self.own(hidden.flatten(0, 1))).unflatten(0, ids.shape)


@pytest.mark.parametrize("chunk", [1, 2**20])
def test_uses_of_one_parameter_add_up_before_they_are_squared(monkeypatch, chunk):
    monkeypatch.setattr("gramfuse.measuring.squares.CHUNK_BYTES", {"cpu": chunk})
    torch.manual_seed(3)
    model = Everything().eval()
    ids = torch.tensor([[1, 2, 2, 0], [6, 6, 6, 5], [3, 1, 4, 1]])
    sums = {parameter: torch.zeros(parameter.shape) for parameter in model.parameters()}
    with ExampleGradients(model, sums) as batch:
        batch.begin(3)
        model(ids).square().sum().backward()
        batch.finish()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    for parameter, total in sums.items():
        expected = torch.zeros_like(total)
        for row in ids:
            (gradient,) = torch.autograd.grad(model(row[None]).square().sum(), parameter, allow_unused=True)
            expected += 0.0 if gradient is None else gradient.square()
        torch.testing.assert_close(total, expected, rtol=2e-4, atol=1e-6)
    assert float(sums[model.idle.weight].sum()) == float(sums[model.unused.weight].sum()) == 0.0


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))
        self.inner = nn.Linear(4, 4)

    def forward(self, rows):
        return self.inner(rows @ self.weight)


@pytest.mark.parametrize("module", [Pair(), nn.Embedding(5, 3, max_norm=1.0)])
def test_modules_whose_parameters_are_used_in_unknown_ways_are_refused(module):
    with pytest.raises(NotByExampleError, match="of a kind that is not known"):
        ExampleGradients(module, {parameter: torch.zeros(parameter.shape) for parameter in module.parameters()})


def test_a_tensor_that_belongs_to_no_example_is_refused_before_anything_is_added():
    model = nn.Sequential(nn.Linear(3, 3), nn.Bilinear(3, 3, 1))
    sums = {parameter: torch.zeros(parameter.shape) for parameter in model.parameters()}
    with ExampleGradients(model[0], {p: sums[p] for p in model[0].parameters()}) as batch:
        batch.begin(4)
        with pytest.raises(NotByExampleError, match="belongs to no single example"):
            model[0](torch.ones(7, 3))
    with ExampleGradients(model[1], {p: sums[p] for p in model[1].parameters()}) as batch:
        batch.begin(4)
        with pytest.raises(NotByExampleError, match="does not make one tensor of one"):
            model[1](torch.ones(4, 3), torch.ones(4, 3))
    assert all(float(total.sum()) == 0.0 for total in sums.values())


def test_a_batch_that_looks_at_itself_is_found_by_the_trial():
    """Sums that are those of no example alone: here every example reads its neighbour."""
    model = tiny_model("bert")
    model.bert.encoder.register_forward_hook(
        lambda _module, _arguments, output: type(output)(last_hidden_state=output[0] + output[0].roll(1, dims=0))
    )
    with pytest.warns(UserWarning, match="has other sums there"):
        gramfuse.collect_fisher(model, TEXTS, tokenizer=Words())


def test_one_odd_batch_is_passed_alone(monkeypatch):
    refused = []
    begin = ExampleGradients.begin

    def odd(self, examples):
        begin(self, examples)
        if examples == 4:
            refused.append(examples)
            raise NotByExampleError("odd")

    monkeypatch.setattr(ExampleGradients, "begin", odd)
    found = collect(tiny_model("bert"), batch_size=4)
    monkeypatch.undo()
    expected = collect(tiny_model("bert"), batch_size=2)
    assert refused == [4]
    name = "classifier.weight"
    torch.testing.assert_close(found.values[name], expected.values[name], rtol=1e-4, atol=0)


def test_another_seed_draws_other_labels_and_the_same_seed_the_same():
    one, two, other = (collect(tiny_model("bert"), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.values["classifier.weight"], two.values["classifier.weight"])
    assert not torch.equal(one.values["classifier.weight"], other.values["classifier.weight"])


def test_without_a_seed_every_run_draws_others():
    zero, *drawn = (collect(tiny_model("bert"), seed=seed).values["classifier.weight"] for seed in (0, None, None))
    assert not torch.equal(*drawn)
    assert not any(torch.equal(zero, values) for values in drawn)


def test_the_model_comes_back_as_it_was_and_frozen_parameters_are_measured_too():
    model = tiny_model("bert").train()
    model.bert.requires_grad_(requires_grad=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for size in (1, 4):
        found = collect(model, batch_size=size)
        assert float(found.values["bert.encoder.layer.1.output.dense.weight"].sum()) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {p.requires_grad for p in model.bert.parameters()} == {False}
    assert {p.requires_grad for p in model.classifier.parameters()} == {True}
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_what_embeddings_feed_is_told_from_what_has_mixed():
    sources = collect(tiny_model("bert")).sources
    assert sources["bert.embeddings.word_embeddings.weight"] == "embeddings"
    assert sources["bert.embeddings.LayerNorm.bias"] == "embeddings"
    assert sources["bert.encoder.layer.0.attention.self.query.weight"] == "embeddings"
    assert sources["bert.encoder.layer.0.attention.output.dense.weight"] == "mixed"
    assert sources["classifier.weight"] == "mixed"


def test_what_could_not_be_probed_is_unknown():
    sources = collect(tiny_model("bert"), ["1 1", "2 2"]).sources
    assert sources["classifier.weight"] == "unknown"


def test_equal_examples_count_once():
    found = collect(tiny_model("bert"), ["1 2 3", "4 5 6", "1 2 3"])
    assert (found.examples, found.distinct_examples) == (3, 2)


def test_an_interrupted_run_says_that_nothing_is_kept():
    told = []
    with pytest.raises(CancelledError, match="2 of 3 batches were measured, and nothing is kept"):
        collect(tiny_model("bert"), batch_size=2, on_progress=told.append, is_cancelled=lambda: len(told) == 2)
    assert [progress.tokens for progress in told] == [10, 16]
    assert told[0].total == 20


def test_a_run_that_is_cancelled_when_all_is_measured_ends_as_any_other():
    assert collect(tiny_model("bert"), batch_size=6, is_cancelled=lambda: True).examples == 6


def test_a_model_without_a_head_and_a_tokenizer_is_told():
    with pytest.raises(ConfigurationError, match="tokenizer"):
        gramfuse.collect_fisher(tiny_model("bert"), TEXTS)
    with pytest.raises(ConfigurationError, match="task head"):
        collect(tiny_model("bert").bert)


def test_an_adapter_is_told_to_be_merged_first(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"is an adapter.*merge it into its base model"):
        gramfuse.collect_fisher(tmp_path, TEXTS)


def test_a_single_text_is_measured_alone():
    found = collect(tiny_model("bert"), ["1 2 3"])
    expected = plain_loop(tiny_model("bert"), ["1 2 3"])
    torch.testing.assert_close(
        found.values["classifier.weight"].double(), expected["classifier.weight"], rtol=1e-4, atol=0
    )


def test_parameters_without_a_name_in_the_checkpoint_are_refused(tmp_path):
    from gramfuse.measuring.fisher_collection import names_of  # noqa: PLC0415 - of the module under test

    model = tiny_model("bert")
    model.save_pretrained(
        tmp_path, state_dict={k: v for k, v in model.state_dict().items() if not k.startswith("classifier")}
    )
    with pytest.raises(ArchitectureMismatchError, match=r"does not hold 'classifier\.weight'"):
        names_of(model, tmp_path)
    with pytest.raises(ArchitectureMismatchError, match="has no parameters"):
        names_of(nn.Tanh(), None)


# --- the monoid and its file ---------------------------------------------------------------------------------------

SETTINGS = FisherSettings(collector_version="0")


def part(number: int) -> Fisher:
    value = torch.tensor([float(number), 1.0])
    return Fisher(
        {"a": value}, examples=number + 1, seen={bytes([number % 3])}, sources={"a": "mixed"}, settings=SETTINGS
    )


def told(fisher):
    return ({name: value.tolist() for name, value in fisher.values.items()}, fisher.examples, fisher.distinct_examples)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_it_is_a_commutative_monoid(one, two, three):
    a, b, c = part(one), part(two), part(three)
    assert told((a + b) + c) == told(a + (b + c))
    assert told(a + b) == told(b + a)
    assert told(a + Fisher()) == told(Fisher() + a) == told(a)
    assert told(a) == told(part(one))


def test_parts_of_texts_add_up_to_all_of_them():
    """Labels are drawn by place, so the parts are measured with the places that they have in the whole."""
    model = tiny_model("bert")
    whole, parts = ([list(range(6))], [[0, 2, 4], [1, 3, 5]])
    sums = []
    for split in (whole, parts):
        total: dict[str, torch.Tensor] = {}
        for places in split:
            opened = open_model(model, tokenizer=Words(), device="cpu")
            with ready_to_run(opened):
                names = dict(zip(model.parameters(), (n for n, _ in model.named_parameters()), strict=True))
                squares = SquaredGradients(opened, names, SampledLabels(0, opened.device))
                batch = [(place, TokenizedText(Words()(TEXTS[place])["input_ids"])) for place in places]
                squares.try_batches(batch)
                squares.add(batch)
                for parameter, value in squares.sums.items():
                    total[names[parameter]] = total.get(names[parameter], 0.0) + value
        sums.append(total)
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    torch.testing.assert_close(sums[0][name], sums[1][name], rtol=1e-4, atol=1e-9)


def test_a_file_gives_back_what_was_measured_and_no_trace_of_examples(tmp_path):
    measured = collect(tiny_model("bert"), base="a" * 64)
    measured.save(tmp_path / "fisher.safetensors")
    loaded = Fisher.load(tmp_path / "fisher.safetensors")
    assert told(loaded) == told(measured)
    assert (loaded.sources, loaded.settings, loaded.base) == (measured.sources, measured.settings, "a" * 64)
    assert (loaded.seen, loaded.anonymous) == (set(), 6)
    assert told(loaded + loaded)[1:] == (12, 12)
    content = (tmp_path / "fisher.safetensors").read_bytes()
    assert measured.seen
    assert not any(example in content or example.hex().encode() in content for example in measured.seen)
    assert repr(loaded) == "Fisher(39 parameters, 6 examples)"
    assert loaded.metadata == measured.metadata


def test_norms_are_those_of_the_values():
    fisher = Fisher({"a": torch.tensor([3.0, 4.0])}, examples=1, sources={"a": "mixed"}, settings=SETTINGS)
    (parameter,) = fisher.metadata.parameters
    assert (parameter.name, parameter.shape, parameter.norm) == ("a", (2,), 5.0)


def test_nothing_measured_and_sums_out_of_range_are_not_saved(tmp_path):
    with pytest.raises(StateError, match="no examples"):
        Fisher().save(tmp_path / "f")
    for value in (float("nan"), float("inf"), 1e31):
        bad = Fisher({"a": torch.tensor([value])}, examples=1, settings=SETTINGS)
        with pytest.raises(StatisticsInvalidError, match="'a' holds NaN or infinity"):
            bad.save(tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_otherwise_does_not_add():
    for other, reason in (
        (Fisher({"b": torch.ones(2)}, examples=1, settings=SETTINGS), "they differ in a"),
        (Fisher({"a": torch.ones(3)}, examples=1, settings=SETTINGS), "they differ in a"),
        (
            part(1).__class__({"a": torch.ones(2)}, examples=1, settings=FisherSettings(collector_version="1")),
            "does not",
        ),
    ):
        with pytest.raises(StatisticsMalformedError, match=reason):
            part(1) + other
    one, two = part(1), part(2)
    one.base, two.base = "a" * 64, "b" * 64
    with pytest.raises(StatisticsMalformedError, match="of base"):
        one + two


def test_the_file_says_what_it_is_in_its_metadata(tmp_path):
    part(1).save(tmp_path / "f")
    raw = (tmp_path / "f").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert json.loads(header["__metadata__"]["gramfuse.fisher"]) == {
        "format": "gramfuse/fisher/1",
        "base": None,
        "collector": {"collector_version": "0", "labels": "sampled"},
        "examples": 2,
        "distinct_examples": 1,
        "parameters": [{"name": "a", "norm": pytest.approx(2**0.5), "shape": [2], "source": "mixed"}],
    }
