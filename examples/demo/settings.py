"""What is played: the organizations, their domains, and how much of everything."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
SENTENCES: Final = HERE / "data"

PROJECT: Final = "btc-f.tweets"
UNSEEN_DOMAIN: Final = "wnut17"
SIMPLE, REGMEAN = "simple-average", "regmean"


@dataclass(frozen=True, slots=True)
class Domain:
    """One organization's kind of text; the organization bears the domain's name."""

    name: str
    description: str

    def sentences(self, part: str) -> Path:
        """The file of the train, dev or test part."""
        return SENTENCES / f"{self.name}.{part}.jsonl.gz"


DOMAINS: Final = (
    Domain("btc-f", "tweets by “Twitterati”"),
    Domain("btc-g", "tweets by mainstream news"),
    Domain("btc-h", "tweets from outside the UK"),
)
UNSEEN: Final = Domain(UNSEEN_DOMAIN, "emerging entities: nobody trained on it")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is trained, measured and tested, and where. `None` means all there is.

    Each size has a folder of its own, so that a smoke run never replaces the report of a full one.
    `at_once` organizations compute at a time. Three at once on two cores take half as long again as one by one, unless
    loading the libraries takes longer than the work. `thresholds` are the audits' before pushes, None the usual.
    """

    name: str
    folder: Path
    expected: str
    policy: Path
    thresholds: Path | None
    epochs: int
    train_sentences: int | None
    test_sentences: int | None
    at_once: int


SIZES: Final[Mapping[str, Size]] = {
    "full": Size(
        name="full",
        folder=Path(".demo"),
        expected="about five minutes the first time on two idle cores, under two when its models are trained already",
        policy=HERE / "policy.yaml",
        thresholds=None,
        epochs=3,
        train_sentences=None,
        test_sentences=None,
        at_once=1,
    ),
    "smoke": Size(
        name="smoke",
        folder=Path(".demo/smoke"),
        expected="about a minute on two idle cores",
        policy=HERE / "policy-smoke.yaml",
        thresholds=HERE / "thresholds-smoke.yaml",
        epochs=1,
        train_sentences=16,
        test_sentences=8,
        at_once=3,
    ),
}
