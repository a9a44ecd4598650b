"""The command line `dashscope-embeddings`: its entry point, and the commands demo, models and emulator."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

from dashscope_embeddings.catalogue import DEFAULT_MODEL
from dashscope_embeddings.cli.demo import NoTextError, Store
from dashscope_embeddings.emulator import Emulator
from dashscope_embeddings.emulator.embeddings import COMPATIBLE_PATH

try:
    import typer

    from dashscope_embeddings.cli import batch as cli_batch
    from dashscope_embeddings.cli import check, common, embed
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


def demo(  # noqa: PLR0913 - one for each option
    folder: Annotated[
        Path | None,
        typer.Argument(
            exists=True,
            file_okay=False,
            show_default=False,
            help="Search the .txt and .md files in here, at any depth. Without it: Python's own help topics.",
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
        typer.Option(help="Vector store of both frameworks: their own in memory, or Qdrant's local mode."),
    ] = Store.MEMORY,
    k: Annotated[int, typer.Option("-k", min=1, max=50, help="Hits to show of each ranking.")] = 3,
) -> None:
    """Search real text with LangChain and LlamaIndex: dense, sparse and fused.

    Offline and without a key, unless --live is given.
    """
    try:
        options = screen.DemoOptions(folder, query or (), model, dimensions, k, live, store)
        screen.run_demo(options, common.console(), common.console(stderr=True))
    except NoTextError as error:
        common.fail(str(error), common.EXIT_USAGE)
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


# --- emulator ----------------------------------------------------------------------------------------------


def emulator(
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0 takes a free one.")] = 8787,
    latency: Annotated[float, typer.Option(min=0, metavar="MS", help="Milliseconds a reply takes.")] = 0,
    rpm: Annotated[
        int | None, typer.Option(min=1, show_default="no limit", help="Requests a minute, each model.")
    ] = None,
    tpm: Annotated[
        int | None, typer.Option(min=1, show_default="no limit", help="Tokens a minute, each model.")
    ] = None,
    rps: Annotated[
        float | None, typer.Option(min=0.01, show_default="no limit", help="Requests a second, each model.")
    ] = None,
) -> None:
    """Serve the emulator on 127.0.0.1 until Ctrl-C, for any program and language.

    It accepts any key, bills nothing, stores no text, and computes its vectors from words.
    """
    service = Emulator(requests_per_minute=rpm, tokens_per_minute=tpm, requests_per_second=rps, log=0)
    try:
        server = service.serve(port, latency=latency / 1000)
    except OSError as error:
        common.fail(f"cannot listen on port {port}: {error.strerror}. Try another port; --port 0 takes a free one")
    with common.stop_signals() as stopped, server:
        native, compatible = f"{server.url}/api/v1", server.url + COMPATIBLE_PATH.removesuffix("/embeddings")
        for line in (
            f"The emulator listens at {server.url}",
            "\nTo use it, paste one of these; the key may be anything:",
            "\n  # this package, the vendor's SDK",
            f"  export DASHSCOPE_HTTP_BASE_URL={native} DASHSCOPE_API_KEY=emulator",
            '\n  # the OpenAI-compatible protocol: this package with protocol="openai"',
            f"  export DASHSCOPE_COMPATIBLE_BASE_URL={compatible} DASHSCOPE_API_KEY=emulator",
            "\n  # the same protocol: OpenAI's package",
            f"  export OPENAI_BASE_URL={compatible} OPENAI_API_KEY=emulator",
            "\nCtrl-C stops it.",
        ):
            # Not through rich, which would wrap lines that are meant to be copied.
            typer.echo(line)
        sys.stdout.flush()
        while not stopped.wait(0.5):
            pass
    refused = service.requests - service.billed_requests
    typer.echo(
        f"\nStopped. Requests: {service.requests:,}, answered: {service.billed_requests:,} "
        f"({service.billed_texts:,} texts, {service.billed_tokens:,} tokens), refused: {refused:,}, "
        f"most at once: {server.peak_in_flight:,}."
    )


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
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        # Local variables may hold a key.
        pretty_exceptions_show_locals=False,
        help="Text embeddings of Alibaba Cloud Model Studio (DashScope): try them, look up models, emulate.",
    )
    for function in (demo, embed.embed, models, check.check, emulator):
        app.command()(common.report_errors(function))
    app.add_typer(cli_batch.app, name="batch")
