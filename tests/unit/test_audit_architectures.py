"""The fit of token counts reads what positions and norms make of tokens off the model itself, whatever it is."""

from collections import Counter

import pytest
import torch

from gramfuse.measuring.collection import Collector
from gramfuse.measuring.inference import OpenModel
from gramfuse.privacy.attacking_taps import find_tokens_at
from support.tiny_models import VOCABULARY, example_batch, tiny_model

LENGTH = 12
TEXTS = 400


def quiet_positions(model):
    """As in trained models, where tokens weigh more than their positions."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "position_embeddings" in name or name.endswith("wpe.weight"):
                value.mul_(0.05)


def measured(kind):
    """A tiny model with its own weights, what its first tap saw of random texts, and how many texts hold each token."""
    model = tiny_model(kind)
    quiet_positions(model)
    generator = torch.Generator().manual_seed(1)
    words = torch.randperm(VOCABULARY - 5, generator=generator)[:25] + 5
    ids = words[torch.randint(0, len(words), (TEXTS, LENGTH), generator=generator)]
    with torch.no_grad(), Collector(model) as statistics:
        for chunk in ids.split(50):
            model(input_ids=chunk, attention_mask=torch.ones_like(chunk))
    return model, statistics, Counter(token for row in ids.tolist() for token in set(row))


class Words:
    """As much of a tokenizer as running a model on ids needs."""

    pad_token_id, eos_token_id = 0, 3
    model_max_length = 40


def opened(model):
    return OpenModel(model, Words(), torch.device("cpu"), None)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta-v2", "gpt2", "llama", "qwen2"])
def test_present_tokens_are_found_at_the_tap_that_embeddings_feed(kind):
    model, statistics, held = measured(kind)
    tap = next(tap for tap in statistics.taps if tap.info.source == "embeddings")
    not_run = []
    (found,) = find_tokens_at(opened(model), [(tap.info, tap.unpacked())], set(), held, LENGTH, not_run)
    assert not_run == []
    assert found.auc > 0.9


def test_of_a_model_without_tokens_the_attack_is_told_as_not_run():
    """Rows of an image are no tokens: that nothing was found would say nothing."""
    model = tiny_model("vit")
    with torch.no_grad(), Collector(model) as statistics:
        model(**example_batch("vit"))
    tap = statistics.taps[0]
    not_run = []
    found = list(find_tokens_at(opened(model), [(tap.info, tap.unpacked())], set(), None, LENGTH, not_run))
    assert found == []
    assert "token counts" in not_run[0].what


def test_of_an_input_that_is_not_one_row_per_token_the_attack_is_told_as_not_run():
    model, statistics, held = measured("roberta")
    (tap,) = [tap for tap in statistics.taps if "classifier" in tap.info.layers[0].weight and "dense" in tap.info.name]
    not_run = []
    assert list(find_tokens_at(opened(model), [(tap.info, tap.unpacked())], set(), held, LENGTH, not_run)) == []
    assert "does not know" in not_run[0].because
