"""A compressed contribution through the service, beside two that are not."""

import pytest
from safetensors.torch import load_file

import gramfuse
from gramfuse_shared.errors import JobFailedError
from support import collaboration

ORGANIZATIONS = ("umbrella", "hooli", "initrode")


def test_one_that_travels_by_half_merges_with_others_and_is_refused_where_rounding_would_matter(deployment, tmp_path):
    several_merges = collaboration.POLICY.model_copy(update={"cohorts": "open"})
    together = collaboration.begin(deployment, ORGANIZATIONS, policy=several_merges)
    coordinator, *others = together.desks
    collaboration.contribute(together)
    with coordinator.client() as client:
        client.submit(together.project, gramfuse.Recipe(merge_method="regmean"), job="exact")
        client.wait(together.project, "exact", timeout=120)
        exact = load_file(client.pull(together.project, "exact", tmp_path / "exact") / "model.safetensors")

    small = others[0].folder / "small"
    others[0].gramfuse(
        *("contribution", "compress", "--model", "tuned", "--base", "base"),
        *("--statistics", "statistics.safetensors", "--out", "small"),
    )
    pushed = others[0].json(
        *("contribution", "push", together.project, "--model", str(small), "--yes"),
        *("--statistics", str(small / "statistics.safetensors")),
    )
    assert pushed["state"] == "accepted"
    with coordinator.client() as client:
        before = max(client.contributions(together.project, organization="hooli"), key=lambda found: found.bytes)
        assert pushed["bytes"] < 0.6 * before.bytes
        client.submit(together.project, gramfuse.Recipe(merge_method="regmean"), job="rounded")
        client.wait(together.project, "rounded", timeout=120)
        rounded = load_file(client.pull(together.project, "rounded", tmp_path / "rounded") / "model.safetensors")
        assert rounded.keys() == exact.keys()
        for name, value in exact.items():
            assert float((rounded[name] - value).norm()) <= 2**-8 * float(value.norm()), (
                name
            )  # a bias that was 0 is all difference
        assert any(float((rounded[name] - value).norm()) > 0 for name, value in exact.items())

        recipe = gramfuse.Recipe.model_validate({"merge_method": "regmean", "parameters": {"alpha": 1.0}})
        client.submit(together.project, recipe, job="unrounded")
        with pytest.raises(JobFailedError, match="rounded to int16"):
            client.wait(together.project, "unrounded", timeout=120)
