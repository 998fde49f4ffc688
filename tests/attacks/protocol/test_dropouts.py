"""Members that stop answering: up to N − t of them the sum of the rest is exact, beyond there is none and no other."""

from itertools import combinations, product

import numpy as np
import pytest

from gramfuse_shared.contract.secure import STAGES
from gramfuse_shared.errors import SecureSessionRefusedError
from support.secure_cohorts import Cohort
from support.secure_sessions import ORGANIZATIONS, session_of


def run(folder, members: int, leaves_at: dict[str, str]) -> Cohort:
    """Run a session in which each of these members answers no more from the given stage on."""
    cohort = Cohort.of(session_of(members), folder)
    last = {name: STAGES.index(stage) for name, stage in leaves_at.items()}
    answering = {
        stage: [name for name in cohort.session.organizations if index < last.get(name, len(STAGES))]
        for index, stage in enumerate(STAGES)
    }
    cohort.run(**answering)
    return cohort


def survivors(cohort: Cohort, leaves_at: dict[str, str]) -> list[str]:
    """Those who sent their words, whatever they did later."""
    gone = {name for name, stage in leaves_at.items() if STAGES.index(stage) <= STAGES.index("masked")}
    return [name for name in cohort.session.organizations if name not in gone]


def patterns() -> list[tuple[int, dict[str, str]]]:
    """Of five, each member at each stage; of seven, too, and each pair of stages, with each pair of members once."""
    found: list[tuple[int, dict[str, str]]] = [(3, {}), (5, {}), (7, {})]
    for members in (5, 7):
        found += [(members, {name: stage}) for name, stage in product(ORGANIZATIONS[:members], STAGES)]
    pairs = list(combinations(ORGANIZATIONS, 2))
    for index, stages in enumerate(product(STAGES, STAGES)):
        found.append((7, dict(zip(pairs[index % len(pairs)], stages, strict=True))))
    return found


@pytest.mark.parametrize("stage", range(5))
def test_whoever_drops_out_wherever_the_sum_of_those_who_sent_words_is_exact(tmp_path, stage):
    for index, (members, leaves_at) in enumerate(patterns()[stage::5]):
        cohort = run(tmp_path / str(index), members, leaves_at)
        assert np.array_equal(cohort.sum(), cohort.expected(survivors(cohort, leaves_at))), leaves_at


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("members", [3, 5, 7])
def test_one_dropout_more_than_the_threshold_allows_and_nothing_is_summed(tmp_path, members, stage):
    session = session_of(members)
    leaves_at = dict.fromkeys(ORGANIZATIONS[: session.may_drop_out + 1], stage)
    with pytest.raises(SecureSessionRefusedError, match=f"a sum needs {session.threshold}"):
        run(tmp_path, members, leaves_at).sum()


def test_of_three_none_may_drop_out_and_the_refusal_says_so(tmp_path):
    with pytest.raises(SecureSessionRefusedError, match="none may drop out"):
        run(tmp_path, 3, {"acme": "masked"})


def test_words_that_come_too_late_are_in_no_sum_and_stay_under_their_masks(tmp_path):
    """The member had sent its words when the others signed a set without it; then they reveal its masking key."""
    cohort = Cohort.of(session_of(5), tmp_path)
    late = ORGANIZATIONS[0]
    cohort.run(survivors=(), unmask=())
    in_time = [signed for name, signed in cohort.masked.items() if name != late]
    signed = [cohort.members[name].survivors(in_time) for name in ORGANIZATIONS[1:5]]
    for name in ORGANIZATIONS[1:5]:
        body = cohort.members[name].unmask(signed).message.body
        assert late in {share.owner for share in body.masking_keys}
        assert late not in {share.owner for share in body.seeds}
    with pytest.raises(SecureSessionRefusedError, match="left out"):
        cohort.members[late].survivors(in_time)
