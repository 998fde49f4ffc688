"""What comes out of masked words is the plain merge: below 1e-10 of how far members are apart, in float64."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from support.merging_cases import merge_models, random_models, recipe_of
from support.secure_models import merge_in_secret, scales_of
from support.secure_sessions import ORGANIZATIONS


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**20),
    members=st.sampled_from([3, 4, 5]),
    drops=st.booleans(),
    method=st.sampled_from(["linear", "regmean"]),
    alpha=st.sampled_from([0.0, 0.5, 0.9, 0.95]),
    normalize=st.sampled_from(["equal", "rows"]),
    ridge=st.sampled_from([0.0, 0.1]),
    factor=st.sampled_from([0.2, 1.0, 30.0]),
)
def test_a_sum_in_secret_merges_as_the_members_do_in_the_open(
    seed, members, drops, method, alpha, normalize, ridge, factor
):
    base, models = random_models(seed, members=members)
    base = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in base.items()}
    parameters = {"alpha": alpha, "normalize": normalize, "ridge": ridge} if method == "regmean" else {}
    recipe = recipe_of(method, dtype="float64", **parameters)
    dropped = ORGANIZATIONS[1:2] if drops and members > 3 else ()
    remaining = [model for name, model in zip(ORGANIZATIONS, models, strict=False) if name not in dropped]
    scales = scales_of(models[0], factor=factor)
    with tempfile.TemporaryDirectory() as folder:
        found = merge_in_secret(Path(folder) / "secret", base, models, recipe, scales, dropped=dropped)
        plain = merge_models(Path(folder) / "open", remaining, base, recipe).tensors
    assert found.keys() == plain.keys()
    for name, expected in plain.items():
        if expected.is_floating_point():
            apart = (remaining[0].weights[name].double() - remaining[1].weights[name].double()).norm()
            assert (found[name] - expected).norm() < 1e-10 * apart, name
