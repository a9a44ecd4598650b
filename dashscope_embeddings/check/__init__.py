"""Check what an API key can do: which hosts accept it, which models answer, and the role of the compatible route.

The OpenAI-compatible route has no parameter for the role, and no page says whether its vectors are those of queries or
of documents. Batch files embed over that route, so an index made with them depends on it. A few short texts are sent,
and the quota is asked for.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from pydantic import SecretStr

from dashscope_embeddings import catalogue
from dashscope_embeddings._core.address import Address, resolve_address, resolve_api_key
from dashscope_embeddings.catalogue import REGIONS, WORKSPACE_DOMAIN
from dashscope_embeddings.check.probes import (
    DENSE_DOCUMENT,
    NO_ANSWER_IN_TIME,
    TEXT,
    Attempt,
    Prober,
    RoleCheck,
    measure_role,
    run_concurrently,
    variants_of,
)
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.errors import ConnectionFailed, DashScopeError, ServiceError
from dashscope_embeddings.quota import Quota
from dashscope_embeddings.vectors import Usage

__all__ = ["TEXT", "Check", "ModelCheck", "Plan", "QuotaCheck", "RegionCheck", "RoleCheck", "check"]


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
class RegionCheck:
    """One host's answer to the key."""

    region: str | None
    """Id of the region; None: the host is none of the service's known ones."""
    host: str | None
    """None: not known, so nothing was sent."""
    takes_key: bool | None
    """Whether the host accepts the key; None: unknown, because the service did not answer.

    A refusal by the service other than 401 counts as accepted: it is about a model, a quota or a bill, which are
    looked up by key. No page states that order.
    """
    said: str
    """The host's answer in words, or why there was none."""
    seconds: float | None
    """Time to the answer, connection setup included; None: no answer."""


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """One model on a host that accepts the key."""

    host: str
    model: str
    answers: bool | None
    """False: refused; None: unknown, because the service did not answer."""
    said: str
    """The outcome in words."""
    tokens: int | None = None
    """Tokens billed for one text; None: not answered."""
    seconds: float | None = None
    """Round-trip time: the median of several attempts; of a single one, connection setup included."""
    tries: int = 0
    """Attempts that were answered."""


@dataclass(frozen=True, slots=True)
class QuotaCheck:
    """What a host that accepts the key says about the quota of the timed model."""

    host: str
    model: str
    quota: Quota | None
    """None: the host does not say. That it lists embedding models is likely, but no page says so."""
    said: str
    """The outcome in words."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of `check`."""

    regions: tuple[RegionCheck, ...]
    models: tuple[ModelCheck, ...]
    role: RoleCheck | None
    """None: not measured; if some host accepts the key, `notes` say why."""
    usage: Usage
    """What the answers were billed."""
    notes: tuple[str, ...] = ()
    """What to do, and what the figures do not say."""
    quotas: tuple[QuotaCheck, ...] = ()
    """One for each host that accepts the key."""

    @property
    def takes_key(self) -> bool:
        """Whether some host accepts the key."""
        return any(region.takes_key for region in self.regions)


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
    """Send one short text to all hosts at once, then probe models and routes on those that accept the key.

    No request is retried, so throttling and broken connections are reported as they occur.

    Args:
        model: Model that the key is tried with, and whose time and role are measured.
        api_key: As for `EmbeddingClient`.
        region: Probe the host of this region only.
        workspace: Probe the workspace's hosts instead of the shared ones; default `DASHSCOPE_WORKSPACE_ID`.
        base_url: Probe this address only. An address in the environment does the same, unless it is the service's.
        models: Further models to probe; None: all of the catalogue.
        timeout: Seconds to wait for an answer.
        announce: Called with the plan before anything is sent.
        make_client: Makes the clients, from the arguments of `EmbeddingClient`.
        clock: Returns seconds; measures the round trips.

    Raises:
        InvalidInput: no key, or an address that cannot work; nothing was sent.
    """
    workspace = workspace or os.environ.get("DASHSCOPE_WORKSPACE_ID") or None
    addresses = _addresses_to_check(region, workspace, base_url)
    known_addresses = [address for address in addresses if address.root_url]
    prober = Prober(resolve_api_key(api_key, known_addresses[0]), timeout, make_client or EmbeddingClient, clock)
    catalogue_model = catalogue.model(model)
    names = [*(row.name for row in catalogue.MODELS), model] if models is None else [model, *models]
    names = list(dict.fromkeys(names))
    probes = [prober.probe(address, model) for address in known_addresses]
    if announce is not None:
        texts = len(names) - 1 + _TIMED_ATTEMPTS + len(variants_of(catalogue_model)) + 1
        announce(Plan(tuple(address.host for address in known_addresses), texts))
    first_attempts = dict(zip(known_addresses, run_concurrently(probes, timeout), strict=True))
    regions = tuple(_region_check(address, first_attempts.get(address)) for address in addresses)
    accepting = [address for address, found in zip(addresses, regions, strict=True) if found.takes_key]
    attempts_by_model = _probe_models(prober, accepting, names, model)
    quotas = run_concurrently([prober.quota(address, model) for address in accepting], timeout)
    role, role_attempts = _measure_role(prober, attempts_by_model, catalogue_model)
    notes = _notes(regions, known_addresses, prober.key, workspace)
    if accepting and isinstance(role, str):
        notes.append(f"The role of the compatible route was not measured: {role}")
    attempt_lists = (*first_attempts.values(), *attempts_by_model.values(), role_attempts)
    answers = [attempt.embeddings for attempts in attempt_lists for attempt in attempts if attempt.embeddings]
    return Check(
        regions,
        tuple(_model_check(address, name, attempts) for (address, name), attempts in attempts_by_model.items()),
        None if isinstance(role, str) else role,
        sum((embeddings.usage for embeddings in answers), Usage()),
        tuple(notes),
        tuple(_quota_check(address, model, found) for address, found in zip(accepting, quotas, strict=True)),
    )


# --- hosts -------------------------------------------------------------------------------------------------


def _addresses_to_check(region: str | None, workspace: str | None, base_url: str | None) -> list[Address]:
    """The addresses to probe; one without a root stands for a region whose host is not known."""
    named = resolve_address(region=region, workspace=workspace, base_url=base_url)
    if region is not None or base_url is not None or named.region is None:
        return [named]
    addresses = []
    for each in REGIONS:
        host = f"{workspace}.{each.id}.{WORKSPACE_DOMAIN}" if workspace else each.shared_host
        addresses.append(resolve_address(base_url=f"https://{host}") if host else Address("", each))
    # The environment may name a host of the service that is none of these.
    return addresses if named.host in {address.host for address in addresses} else [named, *addresses]


def _region_check(address: Address, attempts: Sequence[Attempt] | None) -> RegionCheck:
    region = address.region.id if address.region else None
    if attempts is None:
        return RegionCheck(region, None, None, "not asked: no shared host is known, only hosts of workspaces", None)
    if not attempts:
        return RegionCheck(region, address.host, None, NO_ANSWER_IN_TIME, None)
    error, message = attempts[0].error, attempts[0].message
    is_accepted = _accepts_key(error)
    if is_accepted:
        message = "takes the key" if error is None else f"takes the key, but not the request: {message}"
    seconds = None if isinstance(error, ConnectionFailed) else attempts[0].seconds
    return RegionCheck(region, address.host, is_accepted, message, seconds)


_UNAUTHORIZED = 401
_SERVER_ERROR = 500


def _accepts_key(error: DashScopeError | None) -> bool | None:
    if error is None:
        return True
    return error.status != _UNAUTHORIZED if _is_refusal(error) else None


def _is_refusal(error: DashScopeError | None) -> TypeGuard[ServiceError]:
    """Whether the service itself refused. A reply without a code may come from a proxy or another server."""
    return isinstance(error, ServiceError) and error.code is not None and error.status < _SERVER_ERROR


# --- models ------------------------------------------------------------------------------------------------

_TIMED_ATTEMPTS = 3
"""Requests to the timed model; its time is their median."""


def _probe_models(
    prober: Prober, addresses: Sequence[Address], names: Sequence[str], timed_model: str
) -> dict[tuple[Address, str], list[Attempt]]:
    combinations = [(address, name) for address in addresses for name in names]
    tasks = [
        prober.probe(address, name, [DENSE_DOCUMENT] * (_TIMED_ATTEMPTS if name == timed_model else 1))
        for address, name in combinations
    ]
    return dict(zip(combinations, run_concurrently(tasks, prober.timeout * _TIMED_ATTEMPTS), strict=True))


def _model_check(address: Address, name: str, attempts: Sequence[Attempt]) -> ModelCheck:
    if not attempts:
        return ModelCheck(address.host, name, None, NO_ANSWER_IN_TIME)
    first = attempts[0]
    if first.embeddings is None:
        return ModelCheck(address.host, name, False if _is_refusal(first.error) else None, first.message)
    seconds = [attempt.seconds for attempt in attempts if attempt.error is None]
    return ModelCheck(
        address.host,
        name,
        answers=True,
        said="answers",
        tokens=first.embeddings.usage.tokens,
        seconds=statistics.median(seconds),
        tries=len(seconds),
    )


def _quota_check(address: Address, model: str, found: Sequence[Quota | DashScopeError]) -> QuotaCheck:
    if not found:
        return QuotaCheck(address.host, model, None, NO_ANSWER_IN_TIME)
    (answer,) = found
    if isinstance(answer, DashScopeError):
        return QuotaCheck(address.host, model, None, f"not reported: {answer.summary or answer.message}")
    ignored = f"; ignored: {', '.join(answer.ignored)}" if answer.ignored else ""
    return QuotaCheck(address.host, model, answer, f"{answer}{ignored}")


def _measure_role(
    prober: Prober, attempts_by_model: Mapping[tuple[Address, str], Sequence[Attempt]], model: catalogue.Model
) -> tuple[RoleCheck | str, Sequence[Attempt]]:
    """Measure on the first host where the model answers."""
    for (address, name), attempts in attempts_by_model.items():
        if name == model.name and attempts and attempts[0].dense is not None:
            return measure_role(prober, address, model, attempts[0].dense)
    return f"{model.name} does not answer", ()


# --- what to do --------------------------------------------------------------------------------------------

# https://www.alibabacloud.com/help/model-studio/base-url and the pages of error codes, seen 2026-11-20.
_OTHER_PLAN_HINT = (
    "The key begins with sk-sp-: it belongs to a Coding or Token plan, which are for chat only. Embeddings need a key "
    "of Model Studio itself."
)
_KEY_REFUSED_HINT = (
    "No host that answered takes the key. It may be mistyped, cut off, disabled or deleted. It may belong to an "
    "account with another host (finance cloud, Qwen Cloud, a trial: pass --base-url), or to another plan: keys of "
    "Coding and Token plans begin with sk-sp- and are for chat only."
)
_OFFLINE_HINT = (
    "No host answered as the service does, so it is not known whether the key is valid: is this machine online, may "
    "it reach these hosts, and does it need a proxy (HTTPS_PROXY)?"
)

_EMULATOR_NOTE = "The emulator makes its vectors up: this result says nothing about the service."


def _notes(
    regions: Sequence[RegionCheck], addresses: Sequence[Address], key: SecretStr, workspace: str | None
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
