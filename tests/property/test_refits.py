"""Properties of refits: whose answers a row or a shift hangs on, and that neither order nor shards change a result."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gramfuse.measuring.head import HeadStatistics
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.fusion.head import solve_head
from gramfuse_shared.fusion.products import ProductTerm
from gramfuse_shared.merging.execution import MemberReader, execute_task
from gramfuse_shared.merging.plan import LabelRows, Member
from gramfuse_shared.merging.refit_planning import plan_head
from gramfuse_shared.merging.streaming import LocalFile, TensorFile
from support.merging_cases import CPU, infos

LABELS, WIDTH = 4, 5
NAMES = frozenset({"classifier.weight", "classifier.bias"})
RECIPE = Recipe.model_validate({"merge_method": "head", "base_model": "first", "request": "head-1"})
TRAINED = st.none() | st.sets(st.integers(0, LABELS - 1))


def model_of(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (3, WIDTH), "classifier.weight": (LABELS, WIDTH), "classifier.bias": (LABELS,), "z": (7,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def statistics_of(seed: int) -> HeadStatistics:
    generator = torch.Generator().manual_seed(1000 + seed)
    rows = 20 + 7 * seed
    features, logits = (torch.randn(rows, width, generator=generator) for width in (WIDTH, LABELS))
    return HeadStatistics.of("classifier.weight", features, logits, {})


def refit(
    trained: list[set[int] | None], model: dict[str, torch.Tensor], holders: int, *, shard_bytes: int, order: int
) -> dict[str, torch.Tensor] | None:
    """Refit through files; None where no row has enough holders."""
    found = [statistics_of(number) for number in range(len(trained))]
    members = [
        Member(
            f"{number:02d}",
            str(number),
            1.0 + number,
            {},
            one.metadata.taps,
            labels=None if labels is None else LabelRows(NAMES, frozenset(labels)),
        )
        for number, (one, labels) in enumerate(zip(found, trained, strict=True))
    ]
    if not any(sum(labels is None or row in labels for labels in trained) >= holders for row in range(LABELS)):
        return None
    plan = plan_head(members[::order], infos(model), RECIPE, shard_bytes=shard_bytes, minimum_holders=holders)
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        save_file(model, folder / "model")
        origin = TensorFile.open(stack.enter_context(LocalFile(folder / "model")))
        readers = {}
        for number, one in enumerate(found):
            one.save(folder / str(number))
            file = TensorFile.open(stack.enter_context(LocalFile(folder / str(number))))
            readers[f"{number:02d}"] = MemberReader(origin, file)
        tensors: dict[str, torch.Tensor] = {}
        for task in plan.tasks:
            execute_task(plan, task.index, readers, origin, folder / task.file_name, device=CPU)
            tensors |= load_file(folder / task.file_name)
    return tensors


@settings(max_examples=25)
@given(
    trained=st.lists(TRAINED, min_size=1, max_size=4),
    holders=st.integers(1, 3),
    shard_bytes=st.sampled_from([60, 10_000]),
    order=st.sampled_from([1, -1]),
    seed=st.integers(0, 100),
)
def test_a_row_is_that_of_a_refit_of_those_alone_who_trained_it_or_stays(trained, holders, shard_bytes, order, seed):
    model = model_of(seed)
    after = refit(trained, model, holders, shard_bytes=shard_bytes, order=order)
    if after is None:
        return
    assert after.keys() == model.keys()
    assert all(torch.equal(after[name], model[name]) for name in ("a.weight", "z"))
    for row in range(LABELS):
        sharing = [number for number, labels in enumerate(trained) if labels is None or row in labels]
        if len(sharing) < holders:
            assert torch.equal(after["classifier.weight"][row], model["classifier.weight"][row])
            assert torch.equal(after["classifier.bias"][row], model["classifier.bias"][row])
            continue
        terms = []
        for number in sharing:
            one = statistics_of(number)
            scale = (1.0 + number) / one.rows
            terms.append(ProductTerm(one.gram.float(), one.product.float()[:, [row]], scale))
        alone = solve_head(terms, ridge=0.01)
        torch.testing.assert_close(after["classifier.weight"][row], alone.weight[0].float(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(after["classifier.bias"][row], alone.bias[0].float(), atol=1e-6, rtol=1e-5)
