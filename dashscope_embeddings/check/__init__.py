"""Checks what an API key can do: which hosts accept it, which models answer, and the role of the compatible route.

The OpenAI-compatible route has no parameter for the role, and no page says whether its vectors are those of queries or
of documents. Batch files embed over that route, so an index made with them depends on it. A few short texts are sent,
and the quota is asked for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import SecretStr

from dashscope_embeddings import catalogue
from dashscope_embeddings._core.address import Address, resolve_address, resolve_api_key
from dashscope_embeddings._core.service_variables import WORKSPACE_VARIABLES, read_variable
from dashscope_embeddings.catalogue import REGIONS, WORKSPACE_DOMAIN
from dashscope_embeddings.check.probes import (
    NO_ANSWER_IN_TIME,
    TEXT,
    Attempt,
    Probe,
    Prober,
    RoleCheck,
    measure_role,
    native_calls,
)
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.errors import Action, ConnectionFailed, ServiceError
from dashscope_embeddings.quota import Quota
from dashscope_embeddings.vectors import Embeddings, Usage

__all__ = ["TEXT", "Check", "CheckRow", "ModelCheck", "Plan", "QuotaCheck", "RegionCheck", "RoleCheck", "check"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests that are about to be sent."""

    hosts: tuple[str, ...]
    """Hosts that get one text each."""
    texts_a_host: int
    """Further texts, at most, for each host that accepts the key; the role is measured on one of them only."""

    @property
    def texts(self) -> int:
        """All texts, if one host accepts the key."""
        return len(self.hosts) + self.texts_a_host


@dataclass(frozen=True, slots=True)
class CheckRow:
    """What one host says of the key, or of one model, or of that model's quota."""

    about: Literal["key", "model", "quota"]
    region: str | None
    """Id of the region; None: the host is none of the service's known ones."""
    host: str | None
    """None: not known, so nothing was sent."""
    model: str
    answers: bool | None
    """Whether the host accepts the key, serves the model, or reports the quota; None: unknown, as nothing answered.

    A refusal of the key by another code than 401 counts as accepted: it is about a model, a quota or a bill, which are
    looked up by key. No page states that order.
    """
    said: str
    """The answer in words, or why there was none."""
    seconds: float | None = None
    """Round-trip time: the median of several attempts; of a single one, connection setup included."""
    tokens: int | None = None
    """Tokens billed for the text; None: not answered."""
    tries: int = 0
    """Attempts that were answered."""
    quota: Quota | None = None
    """None: the host does not say. That it lists embedding models is likely, but no page says so."""

    @property
    def takes_key(self) -> bool | None:
        """`answers`, as a row about the key calls it."""
        return self.answers


# Their names by what the row is about.
RegionCheck = CheckRow
ModelCheck = CheckRow
QuotaCheck = CheckRow


@dataclass(frozen=True, slots=True)
class Check:
    """The result of `check`."""

    rows: tuple[CheckRow, ...]
    """One for each host; then, of each host that accepts the key, one for each model and one for the quota."""
    role: RoleCheck | None
    """None: not measured; if some host accepts the key, `notes` say why."""
    usage: Usage
    """What the answers were billed."""
    notes: tuple[str, ...] = ()
    """What to do, and what the figures do not say."""

    @property
    def regions(self) -> tuple[CheckRow, ...]:
        """The rows about the key, one for each host."""
        return tuple(row for row in self.rows if row.about == "key")

    @property
    def models(self) -> tuple[CheckRow, ...]:
        """The rows about models."""
        return tuple(row for row in self.rows if row.about == "model")

    @property
    def quotas(self) -> tuple[CheckRow, ...]:
        """The rows about quotas."""
        return tuple(row for row in self.rows if row.about == "quota")

    @property
    def takes_key(self) -> bool:
        """Whether some host accepts the key."""
        return any(region.takes_key for region in self.regions)


_TIMED_ATTEMPTS = 3
"""Requests to the timed model; its time is their median."""


def check(  # noqa: PLR0913 - independent settings
    model: str = catalogue.DEFAULT_MODEL,
    *,
    api_key: str | SecretStr | None = None,
    region: str | None = None,
    workspace: str | None = None,
    base_url: str | None = None,
    models: Sequence[str] | None = None,
    timeout: float = 10.0,
    announce: Callable[[Plan], object] | None = None,
    make_client: Callable[..., EmbeddingClient] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Check:
    """Sends one short text to all hosts at once, then probes models and routes on those that accept the key.

    No request is retried, so broken connections are reported as they occur; only a throttled one is repeated, for a few
    seconds.

    Args:
        model: Model that the key is tried with, and whose time and role are measured.
        api_key: As for `EmbeddingClient`.
        region: Probe the host of this region only.
        workspace: Probe the workspace's hosts instead of the shared ones; default `DASHSCOPE_WORKSPACE_ID`,
            or `DASHSCOPE_WORKSPACE`.
        base_url: Probe this address only. An address in the environment does the same, unless it is the service's.
        models: Further models to probe; None: all of the catalogue.
        timeout: Seconds to wait for an answer.
        announce: Called with the plan before anything is sent.
        make_client: Makes the clients, from the arguments of `EmbeddingClient`.
        clock: Returns seconds; measures the round trips.

    Raises:
        InvalidInput: no key, or an address that cannot work; nothing was sent.
    """
    if workspace is None and (variable := read_variable(WORKSPACE_VARIABLES)) is not None:
        workspace = variable.value
    addresses = _addresses_to_check(region, workspace, base_url)
    known = [address for address in addresses if address.root_url]
    prober = Prober(resolve_api_key(api_key, known[0]), timeout, make_client or EmbeddingClient, clock)
    timed = catalogue.model(model)
    names = [*(row.name for row in catalogue.MODELS), model] if models is None else [model, *models]
    counts = {name: _TIMED_ATTEMPTS if name == model else 1 for name in names}
    hosts = [Probe("key", address, model) for address in addresses]
    if announce is not None:
        texts = sum(counts.values()) + len(native_calls(timed)) + 1
        announce(Plan(tuple(address.host for address in known), texts))
    by_host = prober.run(probe for probe in hosts if probe.address in known)
    regions = [_row(probe, by_host.get(probe, ())) for probe in hosts]
    accepting = [address for address, row in zip(addresses, regions, strict=True) if row.takes_key]
    by_model = prober.run(
        Probe("model", address, name, ("document",) * count) for address in accepting for name, count in counts.items()
    )
    quotas = prober.run(Probe("quota", address, model, ("quota",)) for address in accepting)
    role, role_attempts = measure_role(prober, timed, by_model)
    notes = _notes(regions, known, prober.key, workspace)
    if accepting and isinstance(role, str):
        notes.append(f"The role of the compatible route was not measured: {role}")
    rows = (*regions, *(_row(probe, attempts) for probe, attempts in (by_model | quotas).items()))
    results = [attempt.result for found in (*by_host.values(), *by_model.values(), role_attempts) for attempt in found]
    usage = sum((result.usage for result in results if isinstance(result, Embeddings)), Usage())
    return Check(rows, None if isinstance(role, str) else role, usage, tuple(notes))


# --- hosts -------------------------------------------------------------------------------------------------


def _addresses_to_check(region: str | None, workspace: str | None, base_url: str | None) -> list[Address]:
    """The addresses to probe; one without a root stands for a region whose host is not known."""
    named = resolve_address(region=region, workspace=workspace, base_url=base_url)
    if region is not None or base_url is not None or named.region is None:
        return [named]
    addresses = []
    for each in REGIONS:
        host = f"{workspace}.{each.id}.{WORKSPACE_DOMAIN}" if workspace else each.shared_host or each.unconfirmed_host
        addresses.append(resolve_address(base_url=f"https://{host}") if host else Address("", each))
    # The environment may name a host of the service that is none of these.
    return addresses if named.host in {address.host for address in addresses} else [named, *addresses]


_NOT_ASKED = "not asked: this region has hosts of workspaces only; without workspace=, requests go to Singapore's"


def _row(probe: Probe, attempts: Sequence[Attempt]) -> CheckRow:
    """What the attempts say; an address without a root was not asked."""
    about, address = probe.about, probe.address
    row = CheckRow(about, address.region.id if address.region else None, address.host or None, probe.model, None, "")
    if not address.root_url:
        return replace(row, said=_NOT_ASKED)
    if not attempts:
        return replace(row, said=NO_ANSWER_IN_TIME)
    first = attempts[0]
    seconds = [attempt.seconds for attempt in attempts if attempt.error is None]
    if isinstance(first.result, Quota):
        ignored = f"; ignored: {', '.join(first.result.ignored)}" if first.result.ignored else ""
        return replace(row, answers=True, said=f"{first.result}{ignored}", quota=first.result)
    if first.result is not None:
        said, tokens = "takes the key" if about == "key" else "answers", first.result.usage.tokens
        return replace(
            row, answers=True, said=said, seconds=statistics.median(seconds), tokens=tokens, tries=len(seconds)
        )
    # A reply without a code may come from a proxy or another server.
    error, said = first.error, first.said
    answers = False if isinstance(error, ServiceError) and error.code and error.status < _SERVER_ERROR else None
    if error is not None and error.action is Action.BACK_OFF:
        answers, said = True if about == "key" else None, f"throttled, so run it again in a minute: {said}"
    elif about == "quota":
        said = f"not reported: {said}"
    elif about == "key" and answers is False and isinstance(error, ServiceError) and error.status != _UNAUTHORIZED:
        answers, said = True, f"takes the key, but not the request: {said}"
    seconds_taken = None if about != "key" or isinstance(error, ConnectionFailed) else first.seconds
    return replace(row, answers=answers, said=said, seconds=seconds_taken)


_UNAUTHORIZED = 401
_SERVER_ERROR = 500

# --- what to do --------------------------------------------------------------------------------------------

# https://www.alibabacloud.com/help/model-studio/base-url and the pages of error codes, seen 2026-11-20.
_OTHER_PLAN_HINT = (
    "The key begins with sk-sp-: it belongs to a Coding or Token plan, which are for chat only. Embeddings need a key "
    "of Model Studio itself."
)
_KEY_REFUSED_HINT = (
    "No host that answered takes the key. It may be mistyped, cut off, disabled or deleted. It may belong to an "
    "account with another host (finance cloud, Qwen Cloud, a trial: pass base_url=), or to another plan: keys of "
    "Coding and Token plans begin with sk-sp- and are for chat only."
)
_OFFLINE_HINT = (
    "No host answered as the service does, so it is not known whether the key is valid: is this machine online, may "
    "it reach these hosts, and does it need a proxy (HTTPS_PROXY)?"
)
_EMULATOR_NOTE = "The emulator makes its vectors up: this result says nothing about the service."


def _notes(
    regions: Sequence[CheckRow], addresses: Sequence[Address], key: SecretStr, workspace: str | None
) -> list[str]:
    notes = [
        _EMULATOR_NOTE
        if address.is_emulator
        else f"{address.host} is none of the service's known hosts: the whole result is about that host."
        for address in addresses
        if address.region is None
    ]
    acceptances = {region.takes_key for region in regions}
    if True in acceptances:
        if len(addresses) > 1:
            own = f', workspace="{workspace}"' if workspace else ""
            notes += [f'With this key, use region="{r.region}"{own}.' for r in regions if r.takes_key]
    elif False in acceptances:
        notes.append(_OTHER_PLAN_HINT if key.get_secret_value().startswith("sk-sp-") else _KEY_REFUSED_HINT)
        if len(addresses) == 1:
            notes.append("Only one host was asked: leave out the region and the address to ask all known hosts.")
        elif workspace:
            notes.append("Only the workspace's hosts were asked: leave out the workspace to ask the shared hosts.")
    else:
        notes.append(_OFFLINE_HINT)
    return notes
