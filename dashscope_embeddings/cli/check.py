"""The command `check`: announce the requests, send them, and print which hosts and models accept the key."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from dashscope_embeddings import check as checking
from dashscope_embeddings.catalogue import DEFAULT_MODEL, REGIONS
from dashscope_embeddings.cli.common import EXIT_FAILED, console, make_table
from dashscope_embeddings.cli.options import in_words_of_commands
from dashscope_embeddings.vectors import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dashscope_embeddings.check import Check, CheckRow, Plan, RoleCheck

_CITIES = {region.id: region.city for region in REGIONS}
_COLOURS = {True: "green", False: "red", None: ""}


def check(  # noqa: PLR0913 - one for each option
    *,
    model: Annotated[str, typer.Option(help="Model whose time and role are measured.")] = DEFAULT_MODEL,
    region: Annotated[
        str | None, typer.Option(help="Probe this region only, such as ap-southeast-1.", show_default="all")
    ] = None,
    workspace: Annotated[str | None, typer.Option(help="Probe its hosts, not the shared ones.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Probe this address only; emulator: none.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check what your key opens: which host, which models, which role.

    Sends a short text about 16 times, which costs some hundred tokens, and
    says so first. The role is that of the compatible route: Batch files
    embed over it, and no page says whether as queries or as documents.

    Exit codes: 0 some host takes the key and serves the model, 1 none does,
    2 wrong use.
    """
    result = checking.check(
        model,
        region=region,
        workspace=workspace,
        base_url=base_url,
        timeout=timeout,
        announce=lambda plan: typer.echo(_plan_text(plan), err=as_json),
    )
    if as_json:
        # Escape non-ASCII on other encodings: a character replaced by the terminal would change the data.
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        typer.echo(json.dumps(_to_json_object(result), ensure_ascii=not unicode, indent=2))
    else:
        _print_report(result)
    if not any(row.answers for row in result.models if row.model == model):
        raise typer.Exit(EXIT_FAILED)


def _plan_text(plan: Plan) -> str:
    return (
        f"Sends one short text to {counted(len(plan.hosts), 'host')}, then {plan.texts_a_host} to each that takes the "
        f"key: about {plan.texts} in all, a few tokens each. Refused requests cost nothing."
    )


def _print_report(result: Check) -> None:
    """Hosts, each with what it says of its models: on a terminal as a table, elsewhere as a line for each."""
    out = console()
    table = make_table("What the key opens", "host, or model on it", "", align="left")
    for host in result.regions:
        for row in (host, *(row for row in result.rows if row.host == host.host and row.about != "key")):
            about = f"{'quota of ' if row.about == 'quota' else ''}{row.model}"
            if row.about == "key":
                about = f"{_CITIES.get(row.region or '', row.region or 'other')}, {row.host or 'no host'}"
            if not out.is_terminal:
                typer.echo(f"{about}{'' if row is host else f' on {row.host}'}: {_answer(row)}")
                continue
            colour = (
                _COLOURS[row.answers] if row is host else "yellow" if row.about == "model" and not row.answers else ""
            )
            table.add_row(Text(about if row is host else f"  {about}"), Text(_answer(row), colour))
    footer = [*_role_lines(result.role), f"billed: {result.usage if result.usage.requests else 'nothing'}"]
    footer += map(in_words_of_commands, result.notes)
    if out.is_terminal:
        out.print(table, "", *map(Text, footer), sep="\n")
    else:
        typer.echo("\n".join(footer))


def _answer(row: CheckRow) -> str:
    said = in_words_of_commands(row.said)
    if row.about == "key" and row.answers is False:
        said = f"refuses the key: {said}"
    tokens = f", {counted(row.tokens, 'token')} a text" if row.about == "model" and row.tokens is not None else ""
    if row.seconds is None:
        return said + tokens
    basis = f", median of {row.tries}" if row.tries > 1 else " with connecting" if row.about == "model" else ""
    return f"{said}{tokens} ({row.seconds * 1000:.0f} ms{basis})"


_ROLES = {
    "query": "embeds as query",
    "document": "embeds as document",
    "both alike": "makes no difference: query and document are alike",
    "neither": "embeds as neither query nor document",
}


def _role_lines(role: RoleCheck | None) -> Iterator[str]:
    if role is None:
        return
    yield f"{role.model} on {role.host}: the compatible route {_ROLES[role.verdict]}"
    yield f"cos(compatible, native query) = {role.query:.4f}"
    yield f"cos(compatible, native document) = {role.document:.4f}"
    yield f"cos(native query, native document) = {role.between:.4f}"
    yield f"cos(native document, asked again) = {role.repeated:.4f}"
    if role.joint is not None:
        yield f"cos(dense, dense of dense&sparse) = {role.joint:.4f}"
    yield f"length of the compatible vector = {role.length:.4f}"


def _to_json_object(result: Check) -> dict[str, Any]:
    def plain(row: CheckRow) -> dict[str, Any]:
        fields = dataclasses.asdict(row)
        for name in ("requests_per_minute", "tokens_per_minute") if row.quota is not None else ():
            fields[name] = getattr(row.quota, name)
        return fields if row.about != "key" else {**fields, "takes_key": row.takes_key}

    lists = {name: [plain(row) for row in getattr(result, name)] for name in ("regions", "models", "quotas")}
    found = dataclasses.asdict(dataclasses.replace(result, rows=()))
    if (cost := found["usage"]["cost"]) is not None:
        cost["amount"] = f"{cost['amount']:f}"
    del found["rows"]
    return {"takes_key": result.takes_key, **lists, **found}
