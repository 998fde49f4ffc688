"""A project with a model about which its policy lets things be asked, such questions, and answers to them."""

from typing import Any

from safetensors.torch import save

from gramfuse_server.settings import Settings
from gramfuse_shared.contract.manifest import CollectorSettings
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.requests import Answer
from gramfuse_shared.contract.statistics_file import METADATA_KEY, StatisticsMetadata, gram_tensor_name
from gramfuse_shared.fusion.packing import pack
from support.answers import REQUESTS
from support.server_world import OPEN_POLICY, World, entry, make_tap
from support.worker_world import MEMBERS, InProcessWorker, be_ready, make_gram

PROJECT = "acme.tweets"
PATH = f"/v1/projects/{PROJECT}"
ALLOWING = OPEN_POLICY.model_copy(update={"requests": ("evaluate", "gram"), "minimum_evaluation_examples": 50})
COLLECTOR = CollectorSettings(collector_version="0.1.0")


def publish_policy(world: World, policy: Policy) -> int:
    """Make a policy the project's current one, accepted by all."""
    version = world.coordinator("acme").get(PATH).json()["policy"]["version"] + 1
    answer = world.coordinator("acme").put(f"{PATH}/policies/{version}", json=policy.model_dump(mode="json"))
    assert answer.status_code == 201, answer.text
    for member in MEMBERS:
        assert world.accept_policy(PROJECT, member).status_code == 201
    return version


def begin_merged(world: World, settings: Settings) -> None:
    """Play a beginning: three organizations whose model `first` may be asked about."""
    be_ready(world, settings)
    submitted = world.coordinator("acme").put(f"{PATH}/jobs/first", json={"recipe": {"merge_method": "linear"}})
    assert submitted.status_code == 201
    InProcessWorker(world, settings).run(PROJECT, "first")
    publish_policy(world, ALLOWING)


def ask(world: World, identifier: str = "eval-1", *, status: int = 201, by: str = "acme", **body: Any) -> Any:
    """Ask, by default for an evaluation of the model; return the answer of the API."""
    body = {"kind": "evaluate", "models": ["first"]} | body
    answer = world.coordinator(by).put(f"{REQUESTS}/{identifier}", json=body)
    assert answer.status_code == status, answer.text
    return answer


def policy_of(world: World) -> Any:
    """The project's current policy, as answers name it."""
    return world.coordinator("acme").get(PATH).json()["policy"]


def scores(*models: str | None, examples: int = 100, **metrics: float) -> list[dict[str, Any]]:
    """Scores of models in an answer."""
    return [{"model": model, "examples": examples, "metrics": metrics or {"f1": 0.5}} for model in models]


def evaluation(world: World, organization: str, request: str = "eval-1", **changes: Any) -> Answer:
    """An answer to an evaluation, some of it replaced."""
    document = {
        "project": PROJECT,
        "request": request,
        "organization": organization,
        "policy": policy_of(world),
        "scores": scores("first"),
    }
    return Answer.model_validate(document | changes)


def statistics(
    world: World,
    organization: str,
    request: str = "gram-1",
    *,
    seed: int = 7,
    tap: Any = None,
    content: bytes | None = None,
) -> tuple[Answer, bytes]:
    """An answer with a statistics file, and the file."""
    tap = tap or make_tap()
    base = world.coordinator("acme").get(PATH).json()["base"]
    metadata = StatisticsMetadata(base=base, collector=COLLECTOR, taps=(tap,))
    file = content or save(
        {gram_tensor_name(tap.name): pack(make_gram(seed))}, metadata={METADATA_KEY: metadata.model_dump_json()}
    )
    section = {"file": entry("statistics.safetensors", file), "taps": [tap], "collector": COLLECTOR}
    return evaluation(world, organization, request, scores=[], statistics=section), file
