"""Whatever is sent to whichever operation, by whomever: no 5xx, and every answer is as the OpenAPI document says."""

import threading
import time

import hypothesis
import pytest
import requests
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, Verbosity, given
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 8
IDENTITIES = {
    "anonymous": None,
    "operator": (None, "operator"),
    "coordinator": ("acme", "coordinator"),
    "participant": ("globex", "participant"),
}
SETTINGS = hypothesis.settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    verbosity=Verbosity.normal,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def url(world):
    """The address of a real server that runs the world's app."""
    server = uvicorn.Server(uvicorn.Config(world.app, port=0, log_config=None, access_log=False, http="httptools"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def known(world):
    """Ids of things that exist, by the name of the path parameter."""
    project = world.project("acme", "globex")
    world.contribute(project, "acme", accept=True)
    contribution = world.contribute(project, "globex", accept=True)
    job = {"recipe": {"merge_method": "regmean"}}
    assert world.coordinator("acme").put("/v1/projects/acme.tweets/jobs/regmean-1", json=job).status_code == 201
    world.coordinator("acme").post("/v1/projects/acme.tweets/jobs/regmean-1/cancel")
    return {
        "project": "acme.tweets",
        "organization": "globex",
        "contribution": contribution.id,
        "file": "weights.safetensors",
        "number": 0,
        "job": "regmean-1",
        "model": "regmean-1",
        "version": 1,
        "policy_digest": project["policy"]["digest"],
        "token": world.token("globex", "coordinator").split("_")[1],
    }


@pytest.mark.timeout(240)
@pytest.mark.parametrize("identity", IDENTITIES)
def test_every_answer_is_as_documented(world, url, known, identity):
    token = world.token(*IDENTITIES[identity]) if IDENTITIES[identity] else None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    schema = schemathesis.openapi.from_dict(world.app.openapi())
    count = 0
    with requests.Session() as session:
        for result in schema.get_all_operations():
            operation = result.ok()
            if operation.path.endswith("/events"):
                continue  # its answer does not end while a job is unfinished; tested with the jobs
            require_documented_answers(operation, known, url, session, headers)
            count += 1
    assert count > 30


def require_documented_answers(operation, known, url, session, headers):
    names = {parameter.name for parameter in operation.path_parameters}
    seeded = {name: known[name] for name in names & known.keys()}
    # what exists, with a body as documented; and anything
    cases = st.one_of(operation.as_strategy(path_parameters=seeded), operation.as_strategy())

    @SETTINGS
    @given(case=cases)
    def run(case):
        case.call_and_validate(base_url=url, session=session, headers=headers, checks=CHECKS, timeout=10)

    run()
