"""The rows that are merges: one small entry each. What is tried where, and what of it is chosen on dev sets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import gramfuse
from gramfuse_shared.contract.manifest import Weighting
from gramfuse_shared.contract.policy import MergeMethod
from gramfuse_shared.contract.recipe import MethodParameters, ModelEntry


@dataclass(frozen=True, slots=True)
class Measure:
    """What is collected: Gram matrices or Fisher information, and of how many batches of 32 drawn texts (None: all).

    `weighting` says what a row of Gram matrices counts by.
    """

    kind: Literal["gram", "fisher"] = "gram"
    weighting: Weighting = "none"
    batches: int | None = None

    @property
    def slug(self) -> str:
        """A name for projects and files."""
        return f"{self.kind}-{self.weighting.replace('_', '-')}-{self.batches or 'all'}"


Round = Literal["regmean++", "refit", "head", "calibration"]
"""What everybody is asked about a merged model, and what the answers make of it."""


@dataclass(frozen=True, slots=True)
class Merge:
    """A row: recipes of which the one that is best on the members' dev sets is tested, and the statistics they read.

    `members` are the positions of those who take part; none: everybody. What a recipe makes goes through the rounds.
    """

    row: str
    recipes: tuple[gramfuse.Recipe, ...]
    measure: Measure = Measure()
    members: tuple[int, ...] = ()
    rounds: tuple[Round, ...] = ()

    def recipes_of(self, names: Sequence[str]) -> tuple[gramfuse.Recipe, ...]:
        """The recipes with the members named."""
        entries = tuple(ModelEntry(model=names[position]) for position in self.members or range(len(names)))
        return tuple(recipe.model_copy(update={"models": entries}) for recipe in self.recipes)


def recipe(method: MergeMethod, **parameters: float) -> gramfuse.Recipe:
    """A recipe by its method and parameters."""
    return gramfuse.Recipe(merge_method=method, parameters=MethodParameters.model_validate(parameters))


ALPHA: Final = 0.9
ALPHAS: Final = (0.0, 0.1, 0.5, 0.7, 0.9, 0.95, 1.0)
BATCHES: Final = (1, 10, 100, None)
GRADIENTS: Final = Measure(weighting="output_gradient")

SIMPLE: Final = Merge("Simple", (recipe("linear"),))
REGMEAN: Final = Merge("RegMean", (recipe("regmean", alpha=ALPHA),))
FISHER: Final = Merge("Fisher", (recipe("fisher"),), Measure("fisher"))
WEIGHTED: Final = Merge("RegMean gradient-weighted", (recipe("regmean", alpha=ALPHA),), GRADIENTS)
PLUS_PLUS: Final = Merge("RegMean++", (recipe("regmean", alpha=ALPHA),), rounds=("regmean++",))
WEIGHTED_PLUS_PLUS: Final = replace(PLUS_PLUS, row="RegMean++ gradient-weighted", measure=GRADIENTS)
HEAD: Final = replace(WEIGHTED_PLUS_PLUS, row="+ head", rounds=("regmean++", "head"))
CALIBRATION: Final = replace(HEAD, row="+ calibration", rounds=("regmean++", "head", "calibration"))
REFIT: Final = replace(REGMEAN, row="RegMean + refit", rounds=("refit",))
REFIT_HEAD: Final = replace(REGMEAN, row="RegMean + refit + head", rounds=("refit", "head"))
CALIBRATED: Final = replace(WEIGHTED, row="RegMean gradient-weighted + calibration", rounds=("calibration",))
TASK_ARITHMETIC: Final = Merge(
    "Task arithmetic", tuple(recipe("task_arithmetic", **{"lambda": value}) for value in (0.25, 0.4, 0.6, 0.8, 1.0))
)
TIES: Final = Merge(
    "TIES", tuple(recipe("ties", **{"lambda": value, "density": 0.2}) for value in (0.5, 1.0, 1.5, 2.0))
)

MAIN: Final = (*(SIMPLE, FISHER, REGMEAN, WEIGHTED, CALIBRATED, PLUS_PLUS, WEIGHTED_PLUS_PLUS, HEAD, CALIBRATION),)
REFITS: Final = (SIMPLE, REGMEAN, REFIT, REFIT_HEAD)
DELTAS: Final = (SIMPLE, TASK_ARITHMETIC, TIES)
BY_ALPHA: Final = tuple(Merge(f"α = {alpha:g}", (recipe("regmean", alpha=alpha),)) for alpha in ALPHAS)
BY_BATCHES: Final = tuple(
    replace(REGMEAN, row=f"batches: {count or 'all'}", measure=Measure(batches=count)) for count in BATCHES
)
PAIRED: Final = (SIMPLE, REGMEAN)
