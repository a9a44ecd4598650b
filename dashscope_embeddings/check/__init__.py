"""What a key opens, measured with a few short texts: the host that takes it, the models that answer, a role.

The role is that of the OpenAI-compatible route, which has no parameter for it: no page says whether its vectors are
those of queries or of documents. Batch files embed over that route, so an index made with them depends on it.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard

from pydantic import SecretStr

from dashscope_embeddings import catalogue
from dashscope_embeddings._core.address import Address, resolve_address, resolve_api_key
from dashscope_embeddings.catalogue import REGIONS, WORKSPACE_DOMAIN
from dashscope_embeddings.check.probes import DENSE_DOCUMENT, NO_ANSWER_IN_TIME, TEXT, Attempt, Prober, run_concurrently
from dashscope_embeddings.check.role import RoleCheck, RoleMeasurement, measure_role, variants_of
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.errors import ConnectionFailed, DashScopeError, ServiceError
from dashscope_embeddings.vectors import Usage

Attempts: TypeAlias = Sequence[Attempt] | None

__all__ = ["TEXT", "Check", "ModelCheck", "Plan", "RegionCheck", "RoleCheck", "check"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be sent, told before anything is."""

    hosts: tuple[str, ...]
    """Each gets one text."""
    texts_a_host: int
    """Further texts, at most, for each host that takes the key; the role is measured on one of them only."""

    @property
    def texts(self) -> int:
        """In all, where one host takes the key."""
        return len(self.hosts) + self.texts_a_host


@dataclass(frozen=True, slots=True)
class RegionCheck:
    """One host and the key."""

    region: str | None
    """None: none of the service's known hosts."""
    host: str | None
    """None: not known."""
    takes_key: bool | None
    """None: nobody knows, for nothing answered, or something else than the service did.

    A refusal in the service's words other than 401 counts as taken: it is about a model, a quota or a bill, which
    are looked up by key. No page states that order.
    """
    said: str
    """In words: what it answered, or why there was no answer."""
    seconds: float | None
    """Until the answer, with the setting up of the connection; None without one."""


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """One model on a host that takes the key."""

    host: str
    model: str
    answers: bool | None
    """False: refused; None: no answer, or none of the service's."""
    said: str
    tokens: int | None = None
    """Billed for one text; None where it was not answered."""
    seconds: float | None = None
    """A round trip: of one try with the connection's setting up in it, of several the median."""
    tries: int = 0
    """How many were answered."""


@dataclass(frozen=True, slots=True)
class Check:
    """All that was found."""

    regions: tuple[RegionCheck, ...]
    models: tuple[ModelCheck, ...]
    role: RoleCheck | None
    """None: not measured; where some host takes the key, `notes` say why."""
    usage: Usage
    """What the answers were billed."""
    notes: tuple[str, ...] = ()
    """What to do, and what the figures do not say."""

    @property
    def takes_key(self) -> bool:
        """Whether some host does."""
        return any(found.takes_key for found in self.regions)


def check(  # noqa: PLR0913 - one for each thing that may differ
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
    """Asks all hosts at once with one short text, then the models and the routes of those that take the key.

    Nothing is tried twice, except for the model's time: what is throttled or cut off is told as such.

    Args:
        model: Whose time and role are measured; a key is tried with it.
        api_key: As for `EmbeddingClient`.
        region: Ask its host only.
        workspace: Ask the workspace's hosts, not the shared ones; else `DASHSCOPE_WORKSPACE_ID`.
        base_url: Ask this address only. An address in the environment does the same, unless it is the service's.
        models: Which to try besides; None: all of the catalogue, wherever the key is taken.
        timeout: Seconds that an answer may take.
        announce: Called with the plan before anything is sent.
        make_client: Makes the clients, from the arguments of `EmbeddingClient`.
        clock: Seconds, for the times.

    Raises:
        InvalidInput: no key, or an address that cannot work; nothing was sent.
    """
    workspace = workspace or os.environ.get("DASHSCOPE_WORKSPACE_ID") or None
    addresses = _addresses_to_check(region, workspace, base_url)
    known_addresses = [place for place in addresses if place.root_url]
    prober = Prober(resolve_api_key(api_key, known_addresses[0]), timeout, make_client or EmbeddingClient, clock)
    catalogue_model = catalogue.model(model)
    names = list(
        dict.fromkeys([*(row.name for row in catalogue.MODELS), model] if models is None else [model, *models])
    )
    probes = [prober.probe(place, model) for place in known_addresses]
    if announce is not None:
        texts = len(names) - 1 + _TIMED_ATTEMPTS + len(variants_of(catalogue_model)) + 1
        announce(Plan(tuple(place.host for place in known_addresses), texts))
    first_attempts = dict(zip(known_addresses, run_concurrently(probes, timeout), strict=True))
    regions = tuple(_region_check(place, first_attempts.get(place)) for place in addresses)
    accepting = [place for place, found in zip(addresses, regions, strict=True) if found.takes_key]
    attempts_by_model = _probe_models(prober, accepting, names, model)
    measurement = _role_measurement(prober, attempts_by_model, catalogue_model)
    notes = _notes(regions, known_addresses, prober.key, workspace)
    if accepting and measurement.role is None:
        notes.append(f"The role of the compatible route was not measured: {measurement.reason}")
    attempts = [
        one
        for some in (*first_attempts.values(), *attempts_by_model.values(), measurement.attempts)
        for one in some or ()
    ]
    return Check(
        regions,
        tuple(_model_check(place, name, some) for (place, name), some in attempts_by_model.items()),
        measurement.role,
        sum((one.embeddings.usage for one in attempts if one.embeddings is not None), Usage()),
        tuple(notes),
    )


# --- hosts -------------------------------------------------------------------------------------------------


def _addresses_to_check(region: str | None, workspace: str | None, base_url: str | None) -> list[Address]:
    """An address without a root stands for a region whose host is not known."""
    named = resolve_address(region=region, workspace=workspace, base_url=base_url)
    if region is not None or base_url is not None or named.region is None:
        return [named]
    found = []
    for each in REGIONS:
        host = f"{workspace}.{each.id}.{WORKSPACE_DOMAIN}" if workspace else each.shared_host
        found.append(resolve_address(base_url=f"https://{host}") if host else Address("", each))
    # The environment may name a host of the service that is none of these.
    return found if named.host in {place.host for place in found} else [named, *found]


def _region_check(host_address: Address, attempts: Attempts) -> RegionCheck:
    region = host_address.region.id if host_address.region else None
    if not host_address.root_url:
        return RegionCheck(region, None, None, "not asked: no shared host is known, only hosts of workspaces", None)
    if not attempts:
        return RegionCheck(region, host_address.host, None, NO_ANSWER_IN_TIME, None)
    error, message = attempts[0].error, attempts[0].message
    is_accepted = _accepts_key(error)
    if is_accepted:
        message = "takes the key" if error is None else f"takes the key, but not the request: {message}"
    seconds = None if isinstance(error, ConnectionFailed) else attempts[0].seconds
    return RegionCheck(region, host_address.host, is_accepted, message, seconds)


_UNAUTHORIZED = 401
_SERVER_ERROR = 500


def _accepts_key(error: DashScopeError | None) -> bool | None:
    if error is None:
        return True
    return error.status != _UNAUTHORIZED if _is_refusal(error) else None


def _is_refusal(error: DashScopeError | None) -> TypeGuard[ServiceError]:
    """Whether the service itself said no. Without a code it may be a proxy, a portal, another server."""
    return isinstance(error, ServiceError) and error.code is not None and error.status < _SERVER_ERROR


# --- models ------------------------------------------------------------------------------------------------

_TIMED_ATTEMPTS = 3
"""Of the chosen model, for the median of their times."""


def _probe_models(
    prober: Prober, addresses: Sequence[Address], names: Sequence[str], timed_model: str
) -> dict[tuple[Address, str], Attempts]:
    combinations = [(place, name) for place in addresses for name in names]
    tasks = [
        prober.probe(place, name, [DENSE_DOCUMENT] * (_TIMED_ATTEMPTS if name == timed_model else 1))
        for place, name in combinations
    ]
    return dict(zip(combinations, run_concurrently(tasks, prober.timeout * _TIMED_ATTEMPTS), strict=True))


def _model_check(host_address: Address, name: str, attempts: Attempts) -> ModelCheck:
    if not attempts:
        return ModelCheck(host_address.host, name, None, NO_ANSWER_IN_TIME)
    answered = [one for one in attempts if one.embeddings is not None]
    if not answered:
        return ModelCheck(
            host_address.host, name, False if _is_refusal(attempts[0].error) else None, attempts[0].message
        )
    return ModelCheck(
        host_address.host,
        name,
        answers=True,
        said="answers",
        tokens=answered[0].embeddings.usage.tokens if answered[0].embeddings is not None else None,
        seconds=statistics.median(one.seconds for one in answered),
        tries=len(answered),
    )


def _role_measurement(
    prober: Prober, attempts_by_model: Mapping[tuple[Address, str], Attempts], model: catalogue.Model
) -> RoleMeasurement:
    """On the first host where the model answers."""
    for (place, name), attempts in attempts_by_model.items():
        if name == model.name and attempts and attempts[0].dense is not None:
            return measure_role(prober, place, model, attempts[0].dense)
    return RoleMeasurement(None, f"{model.name} does not answer", ())


# --- what to do --------------------------------------------------------------------------------------------

# https://www.alibabacloud.com/help/model-studio/base-url and the pages of error codes, seen 2026-11-20.
_OTHER_PLAN_HINT = (
    "The key begins with sk-sp-: it is of a Coding or Token plan, which are for chat only. Embeddings need a key of "
    "Model Studio itself."
)
_KEY_REFUSED_HINT = (
    "No host that answered takes the key. It may be mistyped, cut off, disabled or deleted; of an account with "
    "another host (finance cloud, Qwen Cloud, a trial: --base-url); or of another plan: keys of Coding and Token "
    "plans begin with sk-sp- and are for chat only."
)
_OFFLINE_HINT = (
    "No host answered as the service does: is this machine online, may it reach these hosts, and does it need a "
    "proxy (HTTPS_PROXY)? Whether the key is good is not known."
)

_EMULATOR_NOTE = "The emulator makes its vectors up: this says nothing about the service."


def _notes(
    regions: Sequence[RegionCheck], addresses: Sequence[Address], key: SecretStr, workspace: str | None
) -> list[str]:
    notes = [
        _EMULATOR_NOTE
        if place.is_emulator
        else f"{place.host} is none of the service's known hosts: all of this is about that one."
        for place in addresses
        if place.region is None
    ]
    acceptances = {found.takes_key for found in regions}
    if True in acceptances:
        if len(addresses) > 1:
            own = f', workspace="{workspace}"' if workspace else ""
            notes += [f'With this key, use region="{r.region}"{own}.' for r in regions if r.takes_key]
    elif False in acceptances:
        notes.append(_OTHER_PLAN_HINT if key.get_secret_value().startswith("sk-sp-") else _KEY_REFUSED_HINT)
        if len(addresses) == 1:
            notes.append("Only one host was asked: name no region and no address to ask all that are known.")
        elif workspace:
            notes.append("Only the workspace's hosts were asked: name no workspace to ask the shared ones.")
    else:
        notes.append(_OFFLINE_HINT)
    return notes
