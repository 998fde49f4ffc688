"""Commands about the organization's identity key: create, show."""

import typer

from gramfuse.cli import output
from gramfuse.config import Home
from gramfuse.identity import Identity, create_identity, load_identity

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The key that signs in your organization's name.")


@app.command()
def create() -> None:
    """Make your organization's identity key, unless there is one. `project join` does so too on first use.

    It lies in GRAMFUSE_HOME and never leaves. Keep a copy where you keep secrets: nobody can restore it.

    Example: gramfuse identity create
    """
    identity, new = create_identity(Home.default())
    _show(identity, "created" if new else "kept")


@app.command()
def show() -> None:
    """Show the fingerprint of your identity key. Tell it to the others out of band: they compare it with the server's.

    Example: gramfuse identity show
    """
    _show(load_identity(Home.default()), None)


def _show(identity: Identity, state: str | None) -> None:
    document = {"fingerprint": identity.fingerprint, "public_key": identity.public, "file": str(identity.path)}
    rows = [
        ("fingerprint", identity.fingerprint),
        ("public key", identity.public),
        ("private key", str(identity.path) + ("" if state is None else f" ({state})")),
    ]
    output.show(document, output.table(("", ""), rows))
