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
from dashscope_embeddings.cli.common import EXIT_USAGE, console, fail, make_table
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from dashscope_embeddings.check import Check, ModelCheck, Plan, QuotaCheck, RegionCheck, RoleCheck

EXIT_NO_HOST = 1
"""Exit code: no host accepts the key."""

_CITIES = {region.id: region.city for region in REGIONS}


def check(
    *,
    model: Annotated[str, typer.Option(help="Model whose time and role are measured.")] = DEFAULT_MODEL,
    region: Annotated[
        str | None, typer.Option(help="Probe this region only, such as ap-southeast-1.", show_default="all")
    ] = None,
    workspace: Annotated[str | None, typer.Option(help="Probe its hosts, not the shared ones.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Probe this address only; emulator: none.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check what your key opens: which host, which models, which role.

    Sends a short text about 16 times, which costs some hundred tokens, and
    says so first. The role is that of the compatible route: Batch files
    embed over it, and no page says whether as queries or as documents.

    Exit codes: 0 some host takes the key, 1 none does, 2 wrong use.
    """
    try:
        result = checking.check(
            model,
            region=region,
            workspace=workspace,
            base_url=base_url,
            announce=lambda plan: typer.echo(_plan_text(plan), err=as_json),
        )
    except InvalidInput as error:
        fail(str(error), EXIT_USAGE)
    if as_json:
        # Escape non-ASCII on other encodings: a character replaced by the terminal would change the data.
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        typer.echo(json.dumps(_to_json_object(result), ensure_ascii=not unicode, indent=2))
    elif (out := console()).is_terminal:
        _print_report(result, out)
    else:
        for line in _report_lines(result):
            typer.echo(line)
    if not result.takes_key:
        raise typer.Exit(EXIT_NO_HOST)


# --- output ------------------------------------------------------------------------------------------------


def _plan_text(plan: Plan) -> str:
    hosts = "1 host" if len(plan.hosts) == 1 else f"{len(plan.hosts)} hosts"
    return (
        f"Sends one short text to {hosts}, then {plan.texts_a_host} to each that takes the key: about {plan.texts} in "
        "all, a few tokens each. Refused requests cost nothing."
    )


def _city(region_check: RegionCheck) -> str:
    return _CITIES.get(region_check.region or "", region_check.region or "other")


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value * 1000:.0f} ms"


def _model_text(model_check: ModelCheck) -> str:
    if not model_check.answers:
        return model_check.said
    basis = f", median of {model_check.tries}" if model_check.tries > 1 else " with connecting"
    return f"answers, {model_check.tokens} tokens, {_milliseconds(model_check.seconds)}{basis}"


def _role_lines(role: RoleCheck) -> Iterator[str]:
    embeds = {
        "query": "embeds as query",
        "document": "embeds as document",
        "both alike": "makes no difference: query and document are alike",
        "neither": "embeds as neither query nor document",
    }
    yield f"{role.model} on {role.host}: the compatible route {embeds[role.verdict]}"
    yield f"cos(compatible, native query) = {role.query:.4f}"
    yield f"cos(compatible, native document) = {role.document:.4f}"
    yield f"cos(native query, native document) = {role.between:.4f}"
    yield f"cos(native document, asked again) = {role.repeated:.4f}"
    if role.joint is not None:
        yield f"cos(dense, dense of dense&sparse) = {role.joint:.4f}"
    yield f"length of the compatible vector = {role.length:.4f}"


def _quota_text(quota_check: QuotaCheck) -> str:
    return f"quota of {quota_check.model} at {quota_check.host}: {quota_check.said}"


def _billing_text(result: Check) -> str:
    return f"billed: {result.usage if result.usage.requests else 'nothing'}"


def _report_lines(result: Check) -> Iterator[str]:
    for region in result.regions:
        seconds = f" ({_milliseconds(region.seconds)})" if region.seconds is not None else ""
        yield f"{_city(region)}, {region.host or 'no host'}: {region.said}{seconds}"
    for model in result.models:
        yield f"{model.model} on {model.host}: {_model_text(model)}"
    yield from map(_quota_text, result.quotas)
    if result.role is not None:
        yield from _role_lines(result.role)
    yield _billing_text(result)
    yield from result.notes


def _print_report(result: Check, out: Console) -> None:
    hosts = make_table("Hosts", "region", "host", "key", "time", "", align="left")
    key_texts = {True: Text("takes it", "green"), False: Text("refuses it", "red"), None: Text("–")}
    for region in result.regions:
        message = "" if region.takes_key and region.said == "takes the key" else region.said
        name = Text(region.host or "–")
        hosts.add_row(_city(region), name, key_texts[region.takes_key], _milliseconds(region.seconds), Text(message))
    out.print(hosts)
    for host in dict.fromkeys(model.host for model in result.models):
        models = make_table(f"Models at {host}", "model", "", align="left")
        for model in result.models:
            if model.host == host:
                models.add_row(model.model, Text(_model_text(model), "" if model.answers else "yellow"))
        out.print("", models, sep="\n")
    for quota in result.quotas:
        out.print("", Text(_quota_text(quota)), sep="\n")
    if result.role is not None:
        verdict, *figures = _role_lines(result.role)
        out.print("", Text("Role of the compatible route", "bold"), Text(verdict), sep="\n")
        out.print(*(Text(figure, "dim") for figure in figures), sep="\n")
    out.print("", Text(_billing_text(result)), *(Text(note) for note in result.notes), sep="\n")


def _to_json_object(result: Check) -> dict[str, Any]:
    plain = dataclasses.asdict(result)
    cost = plain["usage"]["cost"]
    if cost is not None:
        cost["amount"] = f"{cost['amount']:f}"
    for row, found in zip(plain["quotas"], result.quotas, strict=True):
        if (quota := found.quota) is not None:
            row |= {name: getattr(quota, name) for name in ("requests_per_minute", "tokens_per_minute")}
    return {"takes_key": result.takes_key, **plain}
