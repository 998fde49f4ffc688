"""Fact 1: the Gram matrix of a tap that the embeddings feed reveals the token counts of the private corpus."""

import pytest
import torch

from gramfuse.measuring.forwarding import collect
from gramfuse.privacy.membership import auc
from gramfuse.privacy.token_counts import find_tokens
from gramfuse_shared.contract.manifest import TapInfo
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.rules import why_tap_stays
from support.tweets import QUERY, tokenized, tweets


@pytest.fixture(scope="session")
def found(corpus, dictionary):
    return find_tokens(corpus.gram, dictionary)


def present(corpus, vocabulary):
    held = torch.zeros(vocabulary, dtype=torch.bool)
    held[list(corpus.counts)] = True
    return held


def test_the_tokens_of_30000_rows_are_found(corpus, found, dictionary):
    held = present(corpus, len(dictionary.tokens))
    assert corpus.rows >= 30_000
    assert auc(found.scores[held], found.scores[~held]) > 0.99


def test_and_named_with_few_errors(corpus, found, dictionary):
    held = present(corpus, len(dictionary.tokens))
    right = int(held[found.named].sum())
    assert right / len(found.named) > 0.95
    assert right / int(held.sum()) > 0.9


def test_and_their_counts_with_them(corpus, found, encoder):
    special = set(encoder.tokenizer.all_special_ids)
    tokens = [token for token, times in corpus.counts.items() if times >= 20 and token not in special]
    truth = torch.tensor([float(corpus.counts[token]) for token in tokens])
    assert float(((found.counts[tokens] - truth).abs() / truth).median()) < 0.15


def test_shrinking_the_off_diagonal_hides_nothing_since_it_can_be_undone(corpus):
    alpha = 0.9
    sent = alpha * corpus.gram + (1 - alpha) * torch.diag(corpus.gram.diagonal())
    undone = (sent - (1 - alpha) * torch.diag(sent.diagonal())) / alpha
    torch.testing.assert_close(undone, corpus.gram, rtol=1e-5, atol=0)


def test_behind_attention_the_same_attack_finds_far_less(mixed_rows, encoder, dictionary):
    rows = torch.cat(mixed_rows[1].mine)
    found = find_tokens(rows.T @ rows, dictionary)
    held = torch.zeros(len(dictionary.tokens), dtype=torch.bool)
    held[[token for text in tokenized(encoder, tweets("btc-f")[:1_000]) for token in text.ids]] = True
    assert auc(found.scores[held], found.scores[~held]) < 0.9


def test_the_collector_knows_the_tap_and_the_default_policy_keeps_it_at_home(encoder):
    statistics = collect(encoder.model, tweets("btc-f")[:8], tokenizer=encoder.tokenizer, device="cpu", max_length=64)
    infos = {tap.info.name: tap.info for tap in statistics.taps}
    first = next(info for info in infos.values() if any(layer.weight == QUERY.format(0) for layer in info.layers))
    leaving = [layer.weight for layer in first.layers]
    enough = TapInfo.model_validate(first.model_dump() | {"distinct_rows": 10**6, "rows": 10**6})
    assert first.source == "embeddings"
    assert "embedding" in (why_tap_stays(enough, leaving, Policy()) or "")
    assert why_tap_stays(enough, leaving, Policy(embedding_taps="send")) is None
