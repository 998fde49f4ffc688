"""What the paper's tables say: means over seeds, differences paired by seed, rows in the paper's order."""

import math
import statistics
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

import support.paper_modules  # noqa: F401 - makes the package of the next lines known

from benchmarks.paper import page, plots, running  # isort: skip
from benchmarks.paper.experiments import FULL, OFFLINE, SMOKE, KEY_CLASSES, KEY_SHARE, PARTITION  # isort: skip
from benchmarks.paper.merges import REGMEAN, SIMPLE  # isort: skip
from benchmarks.paper.results import difference, is_claimed, moments, summarize  # isort: skip
from benchmarks.paper.rows import best_row, mean_row  # isort: skip
from benchmarks.paper.trained import TOGETHER, prepare  # isort: skip

SCORES = st.lists(st.floats(0, 100), min_size=2, max_size=6)


def table(simple: float, regmean: float) -> dict:
    def row(score: float) -> dict:
        return {column: {"f1": score, "average_precision": score / 2} for column in ("in_domain", "out_of_domain")}

    return {"RegMean": row(regmean), "Simple": row(simple), "Avg.": {"in_domain": row(simple)["in_domain"]}}


@given(SCORES)
def test_the_standard_error_is_the_deviation_over_the_root_of_the_seeds(values):
    found = moments(values)
    assert found["mean"] == pytest.approx(statistics.mean(values), abs=0.006)
    assert found["se"] == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=0.006)


def test_one_seed_has_no_standard_error_and_claims_nothing():
    found = moments([71.234])
    assert found == {"mean": 71.23, "se": None, "by_seed": [71.23]}
    assert not is_claimed(found)


def test_a_difference_is_paired_by_seed():
    """What both rows owe to the seed falls out, so that a steady gap is claimed though the rows vary more."""
    rows = summarize({1: table(60, 62.0), 2: table(65, 67.1), 3: table(70, 71.9)})
    gap = difference(rows, "RegMean", "Simple", "in_domain")
    assert gap["mean"] == pytest.approx(2.0)
    assert rows["Simple"]["in_domain"]["se"] > 2
    assert is_claimed(gap)


def test_a_difference_within_two_standard_errors_is_not_claimed():
    rows = summarize({1: table(60, 64.0), 2: table(65, 64.0)})
    assert not is_claimed(difference(rows, "RegMean", "Simple", "in_domain"))


def test_seeds_are_summed_up_in_their_order():
    rows = summarize({2: table(2, 2), 1: table(1, 1)})
    assert rows["Simple"]["in_domain"]["by_seed"] == [1, 2]
    assert rows["Simple"]["in_domain"]["average_precision"]["by_seed"] == [0.5, 1]


def test_the_best_is_chosen_for_each_column_and_measure():
    one = {"in_domain": {"f1": 1.0, "average_precision": 9.0}, "out_of_domain": {"f1": 5.0, "average_precision": 5.0}}
    two = {"in_domain": {"f1": 2.0, "average_precision": 8.0}, "out_of_domain": {"f1": 4.0, "average_precision": 6.0}}
    assert best_row([one, two])["in_domain"] == {"f1": 2.0, "average_precision": 9.0}
    assert mean_row([one, two])["out_of_domain"] == {"f1": 4.5, "average_precision": 5.5}


def test_the_page_shows_rows_in_the_papers_order_with_what_is_claimed():
    text = page.markdown({"btc": summarize({1: table(60, 62.0), 2: table(65, 67.1), 3: table(70, 71.9)})})
    assert text.index("| Avg. |") < text.index("| Simple |") < text.index("| RegMean |")
    assert "| Avg. | 65.0 ± 2.9 | 32.5 ± 1.4 | – | – |" in text
    assert "- RegMean − Simple, in-domain F1: +2.00 ± 0.06\n" in text
    assert "no difference is claimed" in page.markdown({"btc": summarize({1: table(60, 62.0)})})


def test_the_page_keeps_what_stands_around_the_tables(tmp_path):
    path = tmp_path / "results.md"
    path.write_text(f"before {page.BEGIN} old {page.END} after", encoding="utf-8")
    page.write_page({"btc": summarize({1: table(60, 62.0)})}, path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert "old" not in text


def test_the_picture_is_drawn_of_whatever_is_there(tmp_path):
    rows = summarize({1: table(60, 62.0), 2: table(65, 67.0)})
    alpha = {"α = 0": rows["RegMean"], "α = 1": rows["Simple"]}
    for results in ({"btc": rows, "btc.alpha": alpha}, {"btc.alpha": alpha}):
        plots.draw(results, tmp_path / "picture.svg")
        assert ET.parse(tmp_path / "picture.svg").getroot().tag.endswith("svg")  # noqa: S314 - our own picture


def test_a_partition_has_its_share_of_its_key_class():
    (experiment,) = (one for one in FULL if one.partition == "key class")
    members = experiment.members(1)
    assert tuple(members) == KEY_CLASSES
    for key, texts in members.items():
        assert len(texts.train) == PARTITION
        assert sum(key in example["labels"] for example in texts.train) == round(KEY_SHARE * PARTITION)
    assert members["joy"].train != experiment.members(2)["joy"].train


def test_a_row_is_kept_until_its_sources_change_and_an_interrupted_run_goes_on_with_the_next(tmp_path, monkeypatch):
    made = []

    def make(experiment, parts, seed, _bench):
        for part in parts:
            if "FAIL" in part.decided_by:
                raise KeyboardInterrupt
            made.append((seed, part.decided_by.split("'")[1] if "'" in part.decided_by else part.decided_by))
            yield part, {made[-1][1]: table(60, 62)["Simple"]}

    monkeypatch.setattr(running, "_make", make)
    bench = running.Bench(tmp_path, at_once=1)
    simple, *_, last = SMOKE[0].merges
    two = replace(SMOKE[0], merges=(simple, last), multi_task=False)
    with pytest.raises(KeyboardInterrupt):
        running.run(replace(two, merges=(simple, replace(last, row="FAIL"))), 1, bench)
    assert made == [(1, "references"), (1, "Simple")]
    for _ in range(2):
        assert list(running.run(two, 1, bench)) == ["references", "Simple", last.row]
    assert made == [(1, "references"), (1, "Simple"), (1, last.row)]
    running.run(two, 2, bench)
    assert len(made) == 6
    running.run(replace(two, epochs=9), 1, bench)
    assert len(made) == 9
    monkeypatch.setattr(running, "PROGRAMS", ())
    running.run(two, 1, bench)
    assert len(made) == 12


def test_rows_are_left_out_by_name_and_without_its_row_nobody_trains_on_everybodys_texts(tmp_path):
    experiment = SMOKE[0].of_rows(["RegMean", "Simple"])
    assert [part.decided_by for part in running.parts_of(experiment)] == ["references", f"{SIMPLE}", f"{REGMEAN}"]
    (tmp_path / "bases" / f"entities-{OFFLINE}-1").mkdir(parents=True)
    trained = [set(prepare(one, one.members(1), 1, running.Bench(tmp_path, 1))) for one in (SMOKE[0], experiment)]
    assert trained[0] - trained[1] == {TOGETHER}
    assert SMOKE[0].of_rows(["Multi-task"]).multi_task
    assert SMOKE[0].of_rows(None) == SMOKE[0]


def test_a_row_that_a_seed_does_not_have_is_left_out():
    longer = table(1, 1) | {"cohort of 4": table(1, 1)["Simple"]}
    assert summarize({1: longer, 2: table(2, 2)}).keys() == table(1, 1).keys()
