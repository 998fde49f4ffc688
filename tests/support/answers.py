"""Answers to requests, given through the API as a client gives them."""

from collections.abc import Mapping
from typing import Any

from gramfuse_shared.contract.requests import Answer
from support.server_world import World

REQUESTS = "/v1/projects/acme.tweets/requests"


def give(world: World, answer: Answer, *, by: str | None = None, to: str | None = None) -> Any:
    """Put an answer, by default in its own organization's name and to its own request; return what the API says."""
    path = f"{REQUESTS}/{to or answer.request}/answers/{answer.organization}"
    return world.participant(by or answer.organization).put_document(path, answer)


def send(world: World, answer: Answer, content: bytes) -> Any:
    """Answer with a statistics file up to the seal; return what the API says of the seal."""
    announced = give(world, answer)
    assert announced.status_code in {200, 201}, announced.text
    member = world.participant(answer.organization)
    path = f"{REQUESTS}/{answer.request}/answers/{answer.organization}"
    member.put_files(path, announced.json(), {"statistics.safetensors": content})
    return member.post(f"{path}/seal")


def give_scores(world: World, request: str, organization: str, scores: Mapping[str | None, Mapping[str, float]]) -> Any:
    """Answer an evaluation: of each model, None being the organization's own, metrics on a hundred examples."""
    policy = world.coordinator("acme").get("/v1/projects/acme.tweets").json()["policy"]
    answer = {"project": "acme.tweets", "request": request, "organization": organization, "policy": policy}
    answer["scores"] = [{"model": model, "examples": 100, "metrics": metrics} for model, metrics in scores.items()]
    return world.participant(organization).put(f"{REQUESTS}/{request}/answers/{organization}", json=answer)
