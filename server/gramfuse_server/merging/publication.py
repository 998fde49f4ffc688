"""Publish a merged model: its small files, the signed receipt, and the one transaction that makes it visible."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.orm import Session

from gramfuse_server import audit_log, keeping
from gramfuse_server.blobs import Blobs, blob_key
from gramfuse_server.jobs import write_log
from gramfuse_server.merging.attempts import Attempt, lock, row_of, tasks_of
from gramfuse_server.merging.card import PICTURE_FILE_NAME, write_card
from gramfuse_server.merging.inputs import MergeInputs
from gramfuse_server.merging.picture import draw
from gramfuse_server.tables import ModelFileRow, ModelRow, TaskRow
from gramfuse_shared.contract.diagnostics import DIAGNOSTICS_FILE_NAME, Layer, without_members
from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.contract.receipt import (
    CARD_FILE_NAME,
    RECEIPT_FILE_NAME,
    MergedAnswer,
    MergedContribution,
    Receipt,
    SignedReceipt,
)
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.merging.configuration import declare_dtype
from gramfuse_shared.merging.sharding import INDEX_FILE_NAME
from gramfuse_shared.reporting.layer_grid import CAPTION
from gramfuse_shared.signatures import public_key, sign
from gramfuse_shared.units import format_bytes
from gramfuse_shared.version import __version__

CONFIG_FILE_NAME: Final = "config.json"
RECIPE_FILE_NAME: Final = "recipe.yaml"
SOFTWARE: Final = f"gramfuse {__version__}"

_OWN_FILES: Final = frozenset(
    {CARD_FILE_NAME, RECIPE_FILE_NAME, DIAGNOSTICS_FILE_NAME, PICTURE_FILE_NAME, INDEX_FILE_NAME, RECEIPT_FILE_NAME}
)


@dataclass(frozen=True, slots=True)
class Publication:
    """A model that is not visible yet. `contents` are its small files, by digest, which are to be kept first."""

    receipt: SignedReceipt
    contents: Mapping[str, bytes]

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The model's files, without the receipt itself."""
        return self.receipt.receipt.outputs


def prepare(
    inputs: MergeInputs,
    attempt: Attempt,
    tasks: Sequence[TaskRow],
    *,
    blobs: Blobs,
    key: Ed25519PrivateKey,
    now: datetime,
) -> Publication:
    """Make the small files and sign the receipt. Shards come from the tasks, all else from the base."""
    shards = tuple(_shard(task) for task in tasks)
    small = _small_files(inputs, attempt, tasks, blobs, now)
    written = [FileEntry(name=name, bytes=len(made), sha256=sha256_hex(made)) for name, made in small.items()]
    changed = {file.name for file in written}
    taken = tuple(file for file in inputs.companions if file.name not in _OWN_FILES | changed)
    receipt = Receipt(
        project=attempt.project,
        model=attempt.job,
        attempt=attempt.number,
        base=inputs.base_digest,
        policy=inputs.policy,
        recipe=inputs.recipe,
        method_version=inputs.plan.method_version,
        contributions=tuple(
            MergedContribution(
                organization=member.organization,
                manifest=member.contribution,
                weight=member.weight,
                **inputs.signatures.get(member.contribution, {}),
            )
            for member in inputs.cohort
        ),
        answers=tuple(
            MergedAnswer(organization=answer.organization, answer=answer.content_digest())
            for answer in (inputs.refined.answers.values() if inputs.refined else ())
        ),
        session=None if inputs.summed is None else inputs.summed.session.digest,
        outputs=tuple(sorted((*shards, *written, *taken), key=lambda file: file.name)),
        created=now,
        software=SOFTWARE,
    )
    contents = {file.sha256: small[file.name] for file in written}
    return Publication(receipt=sign_receipt(receipt, key), contents=contents)


def sign_receipt(receipt: Receipt, key: Ed25519PrivateKey) -> SignedReceipt:
    """Sign the receipt's canonical JSON."""
    return SignedReceipt(receipt=receipt, public_key=public_key(key), signature=sign(receipt, key))


def publish(session: Session, attempt: Attempt, publication: Publication, *, now: datetime) -> bool:
    """Make the model visible and end the job; False where the attempt may not go on any more."""
    job = lock(session, attempt)
    if job is None:
        keeping.let_go(session, publication.contents)
        return False
    files = publication.files
    keeping.name(session, {file.sha256 for file in files})
    session.add(
        ModelRow(
            project=attempt.project,
            id=attempt.job,
            attempt=attempt.number,
            bytes=sum(file.bytes for file in files),
            receipt=publication.receipt.canonical().decode(),
            created_at=now,
        )
    )
    session.flush()
    for position, file in enumerate(files):
        session.add(
            ModelFileRow(
                project=attempt.project,
                model=attempt.job,
                name=file.name,
                position=position,
                bytes=file.bytes,
                sha256=file.sha256,
            )
        )
    row = row_of(session, attempt)
    job.state = row.state = job.stage = "succeeded"
    job.finished_at = row.finished_at = now
    write_log(session, job, now, f"published {len(files)} files, {format_bytes(sum(file.bytes for file in files))}")
    audit_log.append(
        session,
        at=now,
        organization=None,
        token=None,
        action="model.publish",
        subject=f"{attempt.project}/{attempt.job}",
        details={
            "attempt": attempt.number,
            "receipt": publication.receipt.receipt.content_digest(),
            "contributions": [member.manifest for member in publication.receipt.receipt.contributions],
        },
    )
    return True


def finished_tasks(session: Session, attempt: Attempt) -> Sequence[TaskRow] | None:
    """Return the attempt's tasks once all have succeeded, else None."""
    tasks = tasks_of(session, attempt)
    return tasks if tasks and all(task.state == "succeeded" for task in tasks) else None


def _small_files(
    inputs: MergeInputs, attempt: Attempt, tasks: Sequence[TaskRow], blobs: Blobs, now: datetime
) -> dict[str, bytes]:
    entries: list[Any] = [entry for task in tasks for entry in json.loads(task.diagnostics or "[]")]
    diagnostics = [without_members(entry) for entry in entries]
    layers = [Layer.of_entry(entry) for entry in diagnostics]
    picture = draw(layers, f"{attempt.project} · {attempt.job}")
    caption = None if picture is None else CAPTION
    index = inputs.plan.index_json()
    recipe = inputs.recipe.model_dump(mode="json", exclude_none=True)
    files = {
        CARD_FILE_NAME: write_card(inputs, attempt, layers, now, caption=caption).encode(),
        RECIPE_FILE_NAME: yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).encode(),
        DIAGNOSTICS_FILE_NAME: (json.dumps(diagnostics, indent=1) + "\n").encode(),
    }
    if picture is not None:
        files[PICTURE_FILE_NAME] = picture
    if index is not None:
        files[INDEX_FILE_NAME] = index
    if inputs.recipe.out_dtype is not None:
        (config,) = (file for file in inputs.companions if file.name == CONFIG_FILE_NAME)
        files[CONFIG_FILE_NAME] = declare_dtype(
            blobs.read(blob_key(config.sha256), 0, config.bytes), inputs.recipe.out_dtype
        )
    return files


def _shard(task: TaskRow) -> FileEntry:
    if task.sha256 is None or task.bytes is None:
        msg = f"task {task.number} has no shard"
        raise ValueError(msg)
    return FileEntry(name=task.file, bytes=task.bytes, sha256=task.sha256)
