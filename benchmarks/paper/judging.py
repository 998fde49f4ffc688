"""Turn models into rows: in-domain is the mean over the members' test sets, out-of-domain over the others'."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from benchmarks.paper.catalogue import task_named
from benchmarks.paper.examples import Example
from benchmarks.paper.experiments import MULTI_TASK
from benchmarks.paper.merges import Merge
from benchmarks.paper.predictions import Predictions
from benchmarks.paper.rows import Row, Rows, best_row, mean_row, mean_scores
from benchmarks.paper.trained import Trained
from benchmarks.paper.workshop import Workshop

IN, OUT = "in_domain", "out_of_domain"
DOMAIN_SPECIFIC: Final = "Domain-specific"
Part = Literal["dev", "test"]


class Judge:
    """Judges models of one task, every model on every domain."""

    def __init__(self, predictions: Predictions, trained: Trained) -> None:
        self._predictions, self._trained = predictions, trained
        self._task = task_named(next(iter(trained.members.values())).task)

    def unmerged(self) -> Rows:
        """The rows that need no merge."""
        models = list(self._trained.models.values())
        rows = {
            "Avg.": mean_row([self._row([model]) for model in models]),
            "Best": best_row([self._row([model]) for model in models]),
            "Ensemble": self._row(models),
        }
        tests = [texts.test for texts in self._trained.members.values()]
        if any(test != tests[0] for test in tests):
            own = [self._scores([model], [test]) for model, test in zip(models, tests, strict=True)]
            rows[DOMAIN_SPECIFIC] = {IN: mean_scores(own)}
        return rows

    def multi_task(self) -> Rows:
        """One model of everybody's texts."""
        return {MULTI_TASK: self._row([self._trained.together])} if self._trained.together else {}

    def merged(self, merge: Merge, workshop: Workshop, among: Sequence[str] = ()) -> Row:
        """A merge's row; of several recipes the one with the best mean F1 on the members' dev sets."""
        recipes = merge.recipes_of(workshop.names)
        models = [workshop.merged(recipe, merge.measure, merge.rounds) for recipe in recipes]
        best = models[0]
        if len(models) > 1:
            on_dev = [self._in_domain(model, "dev", workshop)["f1"] for model in models]
            best = models[on_dev.index(max(on_dev))]
            chosen = recipes[models.index(best)].parameters.lambda_
            print(f"{merge.row}: lambda {chosen} of dev F1 {[round(score, 1) for score in on_dev]}", flush=True)
        row = {IN: self._in_domain(best, "test", workshop, among)}
        if self._trained.unseen:
            row[OUT] = self._scores([best], list(self._trained.unseen.values()))
        return row

    def grown(self, merge: Merge, workshop: Workshop) -> Rows:
        """The best model of each round of a greedy search, and before them the best single one by dev sets."""
        devs = self._examples("dev", ())
        singles = list(self._trained.models.values())
        single = max(singles, key=lambda model: self._scores([model], devs)["f1"])
        (recipe,) = merge.recipes
        models = [single, *workshop.grown(recipe, merge.measure)]
        return {f"cohort of {size}": self._row([model]) for size, model in enumerate(models, start=1)}

    def paired(self, merges: Sequence[Merge], workshop: Workshop) -> Rows:
        """Means over all pairs; in-domain are the pair's two domains alone."""
        found: dict[str, list[Row]] = {}
        for pair in itertools.combinations(range(len(workshop.names)), 2):
            among = [workshop.names[position] for position in pair]
            singles = [self._row([self._trained.models[name]], among) for name in among]
            found.setdefault("Avg.", []).append(mean_row(singles))
            found.setdefault("Best", []).append(best_row(singles))
            for merge in merges:
                row = self.merged(replace(merge, members=pair), workshop, among)
                found.setdefault(merge.row, []).append(row)
        return {row: mean_row(rows) for row, rows in found.items()}

    def _in_domain(self, model: Path, part: Part, _workshop: Workshop, among: Sequence[str] = ()) -> dict[str, float]:
        return self._scores([model], self._examples(part, among))

    def _row(self, models: Sequence[Path], among: Sequence[str] = ()) -> Row:
        row = {IN: self._scores(models, self._examples("test", among))}
        if self._trained.unseen:
            row[OUT] = self._scores(models, list(self._trained.unseen.values()))
        return row

    def _examples(self, part: Part, among: Sequence[str]) -> list[list[Example]]:
        members = self._trained.members
        return [getattr(members[name], part) for name in among or members]

    def _scores(self, models: Sequence[Path], tests: Sequence[Sequence[Example]]) -> dict[str, float]:
        return mean_scores([self._predictions.scores(self._task, models, test) for test in tests])


class PrivateHeadsJudge(Judge):
    """Judges trunks: each member's own head on it, on the member's own domain, which may be of its own task."""

    def unmerged(self) -> Rows:
        """Each member's own model."""
        models = self._trained.models
        return {DOMAIN_SPECIFIC: {IN: mean_scores([self._own(name, models[name], "test") for name in models])}}

    def _in_domain(self, model: Path, part: Part, workshop: Workshop, among: Sequence[str] = ()) -> dict[str, float]:
        names = among or self._trained.members
        return mean_scores([self._own(name, workshop.personal(model, name), part) for name in names])

    def _own(self, name: str, model: Path, part: Part) -> dict[str, float]:
        texts = self._trained.members[name]
        return dict(self._predictions.scores(task_named(texts.task), [model], getattr(texts, part)))
