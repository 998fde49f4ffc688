"""What is tried: whose texts, which heads, which seeds, which rows."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from benchmarks.paper.corpora import Corpus
from benchmarks.paper.examples import PARTS, Example
from benchmarks.paper.merges import (
    BY_ALPHA,
    BY_BATCHES,
    CALIBRATION,
    DELTAS,
    FISHER,
    MAIN,
    PAIRED,
    REFITS,
    REGMEAN,
    SIMPLE,
    WEIGHTED,
    Merge,
)

OFFLINE: Final = "minilm"
"""The encoder that needs no hub; every other source is a name that `from_pretrained` knows."""
SECTIONS: Final = ("btc-b", "btc-f", "btc-g", "btc-h")
HELD_OUT: Final = "wnut17"
MULTI_TASK: Final = "Multi-task"
EMOTIONAL: Final = "goemotions"
KEY_CLASSES: Final = ("joy", "anger", "surprise", "sadness")
KEY_SHARE: Final = 0.8
PARTITION: Final = 400  # the rarest key class has 330 texts of its own


@dataclass(frozen=True, slots=True)
class Texts:
    """One organization's examples, and the task that they are of."""

    task: str
    train: list[Example]
    dev: list[Example]
    test: list[Example]


@dataclass(frozen=True, slots=True)
class Experiment:
    """Organizations that fine-tune one encoder, and what is merged of theirs.

    `setting` names its table, `merges` are rows of it. With `references` it has the rows that need no merge, too, with
    `multi_task` that of one model of everybody's texts; with `pairs` every row is the mean over all pairs of
    organizations; with `greedy` cohorts are those of a greedy search by the one merge's recipe. With `own_heads` each
    draws its own head before it trains; the base's is another. With `private_heads` none leaves, and each domain is
    tested with its own: the only way to merge models of different tasks. Experiments on the same texts share what they
    trained and measured.
    """

    name: str
    partition: Literal["domains", "key class"]
    setting: str
    merges: tuple[Merge, ...]
    references: bool = False
    multi_task: bool = False
    pairs: bool = False
    greedy: bool = False
    own_heads: bool = False
    private_heads: bool = False
    source: str = OFFLINE
    epochs: int = 4
    learning_rate: float = 3e-4
    at_most: int | None = None
    sections: tuple[str, ...] = SECTIONS
    held_out: tuple[str, ...] = (HELD_OUT,)

    def with_others(
        self,
        source: str | None,
        domains: Sequence[str] | None,
        held_out: Sequence[str] | None,
        epochs: int | None,
    ) -> "Experiment":
        """The same with another encoder, other domains, or trained longer; then its table bears their names, too."""
        others = [source] if source else []
        changed = replace(self, source=source or self.source, epochs=epochs or self.epochs)
        if domains:
            changed = replace(changed, sections=tuple(domains), held_out=tuple(held_out or ()))
            others += domains
        return replace(changed, setting=" ".join([self.setting, *others]))

    def of_rows(self, rows: Sequence[str] | None) -> "Experiment":
        """The same with these alone of the rows that are merges or Multi-task; None: with all."""
        if rows is None:
            return self
        merges = tuple(one for one in self.merges if one.row in rows)
        return replace(self, merges=merges, multi_task=self.multi_task and MULTI_TASK in rows)

    def members(self, seed: int) -> dict[str, Texts]:
        """Each organization's texts; those of key classes are drawn from the seed."""
        if self.partition == "key class":
            return _by_key_class(random.Random(seed), self.at_most)
        return {name: _texts(Corpus(name, self.at_most)) for name in self.sections}

    def unseen(self) -> dict[str, list[Example]]:
        """Test sets of domains that nobody trains on."""
        return {name: Corpus(name, self.at_most).examples("test") for name in self.held_out}


def _texts(corpus: Corpus) -> Texts:
    train, dev, test = (corpus.examples(part) for part in PARTS)
    return Texts("entities" if "tokens" in train[0] else "emotions", train, dev, test)


def _by_key_class(chance: random.Random, at_most: int | None) -> dict[str, Texts]:
    """Partitions of one corpus, 80 % of each one class, the rest of all others: the paper's construction."""
    corpus = Corpus(EMOTIONAL)
    train, dev, test = corpus.examples("train"), corpus.examples("dev")[:at_most], corpus.examples("test")[:at_most]
    chance.shuffle(train)
    size = at_most or PARTITION
    keyed = round(KEY_SHARE * size)
    members = {}
    for key in KEY_CLASSES:
        chosen = [example for example in train if example["labels"] == [key]][:keyed]
        rest = [example for example in train if key not in example["labels"]]
        members[key] = Texts("emotions", chosen + chance.sample(rest, size - len(chosen)), dev, test)
    return members


DOMAINS: Final = Experiment("btc", "domains", "btc", MAIN, references=True, multi_task=True)
TASKS: Final = Experiment(
    "tasks",
    "domains",
    "tasks",
    (SIMPLE, FISHER, REGMEAN, WEIGHTED),
    references=True,
    private_heads=True,
    own_heads=True,
    sections=("btc-f", "btc-h", EMOTIONAL),
    at_most=1400,
    held_out=(),
)
FULL: Final = (
    DOMAINS,
    Experiment("btc-refit", "domains", "btc.refit", REFITS, references=True),
    Experiment("btc-deltas", "domains", "btc.deltas", DELTAS),
    Experiment("btc-alpha", "domains", "btc.alpha", BY_ALPHA),
    Experiment("btc-batches", "domains", "btc.batches", BY_BATCHES),
    Experiment("btc-pairs", "domains", "btc.pairs", PAIRED, pairs=True),
    Experiment("btc-greedy", "domains", "btc.greedy", (REGMEAN,), greedy=True),
    Experiment(
        "btc-own-heads",
        "domains",
        "btc.own_heads",
        (SIMPLE, REGMEAN, WEIGHTED),
        references=True,
        multi_task=True,
        own_heads=True,
    ),
    Experiment(
        "goemotions-key-class",
        "key class",
        "goemotions.key_class",
        MAIN,
        references=True,
        multi_task=True,
        epochs=6,
        held_out=(),
    ),
    TASKS,
)
SEEDS: Final = (1, 2, 3)

_QUICK: Final = replace(CALIBRATION, rounds=("head", "calibration"))
_TINY: Final = replace(DOMAINS, merges=(SIMPLE, FISHER, REGMEAN, _QUICK), epochs=1, at_most=8, sections=SECTIONS[:2])
_TINY_TASKS: Final = replace(TASKS, merges=(SIMPLE,), epochs=1, at_most=8, sections=(SECTIONS[0], EMOTIONAL))
SMOKE: Final = (_TINY, _TINY_TASKS)
SMOKE_SEEDS: Final = (1,)
