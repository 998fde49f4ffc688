"""What an organization knows of a project by itself, whatever its server says: the policy that it accepted, and whose
identity keys its people compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from pydantic import Field

from gramfuse.config import Home
from gramfuse.identity import load_identity
from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.http_api import Participant, Project
from gramfuse_shared.contract.identity import PolicyAcceptance, fingerprint_of
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import (
    ConfigurationError,
    DocumentMalformedError,
    IdentityChangedError,
    PolicyNotAcceptedError,
)
from gramfuse_shared.identifiers import Key, OrganizationName, ProjectId
from gramfuse_shared.signatures import is_signed

_FOLDER: Final = "projects"

Standing = Literal["own", "verified", "not verified", "changed", "not joined"]
"""How a member's key stands: one's own, compared by people, not compared yet, another than that one, or none yet."""


class Known(Document):
    """What is kept of a project in the client's home: the newest policy accepted, and the keys that were verified."""

    url: str
    project: ProjectId
    version: int = 0
    identities: Mapping[OrganizationName, Key] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RosterEntry:
    """A member's identity key as the server shows it, and how it stands here."""

    organization: str
    identity: str | None
    standing: Standing

    @property
    def fingerprint(self) -> str | None:
        """What people compare; None where the member has no key yet."""
        return None if self.identity is None else fingerprint_of(self.identity)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "organization": self.organization,
            "identity": self.identity,
            "fingerprint": self.fingerprint,
            "standing": self.standing,
        }


@dataclass(frozen=True, slots=True)
class Trust:
    """What a home knows of one project at one server."""

    home: Home
    known: Known

    @classmethod
    def of(cls, home: Home, url: str, project: str) -> "Trust":
        """Read what is known; nothing before the first use.

        Raises:
            ConfigurationError: the file cannot be read.
        """
        path = home.path / _name(url, project)
        try:
            return cls(home, Known.parse(path.read_bytes()))
        except FileNotFoundError:
            return cls(home, Known(url=url, project=project))
        except (OSError, DocumentMalformedError) as error:
            msg = f"{path} cannot be read ({error}); delete it, and verify the project's roster anew"
            raise ConfigurationError(msg) from error

    def require_accepted(self, project: Project, organization: str) -> None:
        """Require that the policy that the server shows is one that the organization's identity key signed for.

        And that it is no earlier one than was accepted before: a server cannot go back to a policy that was replaced.
        Nor may a verified member's key be another now.

        Raises:
            PolicyNotAcceptedError: it is not signed, or an earlier one.
            IdentityChangedError: a verified member has another key.
            ConfigurationError: the identity key is not here.
        """
        shown = next((p for p in project.participants if p.organization == organization), None)
        own = load_identity(self.home).public
        if shown is None or shown.accepted_policy != project.policy or not is_own_acceptance(project.id, shown, own):
            msg = (
                f"the server shows no acceptance of version {project.policy.version} of the policy of {project.id} "
                f"that your identity key signed ({fingerprint_of(own)}); nothing is sent under what was not accepted"
            )
            raise PolicyNotAcceptedError(msg, project=project.id, **project.policy.model_dump())
        if project.policy.version < self.known.version:
            msg = (
                f"the server shows version {project.policy.version} of the policy of {project.id}, but you accepted "
                f"version {self.known.version} before; ask the coordinator why it went back"
            )
            raise PolicyNotAcceptedError(msg, project=project.id, **project.policy.model_dump())
        self.require_same_identities(project)
        self.remember_accepted(project.policy.version)

    def remember_accepted(self, version: int) -> None:
        """Keep which version was accepted last; an earlier one is refused from then on."""
        if version > self.known.version:
            self._keep(version=version)

    def require_same_identities(self, project: Project) -> None:
        """Require that no verified member has another key now; raises IdentityChangedError."""
        for participant in project.participants:
            verified = self.known.identities.get(participant.organization)
            if verified is not None and participant.identity not in {None, verified}:
                msg = (
                    f"{participant.organization} has another identity key in {project.id} than you verified: "
                    f"{fingerprint_of(participant.identity or '')}, it was {fingerprint_of(verified)}. Ask its people, "
                    "and if it is theirs verify the roster anew"
                )
                raise IdentityChangedError(msg, organization=participant.organization)

    def roster(self, project: Project, organization: str) -> tuple[RosterEntry, ...]:
        """Say how every member's key stands; a signature that does not fit its key counts as no key."""
        return tuple(
            RosterEntry(
                participant.organization,
                participant.identity if is_own_acceptance(project.id, participant, participant.identity) else None,
                self._standing(project.id, participant, organization),
            )
            for participant in project.participants
        )

    def verify(self, entries: Mapping[str, str]) -> "Trust":
        """Keep keys that people compared, by organization; replaces what was kept of these."""
        return self._keep(identities={**self.known.identities, **entries})

    def _standing(self, project: str, participant: Participant, organization: str) -> Standing:
        if not is_own_acceptance(project, participant, participant.identity):
            return "not joined"
        verified = self.known.identities.get(participant.organization)
        if verified is not None:
            return "verified" if verified == participant.identity else "changed"
        return "own" if participant.organization == organization else "not verified"

    def _keep(self, **changes: Any) -> "Trust":  # noqa: ANN401 - fields of Known
        known = self.known.model_copy(update=changes)
        self.home.write(_name(known.url, known.project), known.model_dump_json(indent=1) + "\n")
        return replace(self, known=known)


def is_own_acceptance(project: str, participant: Participant, identity: str | None) -> bool:
    """Tell whether what the server shows of a participant is an acceptance that this identity key signed."""
    shown = (participant.accepted_policy, participant.identity, participant.signature)
    policy, registered, signature = shown
    if policy is None or registered is None or signature is None or registered != identity:
        return False
    acceptance = PolicyAcceptance(
        project=project, organization=participant.organization, policy=policy, identity=registered
    )
    return is_signed(acceptance, signature, registered)


def _name(url: str, project: str) -> str:
    return f"{_FOLDER}/{sha256_hex(f'{url} {project}'.encode())[:24]}.json"
