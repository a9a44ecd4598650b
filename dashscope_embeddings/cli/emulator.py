"""The command `emulator`: serves the emulator on a local port, with quotas, faults and a log of its requests."""

from __future__ import annotations

import contextlib
import inspect
import re
import threading
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dashscope_embeddings._core.redaction import escape_control_characters
from dashscope_embeddings.cli.common import EXIT_USAGE, fail, stop_signals
from dashscope_embeddings.emulator import Asked, Emulator, faults
from dashscope_embeddings.emulator.embeddings import COMPATIBLE_PATH
from dashscope_embeddings.vectors import counted

if TYPE_CHECKING:
    from collections.abc import Callable

_MAKERS: tuple[Callable[..., Any], ...] = (
    *(function for name, function in inspect.getmembers(faults, inspect.isfunction) if name[0].isupper()),
    *(faults.BatchFails, faults.BatchExpires, faults.LineFails, faults.LineLost),
)


def _option_name(fault: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", fault).lower()


_FAULTS = {_option_name(make.__name__): make for make in _MAKERS}
"""Name on the command line → what makes the fault: `wrong-count` for `faults.WrongCount`."""


def emulator(  # noqa: PLR0913 - one for each option
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
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:SHARE]",
            help="What goes wrong, for which share of requests: throttle:0.05. Repeatable; an unknown name lists all.",
        ),
    ] = None,
    log: Annotated[bool, typer.Option("--log", help="Print a line for each request.")] = False,
) -> None:
    """Serve the emulator on 127.0.0.1 until Ctrl-C, for any program and language.

    It accepts any key, bills nothing, stores no text, and computes its vectors from words.

    Quotas and faults rehearse an outage: --rpm 60 --fault throttle:0.1 --fault drop:0.01
    """
    service = Emulator(
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        requests_per_second=rps,
        faults=[_parse_fault(text, seed) for seed, text in enumerate(fault or ())],
        log=0,
        on_request=_print_request if log else None,
    )
    try:
        server = service.serve(port, latency=latency / 1000)
    except OSError as error:
        fail(f"cannot listen on port {port}: {error.strerror}. Try another port; --port 0 takes a free one")
    with stop_signals() as stopped, server:
        native, compatible = f"{server.url}/api/v1", server.url + COMPATIBLE_PATH.removesuffix("/embeddings")
        for line in (
            f"The emulator listens at {server.url}",
            "\nTo use it, paste one of these; the key may be anything:",
            "\n  # this package, the vendor's SDK",
            f"  export DASHSCOPE_HTTP_BASE_URL={native}\n  export DASHSCOPE_API_KEY=emulator",
            '\n  # the OpenAI-compatible protocol: this package with protocol="openai"',
            f"  export DASHSCOPE_COMPATIBLE_BASE_URL={compatible}\n  export DASHSCOPE_API_KEY=emulator",
            "\n  # the same protocol: OpenAI's package",
            f"  export OPENAI_BASE_URL={compatible}\n  export OPENAI_API_KEY=emulator",
            "\nCtrl-C stops it.",
        ):
            # Not through rich, which would wrap lines that are meant to be copied.
            typer.echo(line)
        while not stopped.wait(0.5):
            pass
    refused = service.requests - service.billed_requests
    typer.echo(
        f"\nStopped. Requests: {service.requests:,}, answered: {service.billed_requests:,} "
        f"({counted(service.billed_texts, 'text')}, {counted(service.billed_tokens, 'token')}), refused: {refused:,}, "
        f"most at once: {server.peak_in_flight:,}."
    )


def _parse_fault(text: str, seed: int) -> faults.Fault:
    """The fault of `throttle:0.05`; each with a seed of its own, so that they do not strike the same requests."""
    name, _, share_text = text.partition(":")
    try:
        share = float(share_text or 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        fail(f"--fault {text}: the share must be a number above 0, at most 1, as in {name}:0.05", EXIT_USAGE)
    if name not in _FAULTS:
        names = ", ".join(sorted(_FAULTS))
        fail(f"--fault {text}: there is no fault {name!r}: write NAME or NAME:SHARE, with one of {names}", EXIT_USAGE)
    found: faults.Fault = _FAULTS[name](probability=share, seed=seed)
    return found


_printing = threading.Lock()


def _print_request(asked: Asked) -> None:
    """Prints time, method, path, model, texts, tokens, status, and the fault if there was one."""
    parts = [
        f"{asked.method} {asked.path} model={asked.model} texts={len(asked.texts)} tokens={asked.tokens}",
        f"status={asked.status or 'none'}",
        *([f"fault={_option_name(asked.fault)}"] if asked.fault else []),
    ]
    # The emulator goes on where nobody reads the log any more.
    with _printing, contextlib.suppress(OSError):
        time = datetime.now(timezone.utc).astimezone().isoformat(timespec="milliseconds")
        typer.echo(escape_control_characters(" ".join([time, *parts])))
