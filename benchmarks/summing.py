"""A secure sum beside the same merge in the open, both through a real server and worker on loopback, MiniLM-sized.

Three organizations, played one after the other by this process, contribute weights and statistics and merge by RegMean.
Timed is everything from the first push to the end of the job: in the open uploads, checks and the merge, in secret five
stages of messages, masking, uploads of words, unmasking and the merge. On machines of their own, members would mask and
send at the same time.
"""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from timing import Effort
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import gramfuse
from gramfuse.answering.configuration import Participation
from gramfuse.answering.participating import participate
from gramfuse.trust import Trust
from support import tiny
from support.deployment import Desk, deployed

MEMBERS: Final = ("acme", "globex", "initech")
POLICY: Final = gramfuse.Policy(
    heads="shared", minimum_rows_per_dimension=0, advised_rows_per_dimension=0, methods=("linear", "regmean")
)
RECIPE: Final = gramfuse.Recipe(merge_method="regmean")


def measure(folder: Path, effort: Effort) -> dict[str, Any]:
    """Return seconds of both, their ratio, and the bytes that a member sends."""
    base = folder / "base"
    _write_base(base, is_smoke=effort.is_smoke)
    tiny.write_texts(folder / "texts.jsonl", count=64)
    texts = [line.split('"')[3] for line in (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    gramfuse.save_scales(gramfuse.collect_scales(base, texts), folder / "scales.safetensors")
    seconds: dict[str, list[float]] = {"plain": [], "secure": []}
    sent = {}
    with deployed(folder / "site") as deployment:
        deployment.start_worker()
        desks = {
            name: deployment.desk(name, role="participant" if number else "coordinator")
            for number, name in enumerate(MEMBERS)
        }
        for number in range(2 if not effort.is_smoke else 1):
            for kind, taken in seconds.items():
                project = _begin(f"{kind}-{number}", base, kind, desks, folder / "scales.safetensors")
                models = _contribute(folder / f"{kind}-{number}", base, texts, seed=10 * number + len(kind))
                began = time.perf_counter()
                sent[kind] = _merge(project, kind, base, desks, models)
                taken.append(time.perf_counter() - began)
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    return {
        "secure_over_plain": medians["secure"] / medians["plain"],
        "seconds": medians,
        "sent_megabytes": {kind: bytes_ / 1e6 for kind, bytes_ in sent.items()},
        "words_over_files": sent["secure"] / sent["plain"],
        "members": len(MEMBERS),
    }


def _write_base(folder: Path, *, is_smoke: bool) -> None:
    tiny.write_base(folder, hidden=24)
    if is_smoke:
        return
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30_522,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=12,
        num_labels=3,
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _begin(project: str, base: Path, kind: str, desks: Mapping[str, Desk], scales: Path) -> str:
    """Create a project that everybody joined, and whose members' keys everybody compared."""
    secure = {"aggregation": "secure"} if kind == "secure" else {}
    first, *others = desks.items()
    with first[1].client() as coordinator:
        made = coordinator.create_project(
            project, base=base, policy=POLICY.model_copy(update=secure), scales=scales if secure else None
        )
        for name, _ in others:
            coordinator.invite(made.id, name)
    for desk in desks.values():
        with desk.client() as client:
            client.accept_policy(made.id, made.policy.digest)
            client.home.remember_base(made.base, base)
    for desk in desks.values():
        with desk.client() as client:
            entries = client.project(made.id).participants
            Trust.of(client.home, client.url, made.id).verify({one.organization: one.identity or "" for one in entries})
    return made.id


def _contribute(folder: Path, base: Path, texts: list[str], *, seed: int) -> dict[str, Participation]:
    """Write each member's model and statistics; none was sent before."""
    prepared = {}
    for number, name in enumerate(MEMBERS):
        place = folder / name
        place.mkdir(parents=True)
        tiny.write_tuned(base, place / "tuned", seed=100 * seed + number)
        gramfuse.collect(place / "tuned", texts).save(place / "statistics.safetensors")
        prepared[name] = Participation(
            project="-", model=place / "tuned", statistics=place / "statistics.safetensors", folder=place / "answers"
        )
    return prepared


def _merge(project: str, kind: str, base: Path, desks: Mapping[str, Desk], models: Mapping[str, Participation]) -> int:
    """Push everybody's, merge; return the bytes of files that one member sent."""
    sent = 0
    for name, desk in desks.items():
        found = models[name]
        with desk.client() as client:
            pushed = client.push(
                project,
                model=found.model or base,
                statistics=found.statistics,
                base=base,
                confirm=lambda _: True,
                auditing=None,
            )
            sent = sum(file.bytes for file in pushed.manifest.files) if pushed.manifest is not None else 0
    first = next(iter(desks))

    def answer(_: object) -> None:
        for name, desk in desks.items():
            with desk.client() as client:
                found = models[name].model_copy(update={"project": project})
                participate(client, found, confirm=lambda _: True)

    with desks[first].client() as coordinator:
        if kind == "plain":
            coordinator.submit(project, RECIPE, job="merged")
            coordinator.wait(project, "merged")
            return sent
        coordinator.sum(project, RECIPE, result="merged", on_request=answer)
        masked = coordinator.session(project, "merged-keys")
    return 8 * sum(tensor.count for tensor in masked.sums)
