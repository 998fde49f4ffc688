"""What a home remembers of weights that were pushed from it: to which projects, so that the next push can warn."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from gramfuse.config import Home
from gramfuse.contributing.draft import Draft
from gramfuse.contributing.loading import content_of
from gramfuse_shared.contract.document import Document
from gramfuse_shared.digest import document_digest, sha256_hex_of_chunks
from gramfuse_shared.errors import ConfigurationError, DocumentMalformedError
from gramfuse_shared.identifiers import Digest, ProjectId

_FOLDER: Final = "sent"
_LOOKED_AT_BYTES: Final = 1 << 16
"""Of each tensor: training moves nearly all elements, so these tell models apart, and hardly anything is read."""


class Sent(Document):
    """That a push of weights to a project was confirmed; `summed`: in secret, so that not they but sums left."""

    url: str
    project: ProjectId
    weights: Digest
    summed: bool


@dataclass(frozen=True, slots=True)
class SentBefore:
    """The pushes of one home."""

    home: Home

    def prepare(self, draft: Draft, url: str, project: str) -> tuple[Draft, Sent]:
        """Add to the plan what is to be warned of, and return what is to be remembered if the push is confirmed.

        Raises:
            FileUnreadableError: the model's files are gone or were changed.
            ConfigurationError: what is remembered cannot be read.
        """
        sent = Sent(url=url, project=project, weights=_recognizable(draft), summed=draft.plan.summed)
        plan = replace(draft.plan, warnings=draft.plan.warnings + warnings_of(sent, self._read()))
        return replace(draft, plan=plan), sent

    def remember(self, sent: Sent) -> None:
        """Keep a push, before a byte of it is sent; the same again changes nothing.

        Raises:
            ConfigurationError: the home cannot be written.
        """
        self.home.write(f"{_FOLDER}/{sent.content_digest()}.json", sent.model_dump_json() + "\n")

    def _read(self) -> list[Sent]:
        found = []
        for path in sorted((self.home.path / _FOLDER).glob("[!.]*.json")):
            try:
                found.append(Sent.parse(path.read_bytes()))
            except (OSError, DocumentMalformedError) as error:
                msg = f"{path} cannot be read ({error}); delete it, and nothing warns any more of what it told"
                raise ConfigurationError(msg) from error
        return found


def warnings_of(sent: Sent, before: Sequence[Sent]) -> tuple[str, ...]:
    """Say what earlier pushes of the same weights mean for this one: those to other projects, and of the other kind."""
    alike = [one for one in before if one.weights == sent.weights]
    others = [one for one in alike if (one.url, one.project) != (sent.url, sent.project)]
    otherwise = [one for one in alike if one.summed != sent.summed]
    told = []
    if others:
        told.append(
            f"you pushed these weights to {_names(others, sent.url)} before: whoever gets merged models of both can "
            "take one from the other, and what is in one alone comes out, down to a single organization's weights"
        )
    if otherwise:
        there, here = ("in the open", "summed in secret") if sent.summed else ("summed in secret", "in the open")
        told.append(
            f"these weights went {there} to {_names(otherwise, sent.url)}, and go {here} now: who knows weights can "
            "take sums of statistics apart, so do not send a model both ways"
        )
    return tuple(told)


def _names(pushes: Sequence[Sent], url: str) -> str:
    """Name projects, with the server where it is another one."""
    names = {one.project if one.url == url else f"{one.project} at {one.url}" for one in pushes}
    return ", ".join(sorted(names))


def _recognizable(draft: Draft) -> str:
    """Return a digest of what leaves of the model's body, whatever the policy says of heads and embeddings."""
    leaving = draft.plan.leaving_weights
    body = [weight.info for weight in leaving if weight.role == "body"] or [weight.info for weight in leaving]
    return document_digest(
        [[info.model_dump(mode="json"), _beginning(draft, info.name)] for info in sorted(body, key=lambda i: i.name)]
    )


def _beginning(draft: Draft, name: str) -> str:
    file = content_of(draft.model.tensors[name])
    return sha256_hex_of_chunks(file.chunks(0, min(file.length, _LOOKED_AT_BYTES)))
