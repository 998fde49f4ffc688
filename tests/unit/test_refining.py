"""Blocks told from names, the steps of a refinement, and the loop against a coordinator's client that remembers."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from gramfuse.refining.blocks import block_of, parameters_of_blocks, plan_blocks
from gramfuse.refining.groups import plan_groups
from gramfuse.refining.planning import plan_steps, recipe_of_step
from gramfuse.refining.running import Refinement, RefinementProgress, measured_block, require_options_of_method
from gramfuse_shared.contract.http_api import Job, PolicyVersion, SubmittedJob
from gramfuse_shared.contract.manifest import BaseFile, BaseManifest, PolicyReference, TensorInfo
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.refits import layers_that_may_be_refit
from gramfuse_shared.contract.requests import Asked, RequestCreate, RequestInfo
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    ConfigurationError,
    ConflictError,
    NotFoundError,
    PolicyViolationError,
    RecipeInvalidError,
    RequestFailedError,
    RequestMalformedError,
)
from support.tiny_models import KINDS, example_batch, tiny_model

POLICY = Policy(requests=("gram",))
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def manifest(shapes: dict[str, tuple[int, ...]]) -> BaseManifest:
    tensors = tuple(TensorInfo(name=name, dtype="F32", shape=shape) for name, shape in shapes.items())
    files = (
        BaseFile(name="config.json", bytes=2, sha256="1" * 64),
        BaseFile(name="model.safetensors", bytes=5000, sha256="2" * 64, tensors=tensors),
    )
    return BaseManifest(files=files)


def numbered(*names: str) -> BaseManifest:
    return manifest({f"{name}.{part}.weight": (8, 8) for name in names for part in ("q", "k")})


# --- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "block"),
    [
        ("bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.0"),
        ("roberta.encoder.layer.11.output.LayerNorm.bias", "roberta.encoder.layer.11"),
        ("distilbert.transformer.layer.5.ffn.lin1.weight", "distilbert.transformer.layer.5"),
        ("deberta.encoder.layer.2.attention.self.in_proj.weight", "deberta.encoder.layer.2"),
        ("model.layers.31.mlp.gate_proj.weight", "model.layers.31"),
        ("encoder.block.1.layer.0.SelfAttention.q.weight", "encoder.block.1"),  # its sublayers are numbered, too
        ("transformer.h.3.mlp.c_fc.weight", "transformer.h.3"),
        ("classifier.out_proj.weight", "classifier.out_proj"),
        ("classifier.bias", "classifier"),
    ],
)
def test_a_parameter_belongs_to_the_block_of_the_first_number_in_its_name(parameter, block):
    assert block_of(parameter) == block


def test_a_block_is_all_its_parameters_and_no_others():
    names = ["a.1.q.weight", "a.1.q.bias", "a.1.norm.weight", "a.10.q.weight", "b.1.q.weight", "head.weight"]
    assert parameters_of_blocks(["a.1.q.weight"], names) == names[:3]
    assert parameters_of_blocks(["head.weight"], names) == ["head.weight"]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_come_in_the_order_in_which_the_model_runs_them_with_every_linear_of_theirs(kind):
    import torch  # noqa: PLC0415 - the other tests need none

    from gramfuse.measuring.layers import checkpoint_names, find_layers  # noqa: PLC0415

    model = tiny_model(kind)
    saved, parameters = checkpoint_names(model), dict(model.named_parameters())
    base = manifest({saved[name]: tuple(parameter.shape) for name, parameter in parameters.items() if name in saved})
    ran: dict[str, set[str]] = {}
    for layer in find_layers(model):
        for module in layer.modules:
            module.register_forward_pre_hook(
                lambda _module, _inputs, weight=layer.weight: ran.setdefault(block_of(weight), set()).add(weight)
            )
    with torch.no_grad():
        model(**example_batch(kind))
    blocks = plan_blocks(base, POLICY)
    expected = [name for name in ran if any(part.isdecimal() for part in name.split("."))]
    assert [block.name for block in blocks] == expected
    assert len(blocks) == (4 if kind == "t5" else 2)
    for block in blocks:
        assert ran[block.name] <= set(block.layers)


def test_the_tenth_block_comes_after_the_second_and_decoders_after_encoders():
    base = numbered("decoder.block.0", "encoder.block.10", "encoder.block.2", "encoder.block.0")
    names = [block.name for block in plan_blocks(base, POLICY)]
    assert names == ["encoder.block.0", "encoder.block.2", "encoder.block.10", "decoder.block.0"]


def test_heads_lone_layers_and_what_stays_at_home_are_no_blocks():
    shapes = {"layer.0.q.weight": (8, 8), "layer.0.k.weight": (8, 8), "layer.0.norm.weight": (8,)}
    others = {
        "classifier.0.weight": (8, 8),
        "classifier.2.weight": (3, 8),
        "project.0.weight": (8, 8),
        "pooler.dense.weight": (8, 8),
        "layer.0.rel_embeddings.weight": (9, 8),
    }
    policy = Policy(heads="shared", embeddings="average")
    (block,) = plan_blocks(manifest(shapes | others), policy)
    assert (block.name, block.layers) == ("layer.0", ("layer.0.k.weight", "layer.0.q.weight"))
    with pytest.raises(ArchitectureMismatchError, match="no numbered blocks"):
        plan_blocks(manifest(others), policy)


# --- groups of a refit -----------------------------------------------------------------------------------------------

SENDING = Policy(requests=("refit",), methods=("linear", "refit"), embedding_taps="send")
WITHHOLDING = SENDING.model_copy(update={"embedding_taps": "withhold"})


@pytest.mark.parametrize("kind", KINDS)
def test_groups_come_in_the_order_in_which_the_model_runs_them_and_none_reads_what_its_own_give(kind):
    import torch  # noqa: PLC0415 - the other tests need none

    from gramfuse.measuring.layers import checkpoint_names, find_layers  # noqa: PLC0415

    model = tiny_model(kind)
    saved, parameters = checkpoint_names(model), dict(model.named_parameters())
    base = manifest({saved[name]: tuple(parameter.shape) for name, parameter in parameters.items() if name in saved})
    blocks = plan_blocks(base, SENDING)
    layers = layers_that_may_be_refit(base, SENDING)
    groups = plan_groups(blocks, layers, SENDING)
    ran: list[str] = []
    for layer in find_layers(model):
        for module in layer.modules:
            module.register_forward_pre_hook(lambda _module, _inputs, weight=layer.weight: ran.append(weight))
    with torch.no_grad():
        model(**example_batch(kind))
    place = {weight: number for number, group in enumerate(groups) for weight in group.layers}
    # relative embeddings and keys of an encoder's output are read where they are, not in the order of the text
    order = [place[weight] for weight in dict.fromkeys(ran) if weight in place]
    assert order == sorted(order)
    assert place.keys() == {weight for block in blocks for weight in block.layers} & layers
    groups_of_a_block = [sum(group.name == block.name for group in groups) for block in blocks]
    assert groups_of_a_block == ([4, 4, 6, 6] if kind == "t5" else [4, 4])


def test_where_what_embeddings_feed_stays_the_first_group_of_each_stack_goes_with_the_second():
    names = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
    base = manifest({f"{stack}.layer.{n}.{name}.weight": (8, 8) for stack in "ab" for n in (0, 1) for name in names})
    blocks, layers = plan_blocks(base, WITHHOLDING), layers_that_may_be_refit(base, WITHHOLDING)
    assert [len(group.layers) for group in plan_groups(blocks, layers, WITHHOLDING)] == [2, 1, 1, 1, 1, 1, 1] * 2
    assert {len(group.layers) for group in plan_groups(blocks, layers, SENDING)} == {1}


def test_matrices_that_no_architecture_names_go_with_the_last_group_of_their_block():
    names = ("attention.self.query", "odd.matrix", "attention.output.dense")
    base = manifest({f"layer.{n}.{name}.weight": (8, 8) for n in (0, 1) for name in names})
    groups = plan_groups(plan_blocks(base, SENDING), layers_that_may_be_refit(base, SENDING), SENDING)
    assert [sorted(name.split(".", 2)[2] for name in group.layers) for group in groups] == [
        ["attention.self.query.weight"],
        ["attention.output.dense.weight", "odd.matrix.weight"],
    ] * 2
    (alone,) = plan_groups(plan_blocks(numbered("layer.0"), SENDING), ["layer.0.q.weight"], SENDING)
    assert alone.layers == ("layer.0.q.weight",)


# --- steps -----------------------------------------------------------------------------------------------------------


def steps(at_once: int | None, blocks: int = 3):
    base = numbered(*(f"layer.{number}" for number in range(blocks)))
    return plan_steps("first", "pp", plan_blocks(base, POLICY), at_once=at_once)


def test_each_step_measures_the_model_of_the_one_before_and_the_last_model_bears_the_name():
    assert [(step.origin, step.request, step.job) for step in steps(1)] == [
        ("first", "pp-1", "pp-1"),
        ("pp-1", "pp-2", "pp-2"),
        ("pp-2", "pp-3", "pp"),
    ]
    assert [len(step.layers) for step in steps(2)] == [4, 2]
    (alone,) = steps(None)
    assert (alone.origin, alone.job, len(alone.layers)) == ("first", "pp", 6)


def test_a_step_is_merged_as_the_model_was_that_it_began_with():
    step = steps(1)[0]
    first = Recipe.model_validate({"merge_method": "regmean", "parameters": {"alpha": 0.5, "ridge": 0.1}})
    recipe = recipe_of_step(step, "pp-1-retry-2", first)
    assert (recipe.base_model, recipe.request, recipe.parameters) == ("first", "pp-1-retry-2", first.parameters)
    assert recipe_of_step(step, "pp-1", first, alpha=1).parameters == first.parameters.model_copy(update={"alpha": 1.0})
    average = Recipe.model_validate({"merge_method": "linear", "parameters": {"alpha": 0.5}})
    assert recipe_of_step(step, "pp-1", average).parameters.alpha == 0.9
    with pytest.raises(RecipeInvalidError, match="between 0 and 1"):
        recipe_of_step(step, "pp-1", first, alpha=1.5)


def test_a_step_of_a_refit_has_the_first_merges_normalization_and_a_ridge_of_its_own():
    step = steps(1)[0]
    first = Recipe.model_validate({"merge_method": "regmean", "parameters": {"ridge": 0.1, "normalize": "rows"}})
    recipe = recipe_of_step(step, "pp-1", first, method="refit")
    assert (recipe.merge_method, recipe.base_model, recipe.request) == ("refit", "first", "pp-1")
    assert (recipe.parameters.ridge, recipe.parameters.normalize) == (0.01, "rows")
    assert recipe_of_step(step, "pp-1", first, method="refit", ridge=1).parameters.ridge == 1.0
    with pytest.raises(RecipeInvalidError, match="ridge above 0"):
        recipe_of_step(step, "pp-1", first, method="refit", ridge=0)


def test_what_belongs_to_the_other_method_is_refused():
    default = {"blocks_at_once": 1, "block": None, "weighting": "none", "alpha": None, "ridge": None}
    require_options_of_method("regmean", **default | {"blocks_at_once": 2, "alpha": 0.5})
    require_options_of_method("refit", **default | {"ridge": 0.1})
    changes = [{"blocks_at_once": None}, {"block": "own"}, {"weighting": "output_gradient"}, {"alpha": 0.5}]
    for method, change in [("regmean", {"ridge": 0.1}), *(("refit", change) for change in changes)]:
        with pytest.raises(ConfigurationError, match=f"by {method} has no"):
            require_options_of_method(method, **default | change)


def test_all_blocks_at_once_are_never_all_ones_own():
    assert measured_block(None, 1) == "own"
    assert measured_block("merged", 1) == "merged"
    assert measured_block(None, None) == "merged"
    with pytest.raises(ConfigurationError, match="organization's alone"):
        measured_block("own", None)


# --- the loop --------------------------------------------------------------------------------------------------------


@dataclass
class Coordinator:
    """The calls of the client that a refinement makes, with a server that forgets nothing; answers come at once."""

    policy_: Policy = POLICY
    asked: dict[str, RequestInfo] = field(default_factory=dict)
    submitted: dict[str, Recipe] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    ends: dict[str, str] = field(default_factory=dict)
    withheld: tuple[str, ...] = ()

    def job(self, _project: str, job: str) -> Job:
        if job == "refit":
            document = {"merge_method": "head", "base_model": "first", "request": "head-1"}
            return self._job(job, Recipe.model_validate(document))
        return self._job(job, Recipe.model_validate({"merge_method": "regmean", "parameters": {"alpha": 0.7}}))

    def policy(self, _project: str) -> PolicyVersion:
        return PolicyVersion(version=1, digest=self.policy_.content_digest(), policy=self.policy_, created_at=NOW)

    def base_manifest(self, _project: str) -> BaseManifest:
        return numbered("layer.0", "layer.1", "layer.2")

    def request(self, _project: str, request: str) -> RequestInfo:
        if request not in self.asked:
            raise NotFoundError(request)
        return self.asked[request]

    def pose(self, project: str, body: RequestCreate, *, request: str) -> RequestInfo:
        self.calls.append(f"ask {request} of {body.models[0]}")
        self.asked[request] = RequestInfo(
            id=request,
            project=project,
            kind=body.kind,
            models=body.models,
            layers=body.layers,
            block=body.block,
            state="open",
            policy=PolicyReference(version=1, digest="0" * 64),
            created_at=NOW,
            deadline=NOW,
            asked=(Asked(organization="globex", state="accepted"), Asked(organization="acme", state="awaited")),
        )
        return self.asked[request]

    def wait_for_request(self, _project: str, request: str, *, on_progress: Any) -> RequestInfo:
        on_progress(self.asked[request])
        state = self.ends.get(request, "complete")
        asked = [
            place.model_copy(update={"state": "accepted", "withheld": ("few_rows",) * (request in self.withheld)})
            for place in self.asked[request].asked
        ]
        self.asked[request] = self.asked[request].model_copy(update={"state": state, "asked": tuple(asked)})
        if state != "complete":
            raise RequestFailedError(request)
        return self.asked[request]

    def submit(self, _project: str, recipe: Recipe, *, job: str) -> SubmittedJob:
        is_new = job not in self.submitted
        assert self.submitted.setdefault(job, recipe) == recipe, "another recipe under the same id"
        self.calls.append(f"submit {job}")
        return SubmittedJob.model_validate(self._job(job, recipe).model_dump() | {"new": is_new})

    def retry(self, _project: str, job: str) -> None:
        self.calls.append(f"retry {job}")
        self.states[job] = "queued"

    def wait(self, _project: str, job: str, *, on_progress: Any) -> Job:
        done = self._job(job, self.submitted[job]).model_copy(update={"state": "succeeded", "progress": 1.0})
        on_progress(done)
        self.states[job] = "succeeded"
        return done

    def delete_model(self, _project: str, model: str) -> None:
        self.calls.append(f"delete {model}")

    def _job(self, job: str, recipe: Recipe) -> Job:
        document = {"id": job, "project": "acme.tweets", "state": self.states.get(job, "queued"), "stage": "x"}
        counts = {"attempt": 1, "progress": 0, "done_tasks": 0, "total_tasks": 1, "cohort": [], "created_at": NOW}
        return Job.model_validate(document | counts | {"recipe": recipe})


def refine(client: Any, **changes: Any) -> Job:
    settings: dict[str, Any] = {
        "project": "acme.tweets",
        "model": "first",
        "result": "pp",
        "blocks_at_once": 1,
        "block": "own",
        "weighting": "none",
        "alpha": None,
        "seconds": 3600,
        "keep": False,
        "method": "regmean",
        "ridge": None,
        "on_request": lambda _: None,
        "on_progress": lambda _: None,
        "on_known": lambda _: None,
    }
    return Refinement(client=client, **settings | changes).run()


def test_the_loop_asks_merges_and_goes_on_with_the_new_model_deleting_what_nothing_reads_any_more():
    client = Coordinator()
    told: list[str] = []
    shares: list[float] = []
    job = refine(
        client,
        on_request=lambda request: told.append(request.id),
        on_progress=lambda progress: shares.append(progress.share),
    )
    assert (job.id, job.state) == ("pp", "succeeded")
    assert client.calls == [
        "ask pp-1 of first", "submit pp-1",
        "ask pp-2 of pp-1", "submit pp-2", "delete pp-1",
        "ask pp-3 of pp-2", "submit pp", "delete pp-2",
    ]  # fmt: skip
    assert told == ["pp-1", "pp-2", "pp-3"]
    assert {request.block for request in client.asked.values()} == {"own"}
    assert [recipe.parameters.alpha for recipe in client.submitted.values()] == [0.7] * 3
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(1 / 12)  # one of two has answered, which is half of a third
    assert shares[-1] == 1


def test_layers_of_which_nothing_may_leave_somebody_stay_and_the_loop_goes_on_from_the_same_model():
    client = Coordinator(withheld=("pp-1",))
    told: list[RefinementProgress] = []
    assert refine(client, on_progress=told.append).id == "pp"
    assert client.calls == [
        "ask pp-1 of first",
        "ask pp-2 of first", "submit pp-2",
        "ask pp-3 of pp-2", "submit pp", "delete pp-2",
    ]  # fmt: skip
    (left,) = [seen for seen in told if seen.left]
    assert (left.step.number, left.share) == (1, 1 / 3)
    assert left.left == {"globex": ("few_rows",), "acme": ("few_rows",)}
    shares = [seen.share for seen in told]
    assert shares == sorted(shares)
    client.calls.clear()
    assert refine(client).id == "pp"  # as after an interruption
    assert not any(call.startswith("ask") for call in client.calls)


def test_the_result_bears_its_name_also_where_the_last_layers_stay():
    client = Coordinator(withheld=("pp-2", "pp-3"))
    assert refine(client).id == "pp"
    assert client.calls[-3:] == ["ask pp-3 of pp-1", "submit pp", "delete pp-1"]
    assert client.submitted["pp"].base_model == "pp-1"


def test_where_all_layers_stay_nothing_is_merged_and_the_error_says_who_withholds():
    client = Coordinator(withheld=("pp-1", "pp-2", "pp-3"))
    with pytest.raises(RequestFailedError, match="may leave acme, globex; the model stays as it is"):
        refine(client)
    assert client.submitted == {}


def test_a_model_whose_head_was_refit_is_merged_anew_as_it_was_merged_before():
    client = Coordinator()
    refine(client, model="refit")
    assert client.submitted["pp-1"].base_model == "refit"
    assert [recipe.parameters.alpha for recipe in client.submitted.values()] == [0.7] * 3


def test_the_same_call_again_asks_nothing_and_merges_nothing_anew():
    client = Coordinator()
    first = refine(client, keep=True)
    client.calls.clear()
    client.states.clear()
    known: list[str] = []
    assert refine(client, keep=True, seconds=60, on_known=known.append) == first
    assert known == ["pp-1", "pp-2", "pp"]
    assert client.calls == ["submit pp-1", "submit pp-2", "submit pp"]  # the same ids with the same recipes


def test_a_request_that_failed_is_asked_anew_and_a_job_that_failed_retried():
    client = Coordinator(ends={"pp-2": "failed"})
    with pytest.raises(RequestFailedError):
        refine(client)
    client.states["pp-1"] = "failed"
    client.calls.clear()
    assert refine(client).id == "pp"
    assert client.calls[:5] == ["submit pp-1", "retry pp-1", "ask pp-2-retry-2 of pp-1", "submit pp-2", "delete pp-1"]
    assert client.submitted["pp-2"].request == "pp-2-retry-2"
    again = client.calls.copy()
    refine(client)
    assert not any(call.startswith("ask") for call in client.calls[len(again) :])


def test_a_request_of_the_same_name_that_asks_something_else_is_a_conflict():
    client = Coordinator()
    refine(client)
    with pytest.raises(ConflictError, match="pp-1 asks something else"):
        refine(client, block="merged")


def test_what_the_policy_does_not_allow_is_refused_before_anything_is_asked():
    client = Coordinator(policy_=Policy())
    with pytest.raises(PolicyViolationError, match="no requests"):
        refine(client)
    assert client.calls == []


def test_a_result_whose_steps_would_have_no_names_is_refused_at_once():
    client = Coordinator()
    with pytest.raises(RequestMalformedError, match="cannot be the name"):
        refine(client, result="p" * 60)
    assert client.calls == []


def test_a_refit_goes_on_where_it_was_too():
    policy = Policy(requests=("refit",), methods=("linear", "refit"))
    client = Coordinator(policy_=policy, ends={"pp-2": "failed"})
    with pytest.raises(RequestFailedError):
        refine(client, method="refit", block="merged")
    assert refine(client, method="refit", block="merged", keep=True).id == "pp"
    assert [call for call in client.calls if call.startswith("ask")] == [
        "ask pp-1 of first",
        "ask pp-2 of pp-1",
        "ask pp-2-retry-2 of pp-1",
        "ask pp-3 of pp-2",
    ]
    assert {request.kind for request in client.asked.values()} == {"refit"}
    assert {recipe.merge_method for recipe in client.submitted.values()} == {"refit"}
    with pytest.raises(PolicyViolationError, match="not gram"):
        refine(client, result="other")


def test_a_step_without_request_and_job_counts_for_nothing():
    assert RefinementProgress(steps(1)[1]).share == pytest.approx(1 / 3)
