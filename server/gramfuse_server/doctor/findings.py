"""What a check says: a verdict, what was found, and what to do about it. Secrets are masked here, the last gate."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from gramfuse_server.settings import Settings

Verdict = Literal["ok", "warning", "failed"]
ORDER: Final[Sequence[Verdict]] = ("ok", "warning", "failed")
"""From the best to the worst."""

MASK: Final = "***"
_LEAST_SECRET_CHARACTERS: Final = 4  # shorter ones would mask half of every sentence
_SECRET_NAMES: Final = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_PASSWORD_IN_URL: Final = re.compile(r"//[^/@]*?:([^/@]+)@")


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check; `advice` is empty where there is nothing to do."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Finding:
    """Say that all is well."""
    return Finding(name, "ok", found)


def warning(name: str, found: str, advice: str) -> Finding:
    """Say what works and may not for long, or not for everybody."""
    return Finding(name, "warning", found, advice)


def failed(name: str, found: str, advice: str) -> Finding:
    """Say what does not work."""
    return Finding(name, "failed", found, advice)


def worst(findings: Iterable[Finding]) -> Verdict:
    """Return the worst verdict; of nothing, ok."""
    return max((finding.verdict for finding in findings), key=ORDER.index, default="ok")


def secrets_of(variables: Mapping[str, str], settings: Settings | None = None) -> set[str]:
    """Collect what must not be shown: passwords within URLs, and variables whose name says that they are secret."""
    secrets = {value for name, value in variables.items() if _SECRET_NAMES.search(name)}
    urls = [*variables.values(), *([settings.database_url.get_secret_value(), settings.blobs] if settings else [])]
    for url in urls:
        secrets.update(_PASSWORD_IN_URL.findall(url))
    return {secret for secret in secrets if len(secret) >= _LEAST_SECRET_CHARACTERS}


def masked(findings: Iterable[Finding], secrets: Collection[str]) -> list[Finding]:
    """Take secrets out of everything that findings say, whoever put them there."""
    longest_first = sorted(secrets, key=len, reverse=True)  # one may lie within another

    def mask(text: str) -> str:
        for secret in longest_first:
            text = text.replace(secret, MASK)
        return text

    return [replace(finding, found=mask(finding.found), advice=mask(finding.advice)) for finding in findings]
