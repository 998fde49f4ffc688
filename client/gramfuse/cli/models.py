"""Commands about merged models: list, show, pull, verify, delete."""

from pathlib import Path
from typing import Annotated

import typer

from gramfuse.cli import output, session
from gramfuse.cli.asking import require_confirmed
from gramfuse.cli.projects import ProjectArgument
from gramfuse.units import format_bytes

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="The model's id, which is its job's.")]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List, pull, verify and delete merged models.")


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
            "deleted" if model.deleted_at else "",
            ", ".join(model.withdrawn_members),
        )
        for model in models
    ]
    columns = ("model", "method", "size", "created", "state", "withdrawn since")
    output.show(models, output.table(columns, rows, right=(2,)))


@app.command()
def pull(
    project: ProjectArgument,
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(help="A new folder, for from_pretrained.")],
) -> None:
    """Fetch a merged model and verify it: receipt, signature by the pinned key, digests. Running it again resumes.

    The folder appears only when everything in it is verified.

    Example: gramfuse model pull acme.tweets regmean-1 merged
    """
    from gramfuse.cli import bars  # noqa: PLC0415 - only where this command runs

    with session.open_client() as client, bars.transfer() as on_progress:
        pulled = client.pull(project, model, folder, on_progress=on_progress)
    output.show(
        {"folder": str(pulled)},
        lambda console: console.print(f"{model} verified in {pulled}; load it with from_pretrained", markup=False),
    )


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A pulled model's folder.")],
    key: Annotated[
        str | None,
        typer.Option("--key", help="The server's receipt key, base64. Default: the keys pinned at first use."),
    ] = None,
) -> None:
    """Verify a pulled model offline: signature, digests of all files, nothing missing, nothing spare.

    Example: gramfuse model verify merged
    """
    from gramfuse.verification import verify as verify_folder  # noqa: PLC0415 - only where this command runs

    found = verify_folder(folder, trusted_keys=None if key is None else {key: "the given key"})
    members = ", ".join(sorted(member.organization for member in found.receipt.contributions))
    output.show(
        {"receipt": found.receipt, "signer": found.signer, "files": found.files, "bytes": found.bytes},
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
