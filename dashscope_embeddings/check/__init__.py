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
from dashscope_embeddings._core.address import Address, address, find_key
from dashscope_embeddings.catalogue import REGIONS, WORKSPACE_DOMAIN
from dashscope_embeddings.check.probes import DOCUMENT, LATE, TEXT, Account, Try, at_once
from dashscope_embeddings.check.role import Measured, RoleCheck, asks_of, measure
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.errors import ConnectionFailed, DashScopeError, ServiceError
from dashscope_embeddings.vectors import Usage

Tries: TypeAlias = Sequence[Try] | None

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
    places = _places(region, workspace, base_url)
    asked = [place for place in places if place.root]
    account = Account(find_key(api_key, asked[0]), timeout, make_client or EmbeddingClient, clock)
    chosen = catalogue.model(model)
    names = list(
        dict.fromkeys([*(row.name for row in catalogue.MODELS), model] if models is None else [model, *models])
    )
    hellos = [account.job(place, model) for place in asked]
    if announce is not None:
        texts = len(names) - 1 + _TRIES + len(asks_of(chosen)) + 1
        announce(Plan(tuple(place.host for place in asked), texts))
    first = dict(zip(asked, at_once(hellos, timeout), strict=True))
    regions = tuple(_region(place, first.get(place)) for place in places)
    taking = [place for place, found in zip(places, regions, strict=True) if found.takes_key]
    found = _ask_models(account, taking, names, model)
    measured = _measured(account, found, chosen)
    notes = _notes(regions, asked, account.key, workspace)
    if taking and measured.role is None:
        notes.append(f"The role of the compatible route was not measured: {measured.said}")
    tries = [one for some in (*first.values(), *found.values(), measured.tries) for one in some or ()]
    return Check(
        regions,
        tuple(_model(place, name, some) for (place, name), some in found.items()),
        measured.role,
        sum((one.found.usage for one in tries if one.found is not None), Usage()),
        tuple(notes),
    )


# --- hosts -------------------------------------------------------------------------------------------------


def _places(region: str | None, workspace: str | None, base_url: str | None) -> list[Address]:
    """An address without a root stands for a region whose host is not known."""
    named = address(region=region, workspace=workspace, base_url=base_url)
    if region is not None or base_url is not None or named.region is None:
        return [named]
    found = []
    for each in REGIONS:
        host = f"{workspace}.{each.id}.{WORKSPACE_DOMAIN}" if workspace else each.shared_host
        found.append(address(base_url=f"https://{host}") if host else Address("", each))
    # The environment may name a host of the service that is none of these.
    return found if named.host in {place.host for place in found} else [named, *found]


def _region(place: Address, tries: Tries) -> RegionCheck:
    region = place.region.id if place.region else None
    if not place.root:
        return RegionCheck(region, None, None, "not asked: no shared host is known, only hosts of workspaces", None)
    if not tries:
        return RegionCheck(region, place.host, None, LATE, None)
    error, said = tries[0].error, tries[0].said
    takes = _takes_key(error)
    if takes:
        said = "takes the key" if error is None else f"takes the key, but not the request: {said}"
    seconds = None if isinstance(error, ConnectionFailed) else tries[0].seconds
    return RegionCheck(region, place.host, takes, said, seconds)


_UNAUTHORIZED = 401
_SERVER_ERROR = 500


def _takes_key(error: DashScopeError | None) -> bool | None:
    if error is None:
        return True
    return error.status != _UNAUTHORIZED if _is_refusal(error) else None


def _is_refusal(error: DashScopeError | None) -> TypeGuard[ServiceError]:
    """Whether the service itself said no. Without a code it may be a proxy, a portal, another server."""
    return isinstance(error, ServiceError) and error.code is not None and error.status < _SERVER_ERROR


# --- models ------------------------------------------------------------------------------------------------

_TRIES = 3
"""Of the chosen model, for the median of their times."""


def _ask_models(
    account: Account, places: Sequence[Address], names: Sequence[str], chosen: str
) -> dict[tuple[Address, str], Tries]:
    asks = [(place, name) for place in places for name in names]
    jobs = [account.job(place, name, [DOCUMENT] * (_TRIES if name == chosen else 1)) for place, name in asks]
    return dict(zip(asks, at_once(jobs, account.timeout * _TRIES), strict=True))


def _model(place: Address, name: str, tries: Tries) -> ModelCheck:
    if not tries:
        return ModelCheck(place.host, name, None, LATE)
    answered = [one for one in tries if one.found is not None]
    if not answered:
        return ModelCheck(place.host, name, False if _is_refusal(tries[0].error) else None, tries[0].said)
    return ModelCheck(
        place.host,
        name,
        answers=True,
        said="answers",
        tokens=answered[0].found.usage.tokens if answered[0].found is not None else None,
        seconds=statistics.median(one.seconds for one in answered),
        tries=len(answered),
    )


def _measured(account: Account, found: Mapping[tuple[Address, str], Tries], chosen: catalogue.Model) -> Measured:
    """On the first host where the model answers."""
    for (place, name), tries in found.items():
        if name == chosen.name and tries and tries[0].dense is not None:
            return measure(account, place, chosen, tries[0].dense)
    return Measured(None, f"{chosen.name} does not answer", ())


# --- what to do --------------------------------------------------------------------------------------------

# https://www.alibabacloud.com/help/model-studio/base-url and the pages of error codes, seen 2026-11-20.
_OTHER_PLAN = (
    "The key begins with sk-sp-: it is of a Coding or Token plan, which are for chat only. Embeddings need a key of "
    "Model Studio itself."
)
_REFUSED = (
    "No host that answered takes the key. It may be mistyped, cut off, disabled or deleted; of an account with "
    "another host (finance cloud, Qwen Cloud, a trial: --base-url); or of another plan: keys of Coding and Token "
    "plans begin with sk-sp- and are for chat only."
)
_OFFLINE = (
    "No host answered as the service does: is this machine online, may it reach these hosts, and does it need a "
    "proxy (HTTPS_PROXY)? Whether the key is good is not known."
)

_MADE_UP = "The emulator makes its vectors up: this says nothing about the service."


def _notes(
    regions: Sequence[RegionCheck], asked: Sequence[Address], key: SecretStr, workspace: str | None
) -> list[str]:
    notes = [
        _MADE_UP
        if place.is_emulator
        else f"{place.host} is none of the service's known hosts: all of this is about that one."
        for place in asked
        if place.region is None
    ]
    verdicts = {found.takes_key for found in regions}
    if True in verdicts:
        if len(asked) > 1:
            own = f', workspace="{workspace}"' if workspace else ""
            notes += [f'With this key, use region="{r.region}"{own}.' for r in regions if r.takes_key]
    elif False in verdicts:
        notes.append(_OTHER_PLAN if key.get_secret_value().startswith("sk-sp-") else _REFUSED)
        if len(asked) == 1:
            notes.append("Only one host was asked: name no region and no address to ask all that are known.")
        elif workspace:
            notes.append("Only the workspace's hosts were asked: name no workspace to ask the shared ones.")
    else:
        notes.append(_OFFLINE)
    return notes
