"""What answers to requests tell, on the answers that the client really computes."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from gramfuse.evaluating.calibration import count_scores, scores_of
from gramfuse.evaluating.scoring import score_classes
from gramfuse.measuring.head import collect_head
from gramfuse.measuring.inference import open_model
from gramfuse.measuring.refit import collect_refit
from gramfuse.privacy.membership import RIDGE, LeverageMeter, auc
from gramfuse.privacy.reading_rows import rows_of_texts
from gramfuse.privacy.whitening import factor_of, whiten
from gramfuse_shared import limits
from gramfuse_shared.contract.calibration import BINS, bin_edge
from gramfuse_shared.contract.metrics import DECIMALS, in_few_digits
from gramfuse_shared.fusion.head import solve_head
from gramfuse_shared.fusion.packing import unpack
from gramfuse_shared.fusion.products import ProductTerm
from support.last_block import LastBlock
from support.tweets import QUERY, tokenized, tweets

QUERIES = QUERY.format(5)
TEXTS, LABELS = 100, 7


@pytest.fixture(scope="session")
def own(tuned):
    """One organization's model."""
    return open_model(tuned[0].folder, device="cpu")


@pytest.fixture(scope="session")
def merged(tuned, minilm, tmp_path_factory):
    """The mean of two organizations' models."""
    one, two = (load_file(model.folder / "model.safetensors") for model in tuned)
    folder = tmp_path_factory.mktemp("merged")
    for file in minilm.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    save_file({name: (one[name] + two[name]) / 2 for name in one}, folder / "model.safetensors", {"format": "pt"})
    return open_model(folder, device="cpu")


@pytest.fixture(scope="session")
def by_model(mixed_rows, encoder, own, merged):
    """The rows of the same texts, as three models compute them: a hundred that are measured, a hundred others."""
    parts = (tweets("btc-f")[:TEXTS], tweets("btc-f", "test")[:TEXTS])
    texts = tokenized(encoder, sum(parts, ()))
    found = [[*mixed_rows[5].mine[:TEXTS], *mixed_rows[5].others[:TEXTS]]]
    for model in (own, merged):
        read = dict(rows_of_texts(model, texts, (QUERIES,)))
        found.append([read[place][QUERIES] for place in range(len(texts))])
    return found


# --- gram: the same texts under several models -----------------------------------------------------------------------


def told(texts):
    """The attack's statistic of each text, the measured ones first, in units of those had they been left out."""
    rows = torch.cat(texts[:TEXTS])
    meter = LeverageMeter(rows.T @ rows)
    measured = [meter.measure(rows) for rows in texts]
    left_out = torch.tensor([one.left_out() for one in measured[:TEXTS]])
    values = [one.inside() for one in measured[:TEXTS]] + [one.outside() for one in measured[TEXTS:]]
    return (torch.tensor(values) - left_out.mean()) / left_out.std()


def split_auc(values):
    return auc(values[TEXTS:], values[:TEXTS])


def test_a_hundred_texts_under_three_near_models_tell_no_more_than_under_one(by_model):
    alone = [told(texts) for texts in by_model]
    assert min(split_auc(values) for values in alone) > 0.9
    assert split_auc(sum(alone)) == pytest.approx(split_auc(alone[0]), abs=0.03)


def test_two_blocks_of_one_model_tell_more_than_either(mixed_rows):
    """As a round that refines several blocks asks for."""
    alone = [told([*mixed_rows[depth].mine[:TEXTS], *mixed_rows[depth].others[:TEXTS]]) for depth in (1, 5)]
    assert split_auc(sum(alone)) > max(split_auc(values) for values in alone)


def test_the_difference_of_two_models_matrices_tells_members_too_and_less(by_model):
    """What each text alone would change, matched with what changed, in the directions that the matrices weigh."""
    totals = [(rows := torch.cat(texts[:TEXTS])).T @ rows for texts in by_model[:2]]
    factor = factor_of(totals[0] + totals[1], ridge=RIDGE)

    def change(one, two):
        one, two = whiten(one, factor), whiten(two, factor)
        return one.T @ one - two.T @ two

    changes = [change(one, two) for one, two in zip(by_model[0], by_model[1], strict=True)]
    whole = sum(changes[:TEXTS])
    found = torch.tensor([float((own * whole).sum() / own.norm()) for own in changes])
    assert 0.55 < auc(found[:TEXTS], found[TEXTS:]) < 0.9


# --- head and refit: one's own layers --------------------------------------------------------------------------------


def with_other_layers(opened):
    """A copy of a model, whose head nobody has seen, and one layer of which is a tenth off."""
    model, generator = copy.deepcopy(opened.model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer, head = dict(model.named_parameters())[QUERIES], model.classifier.weight
        layer += 0.1 * layer.std() * torch.randn(layer.shape, generator=generator)
        head.copy_(0.05 * torch.randn(head.shape, generator=generator))
    return model


def off(found, truth, gram):
    """How far outputs are from the truth on the rows of a Gram matrix [d, d], relative to the truth's own."""

    def size(weight):
        return float(((weight @ gram) * weight).sum()) ** 0.5

    return size(found - truth) / size(truth)


def test_head_statistics_give_the_own_head_on_the_merged_trunk(own, merged):
    texts, other = tweets("btc-f")[:TEXTS], with_other_layers(own)
    found = collect_head(merged.model, other, texts, tokenizer=merged.tokenizer, device="cpu")
    fit = solve_head([ProductTerm(found.gram, found.product, 1.0)], ridge=1e-9)
    gram = unpack(found.gram, 385)[:384, :384]
    assert off(fit.weight, other.classifier.weight.detach().double(), gram) < 0.2


@pytest.mark.parametrize(("trunk", "least", "most"), [("merged", 0.0, 0.15), ("own", 0.3, 1.0)])
def test_refit_statistics_give_the_own_layer_where_what_is_below_it_is_alike(own, merged, trunk, least, most):
    """How much of its difference from the merged one is not found; with a trunk of one's own the sums hold its too."""
    texts, other = tweets("btc-f")[:TEXTS], with_other_layers(merged if trunk == "merged" else own)
    found = collect_refit(merged.model, other, texts, layers=[QUERIES], tokenizer=merged.tokenizer, device="cpu")
    (stream,) = found.statistics.streams.values()
    fit = solve_head([ProductTerm(stream.gram.double(), found.products[QUERIES].double(), 1.0)], ridge=1e-9)
    theirs, mine = (dict(model.named_parameters())[QUERIES].detach().double() for model in (merged.model, other))
    gram = unpack(stream.gram.double(), 385)[:384, :384]
    assert least <= off(fit.weight, mine - theirs, gram) < most


# --- calibration and evaluate: labels --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def logits(encoder, mixed_rows):
    """Of forty texts, the first twenty of which are counted."""
    block, rows = LastBlock(encoder), mixed_rows[5]
    with torch.no_grad():
        return [block.logits(own) for own in (*rows.mine[:20], *rows.others[:20])]


@pytest.fixture(scope="session")
def counted(logits):
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(LABELS, (len(own),), generator=generator) for own in logits[:20]]
    true = [torch.nn.functional.one_hot(own, LABELS).bool() for own in labels]
    hashes = [bytes([number]) for number in range(20)]
    scored = list(zip(logits, true, strict=False))
    found = count_scores(scored, hashes, kind="margin", labels=LABELS, minimum_examples=1)
    return found, torch.bincount(torch.cat(labels), minlength=LABELS)


def test_histograms_say_exactly_how_many_bear_each_label(counted):
    histograms, truth = counted
    assert [sum(one.labelled) for one in histograms.classes] == truth.tolist()


def test_of_few_texts_histograms_tell_who_is_not_among_them_by_empty_bins(counted, logits):
    histograms, _ = counted
    occupied = torch.tensor([one.labelled for one in histograms.classes]) > 0
    occupied |= torch.tensor([one.others for one in histograms.classes]) > 0
    edges = torch.tensor([bin_edge(number) for number in range(1, BINS)], dtype=torch.float64)
    missing = []
    for own in logits:
        bins = torch.bucketize(scores_of(own.double(), "margin"), edges)
        missing.append(float((~occupied[torch.arange(LABELS).expand_as(bins), bins]).sum()))
    assert max(missing[:20]) == 0
    assert auc(torch.tensor(missing[20:]), torch.tensor(missing[:20])) > 0.6


def leaving(logits, true):
    """The metrics as an answer has them."""
    return in_few_digits(score_classes(logits, true))


@pytest.mark.parametrize(("requests", "least"), [(1, 0.65), (4, 1.0)])
def test_losses_of_models_that_differ_little_give_the_labels_of_a_hundred_known_texts(requests, least):
    """Two labels, the least number of texts that the default policy lets be counted, and 32 models a request. Each loss
    is a linear equation in the labels; who knows the texts knows the models' predictions.
    """
    generator = torch.Generator().manual_seed(0)
    true, near = torch.randint(2, (100,), generator=generator), torch.randn(100, 2, generator=generator)
    models = requests * limits.MAX_REQUEST_MODELS
    predicted = [near + 0.3 * torch.randn(100, 2, generator=generator) for _ in range(models)]
    costs = torch.stack([-own.double().log_softmax(1) for own in predicted])  # [models, texts, labels]
    losses = torch.tensor([leaving(own, true)["loss"] for own in predicted], dtype=torch.float64)
    # y = ½ + q for the second label: Σᵢ costs₀ + yᵢ(costs₁ − costs₀) = 100·loss
    gaps = costs[:, :, 1] - costs[:, :, 0]
    known = 100 * losses - costs.mean(2).sum(1)
    guess = torch.linalg.lstsq(gaps, known[:, None], driver="gelsd").solution[:, 0] > 0
    assert float((guess == true.bool()).double().mean()) >= least


def test_one_exact_loss_would_give_sixteen_labels_and_its_four_decimals_leave_a_hundred_guesses():
    """Who knows the other 84 of a hundred labels tries all 2¹⁶. The answer's other metrics are not looked at here."""
    generator = torch.Generator().manual_seed(0)
    true, logits = torch.randint(2, (100,), generator=generator), torch.randn(100, 2, generator=generator)
    costs = -logits.double().log_softmax(1)  # [texts, labels]
    known = costs[16:].gather(1, true[16:, None]).sum()
    bits = (torch.arange(2**16)[:, None] >> torch.arange(16)) & 1  # [guesses, texts]
    guesses = (known + costs[:16, 0].sum() + bits.double() @ (costs[:16, 1] - costs[:16, 0])) / 100
    exact = score_classes(logits, true)["loss"]
    near = (guesses - exact).abs() < 1e-12
    assert bits[near].tolist() == [true[:16].tolist()]
    alike = (guesses - leaving(logits, true)["loss"]).abs() <= 0.5 * 10.0**-DECIMALS
    assert 60 < int(alike.sum()) < 250
