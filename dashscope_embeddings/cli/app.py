"""The command line `dashscope-embeddings`: its entry point, and what it is without a command."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import dashscope_embeddings

try:
    import typer

    from dashscope_embeddings.cli import batch as cli_batch
    from dashscope_embeddings.cli import check, common, embed, emulator, models
    from dashscope_embeddings.cli.demo import command as demo
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] not in {"typer", "rich"}:
        raise
    _is_installed = False
else:
    _is_installed = True

_CLI_INSTALL_COMMAND = 'pip install "dashscope-embeddings[cli]"'


def _print_version(value: bool) -> None:  # noqa: FBT001 - as typer calls it
    if value:
        typer.echo(f"dashscope-embeddings {dashscope_embeddings.__version__}")
        raise typer.Exit


def version(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Text embeddings of Alibaba Cloud Model Studio (DashScope): embed files, search, look up models, emulate."""


def main() -> None:
    """The entry point of `dashscope-embeddings`."""
    if not _is_installed:
        sys.exit(f"the command line needs typer and rich: {_CLI_INSTALL_COMMAND}")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Replace characters that the terminal cannot encode, as standard error does by default.
        sys.stdout.reconfigure(errors="replace")
    app()


if _is_installed:
    app = common.make_app([demo.demo, embed.embed, models.models, check.check, emulator.emulator])
    app.callback()(version)
    app.add_typer(cli_batch.app, name="batch")
