"""The command line `dashscope-embeddings`: its entry point, and the commands demo and models."""

from __future__ import annotations

import importlib.metadata
import io
import sys
from pathlib import Path
from typing import Annotated

from dashscope_embeddings.catalogue import DEFAULT_MODEL
from dashscope_embeddings.cli.demo import NoTextError, Store
from dashscope_embeddings.errors import InvalidInput

try:
    import typer

    from dashscope_embeddings.cli import batch as cli_batch
    from dashscope_embeddings.cli import check, common, embed, emulator
    from dashscope_embeddings.cli import models as cli_models
    from dashscope_embeddings.cli.demo import screen
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] not in {"typer", "rich"}:
        raise
    _is_installed = False
else:
    _is_installed = True

_CLI_INSTALL_COMMAND = 'pip install "dashscope-embeddings[cli]"'
_DEMO_INSTALL_COMMAND = 'pip install "dashscope-embeddings[cli,langchain,llama-index,qdrant]"'

# --- demo --------------------------------------------------------------------------------------------------


def _parse_store(name: str) -> Store:
    try:
        return Store(name)
    except ValueError:
        common.fail(f"--store {name}: expected {' or '.join(Store)}", common.EXIT_USAGE)


def demo(  # noqa: PLR0913 - one for each option
    folder: Annotated[
        Path | None,
        typer.Argument(
            show_default=False,
            help="Search the .txt and .md files in here, at any depth, or this one. Default: Python's own help topics.",
        ),
    ] = None,
    *,
    query: Annotated[
        list[str] | None, typer.Option("--query", "-q", help="Question to ask; may be given several times.")
    ] = None,
    live: Annotated[
        bool,
        typer.Option("--live", help="Use the service, not the emulator: needs DASHSCOPE_API_KEY, and bills."),
    ] = False,
    model: Annotated[str, typer.Option(help="See the command models.")] = DEFAULT_MODEL,
    dimensions: Annotated[
        int | None, typer.Option(min=1, show_default="the model's", help="Floats in a dense vector.")
    ] = None,
    store: Annotated[
        Store,
        typer.Option(
            parser=_parse_store,
            metavar="|".join(Store),
            help="Vector store of both frameworks: their own in memory, or Qdrant's local mode.",
        ),
    ] = Store.MEMORY,
    k: Annotated[int, typer.Option("-k", min=1, max=50, help="Hits to show of each ranking.")] = 3,
) -> None:
    """Search real text with LangChain and LlamaIndex: dense, sparse and fused.

    Offline and without a key, unless --live is given.

    Exit codes: 0 searched, 1 a request failed, 2 wrong use.
    """
    try:
        options = screen.DemoOptions(folder, query or (), model, dimensions, k, live, store)
        screen.run_demo(options, common.console(), common.console(stderr=True))
    except NoTextError as error:
        common.fail(str(error), common.EXIT_USAGE)
    except InvalidInput as error:
        common.fail(str(error).replace('pass base_url="emulator"', "leave out --live"), common.EXIT_USAGE)
    except ImportError as missing:
        common.fail(f"the demo lacks a package: {_DEMO_INSTALL_COMMAND} ({missing})")


# --- models ------------------------------------------------------------------------------------------------


def models(
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table for GitHub.")] = False,
) -> None:
    """Show the limits, dimensions and prices of each model, with their sources."""
    if markdown:
        typer.echo(cli_models.models_markdown())
        return
    common.console().print(*cli_models.models(), sep="\n")


# --- version -----------------------------------------------------------------------------------------------


def _print_version(value: bool) -> None:  # noqa: FBT001 - as typer calls it
    if value:
        typer.echo(f"dashscope-embeddings {importlib.metadata.version('dashscope-embeddings')}")
        raise typer.Exit


def version(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Text embeddings of Alibaba Cloud Model Studio (DashScope): embed files, search, look up models, emulate."""


# --- all commands ------------------------------------------------------------------------------------------


def main() -> None:
    """The entry point of `dashscope-embeddings`."""
    if not _is_installed:
        sys.exit(f"the command line needs typer and rich: {_CLI_INSTALL_COMMAND}")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Replace characters that the terminal cannot encode, as standard error does by default.
        sys.stdout.reconfigure(errors="replace")
    app()


if _is_installed:
    app = common.make_app([demo, embed.embed, models, check.check, emulator.emulator])
    app.callback()(version)
    app.add_typer(cli_batch.app, name="batch")
