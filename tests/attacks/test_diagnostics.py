"""What a merge's diagnostics tell: of distances who trained how long, and on which texts; and condition and gain."""

from itertools import combinations

import pytest
import torch

from gramfuse.privacy.membership import auc
from gramfuse_shared.contract.diagnostics import rounded, without_members
from gramfuse_shared.fusion import packing
from gramfuse_shared.fusion.objective import FOLLOWED_ROWS, Objective
from gramfuse_shared.fusion.precision import GramPrecision
from gramfuse_shared.fusion.solve import Accumulator
from gramfuse_shared.merging.planning import plan_merge
from gramfuse_shared.merging.sampling import sample_of
from support.block_training import BlockTraining
from support.merging_cases import CPU, Model, infos, member_of, merge_models, recipe_of
from support.tweets import tokenized, tweets

QUERIES = "block.attention.self.query.weight"
LABELS, LENGTH, TEXTS = 7, 16, 64


def examples_of(encoder, rows, texts):
    """Beginnings of texts, with labels by a rule: what is learned does not matter here, that it is does."""
    ids = [torch.tensor(text.ids) for text in tokenized(encoder, texts)]
    return [(own[:LENGTH], found[:LENGTH] % LABELS) for own, found in zip(rows, ids, strict=True)]


@pytest.fixture(scope="session")
def mine(encoder, mixed_rows):
    return examples_of(encoder, mixed_rows[5].mine, tweets("btc-f")[: len(mixed_rows[5].mine)])


@pytest.fixture(scope="session")
def foreign(encoder, mixed_rows):
    """Of another section: other authors, another time."""
    return examples_of(encoder, mixed_rows[5].public, tweets("btc-g")[: len(mixed_rows[5].public)])


@pytest.fixture(scope="session")
def base(encoder):
    return BlockTraining(encoder, 0).matrices()


# --- Who trained how long, and on what -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def trained(encoder, mine, foreign):
    """By kind six organizations' models: `short` has seen its texts once, `again` twice, `more` as many others besides.

    The last two organizations are of another section.
    """
    found = {"short": [], "again": [], "more": []}
    own = [
        *(mine[number * 2 * TEXTS :] for number in range(4)),
        *(foreign[number * 2 * TEXTS :] for number in range(2)),
    ]
    for seed, examples in enumerate(own):
        training = BlockTraining(encoder, seed).on(examples[:TEXTS], batch=16)
        found["short"].append(training.matrices())
        found["again"].append(training.copied().on(examples[:TEXTS], batch=16).matrices())
        found["more"].append(training.on(examples[TEXTS : 2 * TEXTS], batch=16).matrices())
    return found


def entries(folder, models, base):
    """What the engine tells of the mean of models: by name, where the first's distance stands first, and published."""
    named = [Model(str(number), own) for number, own in enumerate(models)]
    found = merge_models(folder, named, base, recipe_of("linear")).diagnostics
    return [list(entry["distances"].values()) for entry in found], [without_members(entry)["spread"] for entry in found]


def first_is_farthest(distances):
    """In how many of the layers."""
    return sum(own > max(others) for own, *others in distances)


def largest_to_median(spreads):
    return [spread["largest"] / spread["median"] for spread in spreads]


@pytest.mark.parametrize("kind", ["again", "more"])
@pytest.mark.parametrize("number", range(6))
def test_who_trained_twice_as_long_is_the_farthest_in_every_layer(trained, base, tmp_path, kind, number):
    short = trained["short"]
    distances, spreads = entries(tmp_path, [trained[kind][number], short[number - 1], short[number - 2]], base)
    assert first_is_farthest(distances) == len(distances) == 7
    assert min(largest_to_median(spreads)) > 1.1


def test_published_spreads_tell_without_names_that_nobody_did(trained, base, tmp_path):
    for members in combinations(trained["short"][:4], 3):
        _, spreads = entries(tmp_path, members, base)
        assert max(largest_to_median(spreads)) < 1.1


def test_who_trained_on_texts_of_another_kind_is_mostly_the_farthest(trained, base, tmp_path):
    alike, others = trained["short"][:4], trained["short"][4:]
    cohorts = [(one, *pair) for one in others for pair in combinations(alike, 2)]
    cohorts += [(one, *others) for one in alike]
    most = [first_is_farthest(entries(tmp_path, members, base)[0]) > 3 for members in cohorts]
    assert len(most) == 16
    assert sum(most) >= 12


# --- Which texts, by distances ---------------------------------------------------------------------------------------

POOL, SHADOWS, ATTACKED = 32, 40, 40


def own_distances(models, base):
    """The first model's distances from the mean, of the elements that the engine samples; [layers]."""
    members = [member_of(Model(str(number), own)) for number, own in enumerate(models)]
    found = []
    for task in plan_merge(members, infos(base), recipe_of("linear")).tasks:
        for step in task.steps:
            name, sample = step.outputs[0].name, sample_of(step, CPU)
            sample.take_origin(base[name])
            for number, own in enumerate(models):
                sample.take_difference(str(number), own[name] - base[name])
            sample.take_merged(sum(own[name] for own in models) / len(models))
            found.append(sample.distances()["0"])
    return torch.tensor(found, dtype=torch.float64)


def told_apart(known, held, asked):
    """Of figures [runs, layers] of whom it is known whether they held a text, Fisher's direction; that of others."""
    mean, deviation = known.mean(0), known.std(0)
    known, asked = (known - mean) / deviation, (asked - mean) / deviation
    inside, outside = known[held], known[~held]
    spread = sum((part - part.mean(0)).T @ (part - part.mean(0)) for part in (inside, outside)) / len(known)
    spread += 0.1 * torch.eye(len(spread), dtype=spread.dtype)
    return asked @ torch.linalg.solve(spread, inside.mean(0) - outside.mean(0))


@pytest.mark.parametrize(("texts", "least", "most"), [(4, 0.62, 0.8), (16, 0.54, 0.68)])
def test_distances_tell_of_few_texts_which_were_trained_on(encoder, mine, trained, base, texts, least, most):
    """The attacker trains models on texts of the pool as the organization does, and knows the cohort's other models."""
    generator = torch.Generator().manual_seed(0)
    figures, held = [], torch.zeros(SHADOWS + ATTACKED, POOL, dtype=torch.bool)
    for number in range(SHADOWS + ATTACKED):
        chosen = torch.randperm(POOL, generator=generator)[:texts]
        held[number, chosen] = True
        training = BlockTraining(encoder, 100 + number).on([mine[600 + place] for place in chosen.tolist()], batch=8)
        figures.append(own_distances([training.matrices(), *trained["short"][1:3]], base))
    figures = torch.stack(figures).log()
    inside, outside = [], []
    for place in range(POOL):
        scores = told_apart(figures[:SHADOWS], held[:SHADOWS, place], figures[SHADOWS:])
        inside.append(scores[held[SHADOWS:, place]])
        outside.append(scores[~held[SHADOWS:, place]])
    assert least < auc(torch.cat(inside), torch.cat(outside)) < most


# --- Which texts, by condition and gain ------------------------------------------------------------------------------

EACH, WIDTH = 260, 384
"""Texts of each of three organizations: twenty rows per dimension, the least that the default policy lets be sent."""


def gram_of(texts):
    rows, flat = torch.cat(tuple(texts)), packing.packed_zeros(WIDTH)
    packing.accumulate_rows(flat, rows)
    return flat, len(rows)


@pytest.fixture(scope="session")
def published(mixed_rows, trained, base):
    """Condition and gain of the last block's queries, as published, if the first organization's first text is this."""
    rows = mixed_rows[5].mine
    rest, count = gram_of(rows[1:EACH])
    others = [gram_of(rows[start : start + EACH]) for start in (EACH, 2 * EACH)]
    differences = [own[QUERIES] - base[QUERIES] for own in trained["short"]]
    followed = torch.arange(0, WIDTH, WIDTH // FOLLOWED_ROWS)

    def publish(text):
        gram, length = gram_of([text])
        accumulator = Accumulator((WIDTH, WIDTH), dtype=torch.float32, objective=Objective(followed))
        for (total, read), difference in zip([(rest + gram, count + length), *others], differences, strict=False):
            accumulator.add(difference, GramPrecision(total, WIDTH, scale=1 / read, alpha=0.9), 1.0)
        diagnosis = accumulator.solve().diagnosis
        return rounded(diagnosis.condition), rounded(diagnosis.gained)

    return publish


def test_who_knows_everything_but_one_text_tells_it_from_half_of_others_by_a_layers_gain(mixed_rows, published):
    condition, gain = published(mixed_rows[5].mine[0])
    guesses = [published(text) for text in mixed_rows[5].others[:60]]
    assert sum(guess[0] == condition for guess in guesses) > 50
    assert 15 < sum(guess[1] == gain for guess in guesses) < 45
