"""The organizations, their tokens, and the projects that they take part in."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from benchmarks.soak.line import Line, require
from benchmarks.soak.made_models import POLICY, Upload, make_base, make_contribution
from benchmarks.soak.sizes import Sizes
from benchmarks.soak.uploading import send_parts

from support.identities import signed_acceptance

CREATED = (HTTPStatus.OK, HTTPStatus.CREATED)


@dataclass(frozen=True, slots=True)
class Consortium:
    """Projects as the API told them when their base was ready; the first organization of each coordinates it."""

    projects: tuple[Mapping[str, Any], ...]
    members: Mapping[str, tuple[str, ...]]
    tokens: Mapping[str, str]
    coordinators: Mapping[str, str]
    """Coordinators' tokens by project."""


def name_of(number: int) -> str:
    """An organization's name."""
    return f"org-{number:03}"


def plan_members(sizes: Sizes) -> dict[int, tuple[str, ...]]:
    """Say who takes part in which project: each organization in `projects_each`, all projects alike."""
    places: dict[int, list[str]] = {project: [] for project in range(sizes.projects)}
    for number in range(sizes.organizations):
        for step in range(sizes.projects_each):
            places[(number + step) % sizes.projects].append(name_of(number))
    return {project: tuple(members) for project, members in places.items()}


async def gather(line: Line, operator: str, sizes: Sizes) -> Consortium:
    """Create everything and wait until the bases are inspected."""
    tokens: dict[str, str] = {}

    async def enter(name: str) -> None:
        require(await line.ask("PUT", f"/v1/organizations/{name}", operator), *CREATED, what=name)
        tokens[name] = await _token(line, operator, name, "participant")

    await asyncio.gather(*(enter(name_of(number)) for number in range(sizes.organizations)))
    projects, members, coordinators = [], {}, {}
    for number, joined in plan_members(sizes).items():
        token = await _token(line, operator, joined[0], "coordinator")
        project = await _begin(line, token, f"{joined[0]}.project-{number}", number, sizes)
        await asyncio.gather(
            *(_join(line, project, name, {"own": tokens[name], "coordinator": token}, joined[0]) for name in joined)
        )
        projects.append(project)
        members[project["id"]], coordinators[project["id"]] = joined, token
    return Consortium(tuple(projects), members, tokens, coordinators)


def contributions(consortium: Consortium, sizes: Sizes) -> Iterator[tuple[str, str, Upload]]:
    """Yield each contribution that is to be made, with its project and organization."""
    for number, project in enumerate(consortium.projects):
        for position, name in enumerate(consortium.members[project["id"]]):
            seed = 1_000 * (number + 1) + position
            yield project["id"], name, make_contribution(project, name, seed, layers=sizes.layers)


async def _token(line: Line, operator: str, organization: str, role: str) -> str:
    body = {"organization": organization, "role": role}
    answer = require(await line.ask("POST", "/v1/tokens", operator, body), *CREATED, what=f"token of {organization}")
    token: str = answer.document["token"]
    return token


async def _begin(line: Line, token: str, project: str, seed: int, sizes: Sizes) -> Mapping[str, Any]:
    base, path = make_base(seed, layers=sizes.layers), f"/v1/projects/{project}"
    body = {"base": base.manifest.model_dump(mode="json"), "policy": POLICY.model_dump(mode="json")}
    created = require(await line.ask("PUT", path, token, body), *CREATED, what=project).document
    await send_parts(line, token, f"{path}/base", created["files"], base.files)
    require(await line.ask("POST", f"{path}/base/seal", token), HTTPStatus.OK, what=f"seal of {project}")
    while (found := await line.read(path, token))["state"] != "ready":  # noqa: ASYNC110 - it happens elsewhere
        await asyncio.sleep(0.1)
    return found


async def _join(line: Line, project: Mapping[str, Any], name: str, tokens: Mapping[str, str], coordinator: str) -> None:
    path, policy = f"/v1/projects/{project['id']}", project["policy"]
    if name != coordinator:
        require(await line.ask("PUT", f"{path}/participants/{name}", tokens["coordinator"]), *CREATED, what=name)
    signed = signed_acceptance(project["id"], name, policy["digest"], version=policy["version"])
    accepted = await line.ask(
        "PUT", f"{path}/acceptances/{policy['digest']}", tokens["own"], signed.model_dump(mode="json")
    )
    require(accepted, *CREATED, what=f"acceptance of {name}")
