"""Members of secure sums that speak HTTP, of made-up contributions: manifests, and words that follow from them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from gramfuse.securing.kept import KeptSession
from gramfuse.securing.rules import require_session
from gramfuse_shared.contract.http_api import StageMessages
from gramfuse_shared.contract.manifest import ContributionManifest, FileEntry, PolicyReference
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.requests import Answer
from gramfuse_shared.contract.safetensors_header import format_header
from gramfuse_shared.contract.secure import WORDS_FILE_NAME, Stage
from gramfuse_shared.contract.secure_session import SessionManifest, SummedTensor
from gramfuse_shared.secure.masks import Mask, TensorMasks, Words
from support.secure_cohorts import Member
from support.secure_sessions import public_identity
from support.server_world import World, make_contribution


class KilledError(BaseException):
    """The member's process ends here."""


def plain_words(session: SessionManifest, organization: str, tensor: SummedTensor) -> Words:
    """Return what a member adds to a sum, before any mask: any words, the same for a contribution at every call."""
    member = session.member(organization)
    assert member is not None
    return _drawn(f"{member.contribution} {tensor.name}", tensor.count).copy()


@lru_cache(maxsize=1024)
def _drawn(name: str, count: int) -> Words:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def words_file(session: SessionManifest, organization: str, masks: Sequence[Mask]) -> bytes:
    """Return a member's file of masked words."""
    content = [format_header([(info.name, info.dtype, info.shape) for info in session.words])]
    for number, tensor in enumerate(session.sums):
        words = plain_words(session, organization, tensor)
        TensorMasks(masks, number).add_to(words)
        content.append(words.tobytes())
    return b"".join(content)


@dataclass(frozen=True)
class Prepared:
    """An answer, and the file that travels beside it."""

    answer: Answer
    content: bytes = b""


@dataclass
class SummingMember:
    """An organization and its client; all that it remembers between two calls lies in its folder."""

    world: World
    project: str
    name: str
    folder: Path
    policy: Policy
    sessions: dict[str, SessionManifest] = field(default_factory=dict)
    contributions: dict[str, ContributionManifest] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"/v1/projects/{self.project}"

    def contribute(self, seed: int) -> str:
        """Contribute a manifest, which replaces the one before; return its id."""
        client = self.world.participant(self.name)
        made = make_contribution(client.get(self.path).json(), self.name, taps=(), seed=seed)
        self.contributions[made.id] = made.manifest
        answer = client.put_document(f"{self.path}/contributions/{made.id}", made.manifest)
        assert (answer.status_code, answer.json()["state"]) == (201, "accepted"), answer.text
        return made.id

    def withdraw(self, contribution: str) -> None:
        answer = self.world.participant(self.name).post(f"{self.path}/contributions/{contribution}/withdraw")
        assert answer.status_code == 200, answer.text

    def prepare(self, request: str, stage: Stage, *, killed: bool = False) -> Prepared:
        """Compute the answer to a stage as the client does; `killed` ends the process while it writes words.

        Raises:
            SecureSessionRefusedError, SignatureInvalidError: the member does not speak, whatever the server wants.
        """
        client = self.world.participant(self.name)
        if request not in self.sessions:
            found = client.get(f"{self.path}/requests/{request}/session")
            self.sessions[request] = SessionManifest.parse(found.content)
        session = self.sessions[request]
        member = Member(session, self.name, self.folder, policy=self.policy)
        own = session.member(self.name)
        assert own is not None
        require_session(
            session,
            self.name,
            self.contributions[own.contribution],
            self.policy,
            {each: public_identity(each) for each in session.organizations},
            [done for done in member.participant().sessions.completed() if done.session != session.digest],
        )

        def write(kept: KeptSession, masks: Sequence[Mask]) -> FileEntry:
            content = words_file(session, self.name, masks)
            beside = kept.folder / "words-beside"
            beside.write_bytes(content[: len(content) // 2] if killed else content)
            if killed:
                raise KilledError
            digest = hashlib.sha256(content).hexdigest()
            beside.replace(kept.words(digest))
            return FileEntry(name=WORDS_FILE_NAME, bytes=len(content), sha256=digest)

        member.write = write
        if stage == "keys":
            signed = member.keys()
        else:
            shown = StageMessages.parse(client.get(f"{self.path}/requests/{request}/messages").content).messages
            signed = getattr(member, stage)(shown)
        answer = Answer(
            project=self.project,
            request=request,
            organization=self.name,
            policy=PolicyReference(version=1, digest=self.policy.content_digest()),
            message=signed,
        )
        return Prepared(answer, member.file(signed).read_bytes() if answer.files else b"")

    def send(self, prepared: Prepared, told: Mapping[str, Any], *, parts: int | None = None) -> httpx.Response | None:
        """Send what is not there yet of the file beside an answer, and seal it; of some parts, leave it unsealed.

        Args:
            prepared: the answer.
            told: what the server told when it took the answer.
            parts: how many are sent at most; None: all.
        """
        client = self.world.participant(self.name)
        [file] = told["files"]
        place = f"{self.path}/requests/{prepared.answer.request}/answers/{self.name}"
        listed = client.get(f"{place}/files/{file['name']}/parts").json()["parts"] if file["received_parts"] else []
        there = {part["number"] for part in listed}
        for number in [number for number in range(file["part_count"]) if number not in there][:parts]:
            first = number * file["part_bytes"]
            content = prepared.content[first : first + file["part_bytes"]]
            sent = client.put_part(f"{place}/files/{file['name']}", number, content)
            assert sent.status_code == 201, sent.text
        return client.post(f"{place}/seal") if parts is None else None
