"""Commands about merged models: list, show, pull, report, attach a head, export an adapter, verify, delete."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gramfuse.cli import output, session
from gramfuse.cli.arguments import ProjectArgument
from gramfuse.cli.asking import require_confirmed
from gramfuse.cli.devices import Device
from gramfuse.extras import EXTRAS
from gramfuse.naming import name_patterns
from gramfuse_shared.extras import requiring_extras
from gramfuse_shared.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from gramfuse.adapters.exported import ExportedAdapter
    from gramfuse.heads.attaching import PersonalModel
    from gramfuse.participation import Client
    from gramfuse_shared.contract.http_api import Model
    from gramfuse_shared.contract.policy import Policy

RECEIPT_FILE: Final = "receipt.json"

_SIGNED: Final = {
    "own": "you",
    "verified": "signed, key verified",
    "not compared": "signed, key not compared",
    "not signed": "not signed",
}

HeadOption = Annotated[
    Path | None,
    typer.Option("--head-from", help="Your own fine-tuned from_pretrained folder, whose task head is attached."),
]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="The model's id, which is its job's.")]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List, show, pull, verify and delete merged models.")


@app.command(name="list")
def list_(project: ProjectArgument) -> None:
    """List a project's merged models.

    Example: gramfuse model list acme.tweets
    """
    with session.open_client() as client:
        models = client.models(project)
    rows = [
        (
            model.id,
            model.receipt.receipt.recipe.merge_method,
            format_bytes(model.bytes),
            f"{model.created_at:%Y-%m-%d %H:%M}",
            _state(model),
            ", ".join(model.withdrawn_members),
        )
        for model in models
    ]
    columns = ("model", "method", "size", "created", "state", "withdrawn since")
    output.show(models, output.table(columns, rows, right=(2,)))


@app.command()
def show(project: ProjectArgument, model: ModelArgument) -> None:
    """Show a merged model: state, how and of whose contributions it was merged, its files.

    Example: gramfuse model show acme.tweets regmean-1
    """
    with session.open_client() as client:
        found = client.model(project, model)
    signed = found.receipt.receipt
    rows = [
        ("model", f"{found.id} of {found.project}"),
        ("state", _state(found) + (f": {found.release.reason}" if found.release and found.release.reason else "")),
        ("merge", f"{signed.recipe.merge_method} of {len(signed.contributions)}"),
        ("created", f"{found.created_at:%Y-%m-%d %H:%M}"),
        ("policy", f"version {signed.policy.version}"),
        *_list("contributions", [f"{one.organization} {one.manifest[:16]}" for one in signed.contributions]),
        *_list("withdrawn since", found.withdrawn_members),
        *_list("files", [f"{file.name} {format_bytes(file.bytes)}" for file in found.files]),
    ]
    output.show(found, output.table(("", ""), rows))


@app.command()
def pull(
    project: ProjectArgument,
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(help="A new folder, for from_pretrained.")],
    head_from: HeadOption = None,
) -> None:
    """Fetch a merged model and verify it: receipt, signature by the pinned key, digests. Running it again resumes.

    The folder appears only when everything in it is verified. What a policy's release gate holds back is not fetched.
    With --head-from a second folder, FOLDER-with-head, gets
    the same model with your own task head, which never left (heads: private).

    Examples: gramfuse model pull acme.tweets regmean-1 merged · the same with --head-from tuned
    """
    from gramfuse.cli import bars  # noqa: PLC0415 - only where this command runs

    with session.open_client() as client:
        with bars.transfer() as on_progress:
            pulled = client.pull(project, model, folder, on_progress=on_progress)
        personal = None
        if head_from is not None:
            out = pulled.with_name(f"{pulled.name}-with-head")
            personal = _attach(pulled, head_from, out, _policy_of(client, pulled), overwrite=False)

    def render(console: "Console") -> None:
        console.print(f"{model} verified in {pulled}; load it with from_pretrained", markup=False)
        if personal is not None:
            console.print(_told(personal), markup=False)

    output.show({"folder": str(pulled)} | ({} if personal is None else {"with_head": _json(personal)}), render)


@app.command()
def report(
    project: ProjectArgument,
    model: ModelArgument,
    out: Annotated[Path | None, typer.Option("--out", help="A Markdown file to write; it is replaced.")] = None,
) -> None:
    """Report on a merged model: how it was made, its layers, and the scores of every complete evaluation of it.

    Before and after: each organization's own model beside the merged one. The model's card never changes, so it has no
    scores; this report has.

    Examples: gramfuse model report acme.tweets regmean-1 --out report.md · the same with --format json
    """
    with session.open_client() as client:
        found = client.report(project, model)
    if out is not None:
        from gramfuse.whole_files import written_whole  # noqa: PLC0415 - only where a file is written

        with written_whole(out, private=False) as stream:
            stream.write(found.to_markdown().encode())
    text = found.to_markdown().rstrip() if out is None else f"{model}: reported in {out}"
    output.show(found.to_json(), lambda console: console.print(text, markup=False))


@app.command(name="attach-head")
def attach_head(
    merged: Annotated[Path, typer.Argument(help="The merged model's folder, as it was pulled.")],
    out: Annotated[Path, typer.Argument(help="A new folder, for from_pretrained.")],
    head_from: Annotated[Path, typer.Option("--head-from", help="Your own fine-tuned from_pretrained folder.")],
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="The project's policy, which says what a head is; default: asked of the server."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT where an earlier attach-head wrote it.")
    ] = False,
) -> None:
    """Write a merged model with your own task head into a new folder. Offline, but for the policy; nothing leaves.

    The merged folder is verified first and stays as it is: no receipt covers the new one, whose gramfuse-head.json says
    what in it is yours. Class and labels are those of your own config.json: your task may be another than the base's.

    Example: gramfuse model attach-head merged mine --head-from tuned
    """
    from gramfuse.cli.policies import read_policy  # noqa: PLC0415 - only where this command runs

    rules = None if policy is None else read_policy(policy)
    if rules is None and (merged / RECEIPT_FILE).exists():
        with session.open_client() as client:
            rules = _policy_of(client, merged)
    done = _attach(merged, head_from, out, rules, overwrite=overwrite)
    output.show(_json(done), lambda console: console.print(_told(done), markup=False))


@app.command()
def export_adapter(
    merged: Annotated[Path, typer.Argument(help="A merged model's folder.")],
    base: Annotated[Path, typer.Option("--base", help="The base model's folder.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder for the adapter.")],
    rank: Annotated[int | None, typer.Option(min=1, help="Largest rank of a layer. Default: 16.")] = None,
    energy: Annotated[
        float | None, typer.Option(max=1.0, help="In place of a rank: the share of each difference's energy to keep.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to decompose.")] = Device.AUTO,
) -> None:
    """Write a merged model as a PEFT LoRA adapter of its base, and say how much of the merge its rank loses. Offline.

    Load it with peft.PeftModel.from_pretrained(base, folder). No receipt covers it.

    Examples: gramfuse model export-adapter merged --base base --rank 16 --out adapter · the same with --energy 0.99
    """
    from gramfuse.cli import bars  # noqa: PLC0415 - only where this command runs

    with requiring_extras("`gramfuse model export-adapter`", EXTRAS):
        from gramfuse.adapters.exporting import export_adapter as export  # noqa: PLC0415 - torch is an extra

    with bars.reading("Decomposing") as on_progress:
        done = export(merged, base, out, rank=rank, energy=energy, device=device.value, on_progress=on_progress)
    output.show({"folder": str(done.path), **done.to_json()}, lambda console: _show_export(done, console))


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A pulled model's folder.")],
    key: Annotated[
        str | None,
        typer.Option("--key", help="The server's receipt key, base64. Default: the keys pinned at first use."),
    ] = None,
) -> None:
    """Verify a pulled model offline: signatures, digests of all files, nothing missing, nothing spare.

    The server signed the receipt, each organization its contribution; whose key nobody compared is told
    (`gramfuse roster verify`).

    Example: gramfuse model verify merged
    """
    from gramfuse.verification import verify as verify_folder  # noqa: PLC0415 - only where this command runs

    found = verify_folder(folder, trusted_keys=None if key is None else {key: "the given key"})
    members = ", ".join(f"{name} ({_SIGNED[how]})" for name, how in sorted(found.contributions.items()))
    output.show(
        {
            "receipt": found.receipt,
            "signer": found.signer,
            "files": found.files,
            "bytes": found.bytes,
            "contributions": found.contributions,
        },
        lambda console: console.print(
            f"verified: {found.receipt.project}/{found.receipt.model}, {found.files} files, "
            f"{format_bytes(found.bytes)}, signed by {found.signer}, merged from {members}",
            markup=False,
        ),
    )


@app.command()
def delete(
    project: ProjectArgument,
    model: ModelArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without being asked.")] = False,
) -> None:
    """Delete a model's files (coordinator); its receipt stays.

    Example: gramfuse model delete acme.tweets regmean-1
    """
    require_confirmed(f"Delete the files of {project}/{model} for everybody?", yes=yes)
    with session.open_client() as client:
        deleted = client.delete_model(project, model)
    output.show(deleted, lambda console: console.print(f"deleted: {model}; its receipt stays", markup=False))


def _show_export(done: "ExportedAdapter", console: "Console") -> None:
    rows = [
        (layer.tensor, f"{layer.rank} of {layer.full_rank}", f"{layer.error:.2%}")
        for layer in sorted(done.layers, key=lambda layer: -layer.error)
    ]
    output.table(("linear layer", "rank", "lost"), rows, right=(1, 2))(console)
    lines = [f"{done.path}: an adapter of {format_bytes(done.bytes)}; of the merge it loses {done.error:.2%}"]
    if done.whole:
        lines.append(f"  {len(done.whole)} tensors besides are held exactly, in whole size")
    lines += [f"  left out: {entry.tensor}: {entry.reason}" for entry in done.left_out]
    console.print("\n".join(lines), markup=False)


def _policy_of(client: "Client", merged: Path) -> "Policy":
    """Ask for the policy that a pulled model's receipt names; attaching verifies both.

    Raises:
        ModelNotReleasedError: it has a release gate, which the model has not passed.
    """
    from gramfuse.contributing.loading import read_document  # noqa: PLC0415 - only where these commands run
    from gramfuse.merges import require_released  # noqa: PLC0415
    from gramfuse_shared.contract.receipt import RECEIPT_FILE_NAME, SignedReceipt  # noqa: PLC0415

    receipt = SignedReceipt.parse(read_document(merged / RECEIPT_FILE_NAME)).receipt
    policy = client.policy(receipt.project, receipt.policy.version).policy
    if policy.release is not None:
        require_released(client.model(receipt.project, receipt.model))
    return policy


def _list(name: str, items: "Sequence[str]") -> list[tuple[str, str]]:
    return [(name if number == 0 else "", item) for number, item in enumerate(items)]


def _state(model: "Model") -> str:
    if model.deleted_at is not None:
        return "deleted"
    return "published" if model.release is None else model.release.state


def _attach(merged: Path, head_from: Path, out: Path, policy: "Policy | None", *, overwrite: bool) -> "PersonalModel":
    from gramfuse.cli import bars  # noqa: PLC0415 - only where these commands run
    from gramfuse.heads.attaching import attach_head as attach  # noqa: PLC0415

    with bars.reading("Attaching") as on_progress:
        return attach(merged, head_from, out, policy=policy, overwrite=overwrite, on_progress=on_progress)


def _told(done: "PersonalModel") -> str:
    own = ", ".join(name_patterns(done.plan.own))
    return f"{done.path} is the same model with your own {own}; load it with from_pretrained. It stays with you"


def _json(done: "PersonalModel") -> dict[str, Any]:
    plan = done.plan
    return {"folder": str(done.path), "own": plan.own, "merged": plan.merged, "left_out": plan.left_out}
