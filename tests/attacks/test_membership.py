"""Fact 2: few rows are recovered, and deeper Gram matrices tell which texts they were measured on."""

import pytest
import torch

from gramfuse.privacy.membership import LeverageMeter, membership_auc
from gramfuse_shared.contract.policy import Policy

WIDTH = 384
DEPTHS = pytest.mark.parametrize("depth", [1, 5])


def gram_of(texts):
    rows = torch.cat(tuple(texts))
    return rows.T @ rows


def rows_per_dimension(texts):
    return sum(len(rows) for rows in texts) / WIDTH


def attacked(rows, texts):
    """The AUC against other tweets of the same kind, and the one that the measured texts tell by themselves."""
    mine = rows.mine[:texts]
    meter = LeverageMeter(gram_of(mine), gram_of(rows.public))
    measured = [meter.measure(own) for own in mine[:300]]
    return membership_auc(measured, [meter.measure(own) for own in rows.others]), membership_auc(measured)


def test_a_single_row_is_recovered_up_to_its_sign(mixed_rows):
    row = mixed_rows[5].mine[0][3].double()
    values, vectors = torch.linalg.eigh(torch.outer(row, row))
    recovered = values[-1].sqrt() * vectors[:, -1]
    torch.testing.assert_close(torch.sign(recovered @ row) * recovered, row, rtol=1e-4, atol=1e-5)


def test_of_fewer_rows_than_dimensions_every_one_is_recognized_exactly(mixed_rows):
    mine, others = mixed_rows[5].mine[:10], mixed_rows[5].others[:10]
    measured = sum(len(rows) for rows in mine)
    assert measured < WIDTH
    _, vectors = torch.linalg.eigh(gram_of(mine).double())
    without_rows = vectors[:, : WIDTH - measured]
    held, foreign = torch.cat(mine).double(), torch.cat(others).double()
    assert float(((held @ without_rows).norm(dim=1) / held.norm(dim=1)).max()) < 1e-3
    assert float(((foreign @ without_rows).norm(dim=1) / foreign.norm(dim=1)).median()) > 0.1


@DEPTHS
def test_ten_sentences_are_all_told_from_others(mixed_rows, depth):
    assert attacked(mixed_rows[depth], 10)[0] == 1.0


@DEPTHS
def test_of_a_hundred_sentences_nearly_all_are(mixed_rows, depth):
    assert attacked(mixed_rows[depth], 100)[0] > 0.96


@DEPTHS
def test_of_a_thousand_the_attack_still_does_better_than_chance(mixed_rows, depth):
    assert 0.57 < attacked(mixed_rows[depth], 1_000)[0] < 0.8


@DEPTHS
@pytest.mark.parametrize("texts", [100, 1_000])
def test_the_measured_texts_alone_tell_how_well_the_attack_does(mixed_rows, depth, texts):
    against_others, by_themselves = attacked(mixed_rows[depth], texts)
    assert by_themselves == pytest.approx(against_others, abs=0.06)


def test_the_minimum_of_rows_refuses_ten_and_a_hundred_sentences(mixed_rows):
    for texts, sent in ((10, False), (100, False), (1_000, True)):
        rows = sum(len(own) for own in mixed_rows[5].mine[:texts])
        assert (rows >= Policy().minimum_rows(WIDTH)) is sent


@DEPTHS
def test_just_above_the_minimum_of_rows_membership_is_still_told(mixed_rows, depth):
    assert 20 <= rows_per_dimension(mixed_rows[depth].mine[:260]) < 22
    assert 0.65 < attacked(mixed_rows[depth], 260)[0] < 0.96


@DEPTHS
def test_a_cohorts_sum_tells_less_and_the_estimate_of_it_holds(mixed_rows, depth):
    """A fifth of the texts, the others taken to be like it, against the sum that really holds them all."""
    rows = mixed_rows[depth]
    part, public = rows.mine[:200], gram_of(rows.public)
    alone = LeverageMeter(gram_of(part), public)
    whole = LeverageMeter(gram_of(rows.mine), public)
    measured = [alone.measure(own) for own in part]
    real = membership_auc([whole.measure(own) for own in part], [whole.measure(own) for own in rows.others])
    assert membership_auc(measured, times=5) == pytest.approx(real, abs=0.1)
    assert membership_auc(measured, times=5) < membership_auc(measured) - 0.1


@DEPTHS
@pytest.mark.parametrize(("members", "least"), [(3, 0.6), (5, 0.54)])
def test_a_sum_of_members_of_two_hundred_texts_each_still_tells_single_texts(mixed_rows, depth, members, least):
    """What secure sums reveal by their result alone; of one member the same texts are told with AUC .9 and more."""
    rows = mixed_rows[depth]
    meter = LeverageMeter(gram_of(rows.mine[: 200 * members]), gram_of(rows.public))
    measured = [meter.measure(own) for own in rows.mine[:200]]
    told = membership_auc(measured, [meter.measure(own) for own in rows.others])
    assert least < told < attacked(rows, 200)[0] - 0.1


def test_members_that_collude_take_their_own_off_the_sum_and_attack_the_last_alone(mixed_rows):
    rows = mixed_rows[5]
    own = gram_of(rows.mine[:200])
    left = gram_of(rows.mine[:600]) - gram_of(rows.mine[200:400]) - gram_of(rows.mine[400:600])
    assert float((left - own).norm() / own.norm()) < 1e-4
    meter = LeverageMeter(left, gram_of(rows.public))
    told = membership_auc([meter.measure(own) for own in rows.mine[:200]], [meter.measure(own) for own in rows.others])
    assert told == pytest.approx(attacked(rows, 200)[0], abs=0.02)
