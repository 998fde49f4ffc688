"""Scores of an evaluation as tables: own models beside merged ones, a mean once everybody has answered."""

from datetime import UTC, datetime

from gramfuse_shared.contract.requests import Asked, ModelScore, RequestInfo
from gramfuse_shared.reporting.evaluations import score, score_tables

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def evaluation(*places):
    return RequestInfo(
        id="eval-1",
        project="acme.tweets",
        kind="evaluate",
        models=("regmean-1",),
        state="open",
        policy={"version": 1, "digest": "a" * 64},
        created_at=NOW,
        deadline=NOW,
        asked=places,
    )


def answered(organization, own, merged):
    scores = tuple(
        ModelScore(model=model, examples=9, metrics=found) for model, found in ((None, own), ("regmean-1", merged))
    )
    return Asked(organization=organization, state="accepted", scores=scores)


def test_each_metric_is_a_table_of_own_and_merged_models_with_their_means():
    acme = answered("acme", {"f1": 0.5, "loss": 1.5}, {"f1": 0.75})
    globex = answered("globex", {"f1": 0.25, "loss": 0.5}, {"f1": 0.5, "loss": 2.0})
    f1, loss = score_tables(evaluation(acme, globex))
    assert (f1.title, f1.columns) == ("f1", ("own model", "regmean-1"))
    assert f1.rows == (("acme", (0.5, 0.75)), ("globex", (0.25, 0.5)))
    assert f1.means == (0.375, 0.625)
    assert loss.rows == (("acme", (1.5, None)), ("globex", (0.5, 2.0)))
    assert loss.means == (1.0, None)


def test_there_is_no_mean_before_everybody_has_answered_and_no_table_before_anybody_has():
    silent = Asked(organization="globex", state="awaited")
    (table,) = score_tables(evaluation(answered("acme", {"f1": 0.5}, {"f1": 0.7}), silent))
    assert table.rows[1] == ("globex", (None, None))
    assert table.means == (None, None)
    assert score_tables(evaluation(silent)) == []


def test_metrics_are_written_with_the_digits_that_leave():
    assert [score("f1", 0.69), score("loss", 0.655), score("perplexity", 1234.4), score("f1", None)] == [
        "0.6900",
        "0.6550",
        "1234",
        "–",
    ]
