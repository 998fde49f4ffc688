"""Which rows of a layer's input count, by the shape of the input and the frame that it is in."""

import pytest
import torch

from gramfuse.measuring.collection import Collector
from gramfuse.measuring.examples import examples_of
from gramfuse.measuring.masking import Frame, frame_of, select
from gramfuse.measuring.masks import Mask
from gramfuse_shared.errors import StateError

MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0]])
TOKENS = torch.arange(2 * 4 * 3).reshape(2, 4, 3).float()


def frame(**options: object) -> Frame:
    return Frame(batch=2, length=4, mask=Mask(MASK), **options)


def test_sequences_and_flattened_sequences_go_by_the_mask():
    expected = TOKENS[MASK.bool()]
    for tensor in (TOKENS, TOKENS.reshape(8, 3)):
        selection = select(tensor, frame(), drop_padding=True)
        assert torch.equal(selection.rows, expected)
        assert selection.count.per_example() == (3, 2)


def test_counted_padding_counts_for_every_example():
    selection = select(TOKENS, frame(), drop_padding=False)
    assert selection.rows.shape == (8, 3)
    assert selection.count.per_example() == (4, 4)


def test_pooled_rows_have_no_padding():
    selection = select(TOKENS[:, 0], frame(), drop_padding=True)
    assert selection.rows.shape == (2, 3)
    assert selection.count.per_example() == (1, 1)


@pytest.mark.parametrize("shape", [(1, 8, 3), (5, 3), (7, 4, 3), (3,)])
def test_tensors_without_a_batch_axis_belong_to_no_example(shape):
    selection = select(torch.ones(shape), frame(), drop_padding=True)
    assert selection.rows.shape[1] == 3
    assert selection.count.per_example() is None


def test_a_batch_of_one_is_no_evidence_of_a_batch_axis():
    alone = Frame(batch=1, length=4, mask=Mask(torch.ones(1, 4)))
    assert select(torch.ones(1, 8, 3), alone, drop_padding=True).count.per_example() is None
    assert select(torch.ones(1, 4, 3), alone, drop_padding=True).count.per_example() == (4,)


def test_with_a_cache_the_mask_ends_where_the_inputs_end():
    selection = select(TOKENS[:, 2:], frame(cached=True), drop_padding=True)
    assert torch.equal(selection.rows, TOKENS[[0, 1], [2, 2]])
    assert selection.count.per_example() == (1, 1)


def test_what_has_the_encoders_length_goes_by_the_encoders_mask():
    encoder = torch.ones(2, 4, 3)
    decoder = Frame(2, 3, Mask(torch.tensor([[1, 1, 1], [1, 0, 0]])), encoder=encoder, encoder_mask=Mask(MASK))
    assert select(encoder, decoder, drop_padding=True).count.per_example() == (3, 2)
    assert select(encoder.clone(), decoder, drop_padding=True).count.per_example() == (3, 2)
    assert select(torch.ones(2, 3, 3), decoder, drop_padding=True).count.per_example() == (3, 1)


def test_masks_of_layers_that_are_no_padding_masks_are_ignored():
    outer = frame_of({"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": MASK}, None, two_sided=False)
    inner = frame_of({"attention_mask": torch.zeros(2, 1, 4, 4)}, outer, two_sided=False)
    assert inner is outer


def test_padding_does_not_change_an_examples_hash_and_tokens_do():
    def hashes(ids: list[list[int]], mask: list[list[int]]) -> tuple[bytes, ...]:
        bound = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        return examples_of(bound, frame_of(bound, None, two_sided=False)).hashes()

    right = hashes([[5, 6, 0], [7, 8, 9]], [[1, 1, 0], [1, 1, 1]])
    left = hashes([[0, 0, 5, 6]], [[0, 0, 1, 1]])
    other = hashes([[6, 5]], [[1, 1]])
    assert right[0] == left[0]
    assert len({*right, *left, *other}) == 3


def test_replicas_of_data_parallel_are_refused_with_the_way_out():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    model._is_replica = True
    with Collector(model), pytest.raises(StateError, match="DistributedDataParallel"):
        model(torch.ones(1, 3))
