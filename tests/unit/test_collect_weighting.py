"""Gradient-weighted statistics: rows count by the loss's gradient at their layer's output, as the definition says."""

import pytest
import torch
from torch import nn

import gramfuse
from gramfuse.measuring.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from gramfuse.measuring.collection import Collector
from gramfuse.measuring.sampled_loss import sampled_loss
from gramfuse.measuring.statistics import Statistics
from gramfuse.measuring.statistics_checkpoint import keep_statistics, restore_statistics
from gramfuse_shared.contract.manifest import CollectorSettings
from gramfuse_shared.errors import (
    CancelledError,
    ConfigurationError,
    RecipeInvalidError,
    StateError,
    StatisticsMalformedError,
)
from gramfuse_shared.merging.plan import Member
from gramfuse_shared.merging.planning import plan_merge
from support.merging_cases import member_of, random_models, recipe_of
from support.tiny_models import tiny_model, token_batch

LABELS = 4


def classifier(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, LABELS))


def examples(count: int = 20, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator), torch.randint(LABELS, (count,), generator=generator)


def loss_of(model: nn.Module, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(rows), labels, reduction="sum")


def measured(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Statistics:
    with Collector(model, weighting="output_gradient") as statistics:
        for rows, labels in batches:
            loss_of(model, rows, labels).backward()
    return statistics


def definition(rows: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Σ ‖∂ℓ/∂y‖² x xᵀ, example by example, in float64."""
    model = classifier().double()
    grams = {"0": torch.zeros(6, 6).double(), "2": torch.zeros(8, 8).double()}
    for row, label in zip(rows.double(), labels, strict=True):
        first = model[0](row)
        inner = torch.tanh(first)
        second = model[2](inner)
        loss = nn.functional.cross_entropy(second[None], label[None])
        by_first, by_second = torch.autograd.grad(loss, (first, second))
        grams["0"] += by_first.square().sum() * torch.outer(row, row)
        grams["2"] += by_second.square().sum() * torch.outer(inner, inner).detach()
    return grams


def test_every_row_counts_by_the_square_of_its_outputs_gradient():
    model, (rows, labels) = classifier(), examples()
    expected = definition(rows, labels)
    for tap in measured(model, [(rows, labels)]).taps:
        error = torch.linalg.norm(tap.unpacked().double() - expected[tap.info.name])
        assert error < 2e-6 * torch.linalg.norm(expected[tap.info.name]), tap.info.name
        assert tap.info.rows == len(rows)


def test_batches_add_up():
    model, (rows, labels) = classifier(), examples()
    whole = measured(model, [(rows, labels)])
    parts = measured(model, [(rows[:7], labels[:7]), (rows[7:], labels[7:])])
    for one, two in zip(whole.taps, parts.taps, strict=True):
        torch.testing.assert_close(one.gram, two.gram, rtol=1e-5, atol=1e-7)
        assert one.info == two.info


def test_padded_rows_count_nothing_and_every_linear_has_statistics_of_its_own():
    model, batch = tiny_model("bert"), token_batch()
    alone = []
    with Collector(model, weighting="output_gradient") as statistics:
        (model(**batch).logits.square() * batch["attention_mask"][..., None]).sum().backward()
    for position, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        with Collector(model, weighting="output_gradient") as single:
            cut = {name: tensor[position : position + 1, :length] for name, tensor in batch.items()}
            model(**cut).logits.square().sum().backward()
        alone.append(single)
    assert all(len(tap.info.layers) == 1 for tap in statistics.taps)
    for tap in statistics.taps:
        parts = [next(t for t in one.taps if t.info.name == tap.info.name) for one in alone]
        assert tap.info.rows == sum(part.info.rows for part in parts)
        expected = torch.stack([part.gram for part in parts]).sum(dim=0)
        assert torch.linalg.norm(tap.gram - expected) <= 1e-4 * torch.linalg.norm(expected), tap.info.name


def test_without_gradients_the_collector_says_so():
    model, (rows, _) = classifier(), examples()
    with pytest.raises(StateError, match=r"no gradient reaches the output of 0\.weight"):  # noqa: SIM117 - the model's call raises
        with torch.no_grad(), Collector(model, weighting="output_gradient"):
            model(rows)


def test_rows_of_little_weight_do_not_pass_for_rows():
    """What the policy counts are rows that say something; one that outweighs a thousand is one."""
    model, (rows, labels) = classifier(), examples(50)
    with Collector(model, weighting="output_gradient") as statistics:
        weights = torch.full((50,), 1e-4)
        weights[0] = 1.0
        (nn.functional.cross_entropy(model(rows), labels, reduction="none") * weights).sum().backward()
    assert {tap.info.rows for tap in statistics.taps} == {50}
    assert {tap.info.distinct_rows for tap in statistics.taps} == {1}


def test_weighted_and_ordinary_statistics_do_not_add():
    model, (rows, labels) = classifier(), examples()
    with torch.no_grad(), Collector(model) as ordinary:
        model(rows)
    with pytest.raises(StatisticsMalformedError, match="do not add"):
        measured(model, [(rows, labels)]) + ordinary


def test_a_file_and_a_checkpoint_keep_the_weighting_and_what_the_rows_weigh(tmp_path):
    model, (rows, labels) = classifier(), examples()
    statistics = measured(model, [(rows, labels)])
    statistics.save(tmp_path / "statistics.safetensors")
    loaded = Statistics.load(tmp_path / "statistics.safetensors")
    assert loaded == statistics
    assert loaded.settings.weighting == "output_gradient"
    write_checkpoint(tmp_path / "partial", Checkpoint("run", 1, keep_statistics(statistics)))
    resumed = restore_statistics(read_checkpoint(tmp_path / "partial", "run").measured)
    for one, two in zip((resumed + statistics).taps, (statistics + statistics).taps, strict=True):
        assert one.info == two.info
        assert one.info.distinct_rows < one.info.rows


def test_settings_without_weighting_keep_the_bytes_that_they_had():
    assert b"weighting" not in CollectorSettings(collector_version="1").canonical()


# --- run by the SDK ------------------------------------------------------------------------------------------------


class Words:
    """Just enough of a tokenizer: a token per word."""

    pad_token_id, eos_token_id, model_max_length = 0, None, 32

    def __call__(self, text, *_pair, **_options):
        return {"input_ids": [5 + int(word) for word in text.split()]}


TEXTS = ["1 2 3 4", "5 6", "7 8 9", "1 1 2", "3 9"]


def test_the_sdk_draws_labels_leaves_the_model_as_it_was_and_repeats_itself():
    model = tiny_model("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = {"tokenizer": Words(), "weighting": "output_gradient", "batch_size": 2}
    one, two, other = (gramfuse.collect(model, TEXTS, **options, seed=seed) for seed in (0, 0, 1))
    assert one == two
    assert not torch.equal(one.taps[0].gram, other.taps[0].gram)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert {tap.info.rows for tap in one.taps} == {14}


def test_an_interrupted_run_resumes_to_the_same_statistics(tmp_path):
    model = tiny_model("bert")
    options = {"tokenizer": Words(), "weighting": "output_gradient", "batch_size": 2, "seed": 0}
    calls = iter([False, True])
    with pytest.raises(CancelledError):
        gramfuse.collect(model, TEXTS, **options, checkpoint=tmp_path / "c", is_cancelled=lambda: next(calls))
    resumed = gramfuse.collect(model, TEXTS, **options, checkpoint=tmp_path / "c")
    whole = gramfuse.collect(model, TEXTS, **options)
    for one, two in zip(resumed.taps, whole.taps, strict=True):
        assert one.info == two.info
        torch.testing.assert_close(one.gram, two.gram, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_language_models_draw_their_next_tokens(kind):
    class Both(Words):
        def __call__(self, text=None, *_pair, text_target=None, **_options):
            return super().__call__(text_target if text is None else text)

    statistics = gramfuse.collect(tiny_model(kind), TEXTS, tokenizer=Both(), weighting="output_gradient")
    assert all(bool((tap.unpacked().diagonal() >= 0).all()) for tap in statistics.taps)
    assert any(float(tap.unpacked().diagonal().sum()) > 0 for tap in statistics.taps)


# --- the loss ------------------------------------------------------------------------------------------------------


class Output:
    def __init__(self, **values):
        self.__dict__.update(values)


def mean_square(problem=None, *, logits, draws=4000):
    """The mean square of the gradient over many draws: the diagonal of the Fisher information of the logits."""
    repeated = logits.repeat(draws, 1).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    sampled_loss(Output(logits=repeated), {}, generator, problem=problem).backward()
    return repeated.grad.square().mean(dim=0)


def test_drawn_classes_give_the_fisher_information():
    logits = torch.tensor([[0.3, -1.0, 0.8]])
    probabilities = logits.softmax(-1)[0]
    assert torch.allclose(mean_square(logits=logits), probabilities * (1 - probabilities), atol=0.02)


def test_drawn_labels_give_the_fisher_information():
    logits = torch.tensor([[0.3, -1.0, 2.0]])
    probabilities = logits.sigmoid()[0]
    found = mean_square("multi_label_classification", logits=logits)
    assert torch.allclose(found, probabilities * (1 - probabilities), atol=0.02)


def test_a_single_number_is_the_mean_of_a_normal_distribution():
    assert torch.allclose(mean_square(logits=torch.tensor([[7.0]])), torch.ones(1), atol=0.1)


def test_padded_tokens_have_no_loss():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    sampled_loss(Output(logits=logits), {"attention_mask": mask}, torch.Generator().manual_seed(0)).backward()
    assert torch.equal(logits.grad.abs().sum(-1) > 0, mask.bool())


def test_spans_are_drawn_within_the_text():
    start, end = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    inputs = {"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    loss = sampled_loss(Output(start_logits=start, end_logits=end), inputs, torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isfinite(loss)
    assert float(start.grad[:, 2].abs().sum()) == 0.0


def test_a_model_without_a_head_is_told():
    with pytest.raises(ConfigurationError, match="load it with its task head"):
        sampled_loss(Output(last_hidden_state=torch.ones(1, 2, 3)), {}, torch.Generator())


# --- the merge -----------------------------------------------------------------------------------------------------


def test_a_cohort_of_different_weightings_is_refused_by_name():
    _, models = random_models()
    members = [member_of(model) for model in models]
    odd = Member("zz", "umbrella", 1.0, members[0].tensors, members[0].taps, weighting="output_gradient")
    with pytest.raises(RecipeInvalidError, match="output_gradient: umbrella"):
        plan_merge([*members, odd], None, recipe_of())
    plan_merge([*members, odd], None, recipe_of("linear"))
