"""Fact 3: a fine-tuned embedding matrix reveals the vocabulary that it was trained on."""

import torch
from safetensors.torch import load_file

from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.contributing.draft import draft_contribution
from gramfuse.privacy.membership import auc
from gramfuse.privacy.vocabulary import find_moved_rows
from gramfuse_shared.contract.policy import Policy

EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


def test_rows_that_moved_are_the_tokens_of_the_training_texts(minilm, tuned):
    base = load_file(minilm / "model.safetensors")[EMBEDDINGS]
    model = tuned[0]
    found = find_moved_rows(load_file(model.folder / "model.safetensors")[EMBEDDINGS], base)
    held = torch.zeros(len(base), dtype=torch.bool)
    held[sorted(model.tokens)] = True
    assert auc(found.distances[held], found.distances[~held]) == 1.0
    assert set(found.moved.tolist()) == model.tokens
    assert found.decay < 1  # the others moved, too: by weight decay


def test_the_default_policy_lets_no_embedding_leave(minilm, tuned):
    manifest = build_base_manifest(minilm)
    plan = draft_contribution(tuned[0].folder, None, manifest, Policy(), base_folder=minilm).plan
    vocabulary = manifest.vocabulary_size
    assert not [weight for weight in plan.leaving_weights if vocabulary in weight.info.shape]
    assert any("you tuned" in warning for warning in plan.warnings)
    average = Policy(embeddings="average")
    plan = draft_contribution(tuned[0].folder, None, manifest, average, base_folder=minilm).plan
    assert EMBEDDINGS in {weight.info.name for weight in plan.leaving_weights}
