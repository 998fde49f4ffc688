"""What rows weighted by gradients, and squared gradients, tell of the texts that they were measured on.

Gradients of the last block and the head are taken on rows that were read once (`support.last_block`).
"""

import pytest
import torch

from gramfuse.measuring.example_losses import GivenLabels, SampledLabels
from gramfuse.measuring.fisher_collection import collect_fisher
from gramfuse.privacy.membership import LeverageMeter, auc
from support.last_block import HEAD, LastBlock
from support.tweets import QUERY, tweets

QUERIES = QUERY.format(5)
LABELS, OTHERS = 7, 100
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def block(encoder):
    return LastBlock(encoder)


@pytest.fixture(scope="session")
def texts(mixed_rows):
    return mixed_rows[5]


def drawn_labels(texts, seed):
    generator = torch.Generator().manual_seed(seed)
    return GivenLabels([torch.randint(LABELS, (len(rows),), generator=generator) for rows in texts])


# --- Gram matrices of rows weighted by gradients ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def weights(block, texts):
    """‖∂ℓ/∂y‖² of each row of 260 texts."""
    loss = SampledLabels(0, CPU)
    return [block.gradients(rows, loss, number).rows for number, rows in enumerate(texts.mine[:260])]


@pytest.mark.parametrize(("measured", "least"), [(10, 0.99), (100, 0.8), (260, 0.6)])
def test_members_are_told_from_weighted_rows_nearly_as_well_as_from_others(texts, weights, measured, least):
    """The attacker holds the texts' rows and does not know what they weighed."""
    mine = texts.mine[:measured]
    weighted = torch.cat([rows * own.sqrt()[:, None] for rows, own in zip(mine, weights, strict=False)])
    meter = LeverageMeter(weighted.T @ weighted)
    inside = [meter.measure(rows).outside() for rows in mine[:150]]
    outside = [meter.measure(rows).outside() for rows in texts.others[:OTHERS]]
    assert auc(torch.tensor(outside), torch.tensor(inside)) > least


def test_weighted_rows_count_as_about_half_as_many(weights):
    everything = torch.cat(weights)
    effective = float(everything.sum() ** 2 / everything.square().sum())
    assert 0.4 < effective / len(everything) < 0.7


# --- The diagonal of the Fisher information --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def squares(block, texts):
    """What each of 260 texts with given labels adds."""
    return block.squares(texts.mine[:260], drawn_labels(texts.mine, 0))


@pytest.fixture(scope="session")
def others(block, texts):
    return block.squares(texts.others[:OTHERS], drawn_labels(texts.others, 1))


def test_sampled_labels_can_be_drawn_again_by_who_knows_the_seed(encoder, block, texts):
    """So the attacks with known labels are attacks on sampled labels as well, if the text's place is guessed."""
    measured = collect_fisher(encoder.model, tweets("btc-f")[:6], tokenizer=encoder.tokenizer, device="cpu", seed=5)
    again = block.squares(texts.mine[:6], SampledLabels(5, CPU))
    for name in (QUERIES, *HEAD):
        torch.testing.assert_close(measured.values[name], sum(own[name] for own in again), rtol=1e-3, atol=1e-8)


def test_of_one_text_the_label_counts_are_read_off_the_heads_bias(block, texts):
    """∂ℓ/∂b = Σp − counts: of the two whole numbers that fit its square, only one is whole where p is not."""
    rows, labels = texts.mine[0], drawn_labels(texts.mine, 0).targets[0]
    root = block.squares([rows], GivenLabels([labels]))[0][HEAD[1]].sqrt()
    expected = block.logits(rows).softmax(1).sum(0).detach()
    both = torch.stack([expected - root, expected + root])
    whole = (both - both.round()).abs() + (both < -0.01) * 1.0
    found = both.gather(0, whole.argmin(0)[None])[0].round().long()
    assert found.tolist() == torch.bincount(labels, minlength=LABELS).tolist()


@pytest.fixture(scope="session")
def public(block, texts):
    """The sum over public texts, with labels of their own."""
    return sum(own[QUERIES] for own in block.squares(texts.public[:100], drawn_labels(texts.public, 2)))


def statistic(squares, total, public):
    """The fourth-power mean of how much of each element is this text's; half of what public text says is taken off."""
    held, usual = ((squares / whole).pow(4).mean().log() / 4 for whole in (total, public))
    return float(held - usual / 2)


@pytest.mark.parametrize(("measured", "least"), [(10, 0.98), (100, 0.85), (260, 0.62)])
def test_members_are_told_by_who_knows_texts_and_labels(squares, others, public, measured, least):
    total = sum(own[QUERIES] for own in squares[:measured])
    inside = torch.tensor([statistic(own[QUERIES], total, public) for own in squares[: min(measured, 150)]])
    outside = torch.tensor([statistic(own[QUERIES], total, public) for own in others])
    assert auc(outside, inside) > least


@pytest.fixture(scope="session")
def guessed(block, texts):
    """Squares with labels of the attacker's own drawing, the mean of two, of sixty members and sixty others."""
    drawn = [SampledLabels(seed, CPU) for seed in (1, 2)]
    found = []
    for part in (texts.mine[:60], texts.others[:60]):
        one, two = ([own[QUERIES] for own in block.squares(part, loss)] for loss in drawn)
        found.append([(first + second) / 2 for first, second in zip(one, two, strict=True)])
    return found


@pytest.mark.parametrize(("measured", "least", "most"), [(10, 0.7, 0.95), (100, 0.55, 0.75)])
def test_without_the_labels_and_their_seed_members_are_told_less_well(
    block, texts, guessed, public, measured, least, most
):
    total = sum(own[QUERIES] for own in block.squares(texts.mine[:measured], SampledLabels(2**100, CPU)))

    def share(squares):
        held, usual = ((squares / whole).square().mean().log() / 2 for whole in (total, public))
        return float(held - usual)

    inside, outside = (torch.tensor([share(own) for own in part]) for part in guessed)
    assert least < auc(outside, inside[:measured]) < most


def test_of_ten_texts_no_members_square_exceeds_the_sum_and_every_others_does(squares, others):
    total = sum(own[QUERIES] for own in squares[:10]) * (1 + 1e-5)
    assert not any((own[QUERIES] > total).any() for own in squares[:10])
    assert all((own[QUERIES] > total).any() for own in others)
