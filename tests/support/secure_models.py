"""Small models summed in secret: from weights and statistics on disk to the merged model, every step the real one."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gramfuse.securing.words import words_of
from gramfuse_shared.contract.manifest import (
    BaseFile,
    BaseManifest,
    CollectorSettings,
    ContributionManifest,
    FileEntry,
    FisherSection,
    PolicyReference,
    StatisticsSection,
    WeightsSection,
)
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.scales_file import ScalesMetadata
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.merging.execution import execute_task
from gramfuse_shared.merging.reading import MemberReader
from gramfuse_shared.merging.ready_sums import plan_sums
from gramfuse_shared.merging.scales import Scales
from gramfuse_shared.merging.streaming import LocalFile, TensorFile
from gramfuse_shared.secure.planning import plan_session
from gramfuse_shared.secure.summands import Summands, mean_squares_of
from gramfuse_shared.secure.sums import summed_member, write_sums
from gramfuse_shared.secure.words import require_words
from support.merging_cases import CPU, Model, fisher_of, infos, save_statistics, taps_of
from support.secure_cohorts import Cohort
from support.secure_sessions import DIGEST, ORGANIZATIONS, public_identity

POLICY = Policy(methods=("linear", "regmean", "fisher"), scales=DIGEST)
FILE = FileEntry(name="weights.safetensors", bytes=1, sha256=DIGEST)


def base_manifest(base: Mapping[str, torch.Tensor]) -> BaseManifest:
    tensors = tuple(infos(base).values())
    files = (BaseFile(name="config.json", bytes=2, sha256=DIGEST), BaseFile(**dict(FILE), tensors=tensors))
    return BaseManifest(files=files)


def contribution_of(model: Model, organization: str, base: BaseManifest) -> ContributionManifest:
    floating = [info for info in infos(model.weights).values() if info.dtype != "I64"]
    statistics = None
    if model.taps:
        settings = CollectorSettings(collector_version="0")
        statistics = StatisticsSection(
            file=FILE.model_copy(update={"name": "statistics.safetensors"}), taps=taps_of(model), collector=settings
        )
    fisher = None
    if model.fisher:
        described = dict(fisher_of(model).metadata) | {"file": FILE.model_copy(update={"name": "fisher.safetensors"})}
        fisher = FisherSection(**{key: value for key, value in described.items() if key in FisherSection.model_fields})
    return ContributionManifest(
        project="acme.tweets",
        organization=organization,
        base=base.content_digest(),
        policy=PolicyReference(version=1, digest=POLICY.content_digest()),
        weights=WeightsSection(file=FILE, tensors=tuple(floating)),
        statistics=statistics,
        fisher=fisher,
    )


def session_of_models(
    base: Mapping[str, torch.Tensor], models: Sequence[Model], recipe: Recipe, **planned: object
) -> SessionManifest:
    manifest = base_manifest(base)
    contributions = [
        (contribution_of(model, name, manifest), public_identity(name), model.weight)
        for name, model in zip(ORGANIZATIONS, models, strict=False)
    ]
    return plan_session(
        "acme.tweets",
        "secure-1",
        recipe,
        contributions,
        manifest,
        scales=DIGEST,
        **({"scaled_taps": models[0].taps} | planned),
    )


def scales_of(model: Model, *, factor: float = 1.0) -> dict[str, torch.Tensor]:
    """Mean squares as a base model might have them on public text: those of one member, off by a factor."""
    return {name: factor * tap.rows.double().square().mean(0).clamp(min=1e-4) for name, tap in model.taps.items()}


def merge_in_secret(
    folder: Path,
    base: Mapping[str, torch.Tensor],
    models: Sequence[Model],
    recipe: Recipe,
    scales: Mapping[str, torch.Tensor],
    *,
    dropped: Sequence[str] = (),
    **planned: object,
) -> dict[str, torch.Tensor]:
    """Run a session of all five stages, of which `dropped` leave after their shares, and merge its sum."""
    session = session_of_models(base, models, recipe, **planned)
    cohort = Cohort.of(session, folder / "members", POLICY)
    with ExitStack() as stack:

        def opened(path: Path) -> TensorFile:
            return TensorFile.open(stack.enter_context(LocalFile(path)))

        def saved(name: str, tensors: Mapping[str, torch.Tensor]) -> TensorFile:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
            return opened(folder / name)

        folder.mkdir(parents=True, exist_ok=True)
        base_file = saved("base.safetensors", base)
        metadata = ScalesMetadata(
            base=DIGEST, collector_version="0", examples=1, clip=1.0, clip_percentile=50.0, taps=taps_of(models[0])
        )
        scales = mean_squares_of(session, Scales(metadata, scales))
        for name, model in zip(ORGANIZATIONS, models, strict=False):
            statistics = None
            if model.taps:
                save_statistics(model, folder / f"{name}.statistics.safetensors")
                statistics = opened(folder / f"{name}.statistics.safetensors")
            fisher = None
            if model.fisher:
                fisher_of(model).save(folder / f"{name}.fisher.safetensors")
                fisher = opened(folder / f"{name}.fisher.safetensors")
            files = MemberReader(saved(f"{name}.safetensors", model.weights), statistics, fisher)
            taps = {tap.name: tap for tap in taps_of(model)}
            described = contribution_of(model, name, base_manifest(base)).fisher
            cohort.members[name].write = words_of(
                session, Summands(session, name, files, base_file, taps, scales, described)
            )
        cohort.run(masked=[name for name in session.organizations if name not in dropped])
        words = {name: opened(path) for name, path in cohort.files.items()}
        for file in words.values():
            require_words(file, session)
        unmasking = cohort.unmasking()
        write_sums(folder / "sums.safetensors", session, unmasking, words, scales)
        sums = opened(folder / "sums.safetensors")
        member = summed_member(session, unmasking, infos(base), "sums")
        plan = plan_sums(member, infos(base), recipe)
        merged = {}
        for task in plan.tasks:
            target = folder / task.file_name
            execute_task(plan, task.index, {"sums": MemberReader(sums)}, base_file, target, device=CPU)
            merged |= load_file(target)
    return merged
