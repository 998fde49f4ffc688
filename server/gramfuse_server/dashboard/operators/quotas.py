"""The page on which operators change what a project may hold."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from starlette.requests import Request

from gramfuse_server.auth import Caller
from gramfuse_server.dashboard.forms import Form, Led, Shown
from gramfuse_server.dashboard.sources import Sources, project_in
from gramfuse_server.database import reading, transaction
from gramfuse_server.operations.projects import find_project, project_documents
from gramfuse_server.operations.quotas import change_quota
from gramfuse_shared.contract.operators import QuotaChange
from gramfuse_shared.errors import GramfuseError, RequestMalformedError

UNITS: Final = {"MB": 10**6, "GB": 10**9, "TB": 10**12}
_AMOUNT: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,12})?")


def read_quota(sources: Sources, request: Request, _: Caller) -> Mapping[str, Any]:
    """Read what a project holds and may hold."""
    return _told(sources, project_in(request)) | {"message": None, "filled": {}}


def change(sources: Sources, form: Form) -> Led | Shown:
    """Change the quota; a form that cannot be followed is shown again, with why."""
    project, now = project_in(form.request), sources.clock()
    try:
        wanted = QuotaChange(bytes=_bytes_in(form.fields), below_held="below" in form.fields)
        with transaction(sources.database) as session:
            change_quota(session, form.caller, project, wanted, settings=sources.settings, now=now)
    except GramfuseError as error:
        values = _told(sources, project) | {"message": error.message, "filled": form.fields}
        return Shown("operators/quota.html", error.status, values)
    return Led(f"projects/{project}")


def _told(sources: Sources, project: str) -> dict[str, Any]:
    with reading(sources.database) as session:
        rows = [find_project(session, project)]
        (document,) = project_documents(session, rows, settings=sources.settings, now=sources.clock())
    unit = max((name for name, size in UNITS.items() if document.quota >= size), key=UNITS.__getitem__, default="MB")
    return {
        "project": document,
        "default": sources.settings.project_quota_bytes,
        "units": tuple(UNITS),
        "unit": unit,
        "amount": "" if document.quota_is_default else _written(document.quota, UNITS[unit]),
    }


def _written(size: int, unit: int) -> str:
    """Write a size in a unit, exactly."""
    whole, fraction = divmod(size, unit)
    return f"{whole}.{fraction:0{len(str(unit)) - 1}}".rstrip("0").rstrip(".")


def _bytes_in(fields: Mapping[str, str]) -> int | None:
    """Read a size; None where the default is chosen."""
    if fields.get("kind") == "default":
        return None
    amount, unit = fields.get("amount", "").strip(), UNITS.get(fields.get("unit", ""))
    if _AMOUNT.fullmatch(amount) is None or unit is None:
        msg = "a quota is a number of MB, GB or TB"
        raise RequestMalformedError(msg)
    return int(Decimal(amount) * unit)
