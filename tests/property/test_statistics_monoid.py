"""Statistics form a commutative monoid, and neither batching nor padding can change what is measured."""

import tempfile
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gramfuse.measuring.collection import Collector
from gramfuse.measuring.distinct import DistinctRows
from gramfuse.measuring.statistics import Statistics

WIDTH = 5


class Net(nn.Module):
    """Tokens to rows of small integers, so that sums in fp32 are exact whatever their order."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, WIDTH)
        generator = torch.Generator().manual_seed(0)
        self.embedding.weight.data = torch.randint(-3, 4, (20, WIDTH), generator=generator).float()
        self.query, self.key, self.out = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, *, deep: bool = True):
        del attention_mask  # it is the collector that reads it
        hidden = self.embedding(input_ids)
        scores = self.query(hidden) + self.key(hidden)
        return self.out(hidden.flip(-1)) if deep else scores


NET = Net()

sentences = st.lists(st.lists(st.integers(1, 19), min_size=1, max_size=6), min_size=1, max_size=6)


def measure(texts: list[list[int]], *, batch: int = 3, spare: int = 0, deep: bool = True) -> Statistics:
    with torch.no_grad(), Collector(NET) as statistics:
        for start in range(0, len(texts), batch):
            part = texts[start : start + batch]
            width = max(map(len, part)) + spare
            ids = torch.tensor([text + [0] * (width - len(text)) for text in part])
            mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in part])
            NET(ids, attention_mask=mask, deep=deep)
    for stream in statistics.streams.values():
        stream.source = "mixed"  # what could be probed depends on the first batch, which is not the matter here
    return statistics


@given(sentences, sentences, sentences, st.booleans())
def test_sums_are_associative_and_commutative(one, two, three, deep):
    a, b, c = measure(one), measure(two, deep=deep), measure(three)
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a


@given(sentences)
def test_the_empty_statistics_are_the_zero(texts):
    measured = measure(texts)
    assert measured + Statistics() == measured
    assert Statistics() + measured == measured
    assert Statistics() + Statistics() == Statistics()


@given(sentences, st.integers(1, 6), st.integers(0, 3))
def test_batching_and_padding_change_nothing(texts, batch, spare):
    assert measure(texts, batch=batch, spare=spare) == measure(texts, batch=1)


@given(sentences, st.data())
def test_a_run_in_parts_adds_up_to_the_run_in_one(texts, data):
    cut = data.draw(st.integers(1, len(texts)))
    parts = [part for part in (texts[:cut], texts[cut:]) if part]
    assert sum((measure(part) for part in parts), start=Statistics()) == measure(texts)


@given(sentences, st.booleans())
def test_saved_and_loaded_statistics_are_equal(texts, deep):
    measured = measure(texts, deep=deep)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "statistics.safetensors"
        measured.save(path)
        loaded = Statistics.load(path)
        assert loaded == measured
        loaded.save(path.with_name("again.safetensors"))
        assert path.read_bytes() == path.with_name("again.safetensors").read_bytes()


@given(sentences)
def test_the_same_texts_twice_are_twice_the_rows_but_no_more_distinct_ones(texts):
    once = measure(texts)
    twice = once + measure(texts)
    for one, two in zip(once.taps, twice.taps, strict=True):
        assert two.info.rows == 2 * one.info.rows
        assert two.info.distinct_rows == one.info.distinct_rows
        assert torch.equal(two.gram, 2 * one.gram)


@given(sentences)
def test_distinct_rows_are_the_tokens_of_distinct_sentences(texts):
    distinct = {tuple(text) for text in texts}
    assert {tap.info.distinct_rows for tap in measure(texts).taps} == {sum(map(len, distinct))}


profiles = st.dictionaries(
    st.binary(min_size=16, max_size=16),
    st.frozensets(st.tuples(st.sampled_from([("a",), ("b", "c")]), st.integers(1, 9)), max_size=2).filter(
        lambda profile: len(dict(profile)) == len(profile)
    ),
    max_size=5,
)


@given(profiles, profiles, profiles)
def test_distinct_rows_are_a_monoid_of_their_own(one, two, three):
    a, b, c = DistinctRows(one), DistinctRows(two, {("a",): 3}), DistinctRows(three)
    assert ((a + b) + c).count() == (a + (b + c)).count()
    assert (a + b).count() == (b + a).count()
    assert (a + a).count() == a.count()
    assert (a + DistinctRows()).count() == a.count()
