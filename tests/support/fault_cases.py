"""The table of faults: each fault, once or always, and the outcome that a caller may expect of every entry point."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from dashscope_embeddings import (
    AuthenticationError,
    BadReply,
    BadRequestError,
    ConnectionFailed,
    QuotaError,
    RateLimitError,
    ServerError,
)
from dashscope_embeddings.emulator.faults import (
    Arrearage,
    Drop,
    DuplicateIndex,
    ExtraFields,
    FreeQuotaExhausted,
    Garbage,
    Gzip,
    MissingUsage,
    NoSparse,
    NotFinite,
    NullEmbedding,
    Overdue,
    Redirect,
    Shuffle,
    Slow,
    Stall,
    Status,
    Throttle,
    TrailingBytes,
    Truncate,
    WrongContentType,
    WrongCount,
    WrongKey,
    WrongWidth,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dashscope_embeddings import DashScopeError
    from dashscope_embeddings.emulator.faults import Fault

MAX_RETRIES = 2
"""`max_retries` of the clients: a permanent fault is met this many times, and once more."""
Occurrence = Literal["once", "always"]


@dataclass(frozen=True)
class Recovers:
    """The call returns the right vectors after further requests."""

    extra_requests: int = 1
    rebilled: bool = False
    """Whether the service had billed the request before its reply was lost or corrupted: then the texts of that request
    are billed twice, and no others."""
    states_bill: bool = False
    """Whether the corrupted reply states what was billed for it: then it is in the caller's usage, too."""
    after: float = 0.0
    """Minimum of seconds from the faulty request to the next attempt."""


@dataclass(frozen=True)
class Raises:
    """The call raises one error with the vectors that arrived, the other indices, and the id of the failed request."""

    error: type[DashScopeError]
    status: int | None = None
    attempts: int | None = MAX_RETRIES + 1
    """Requests until it is raised; None: as many as fit into the time budget for throttling."""
    has_request_id: bool = True
    """Whether the reply had a request id."""
    rebilled: bool = False
    """Whether every attempt is billed."""


ExpectedOutcome: TypeAlias = Recovers | Raises


@dataclass(frozen=True)
class Case:
    """A fault and its expected outcomes."""

    name: str
    fault: Fault
    once: ExpectedOutcome
    """Outcome if it triggers for one request."""
    always: ExpectedOutcome
    """Outcome if it triggers for every request with the same texts."""
    by_output: Mapping[str, tuple[ExpectedOutcome, ExpectedOutcome]] = field(default_factory=dict)
    """Output type → outcomes once and always, where they differ."""

    def expected(self, occurrence: Occurrence, output: str) -> ExpectedOutcome:
        """The outcome in the table."""
        once, always = self.by_output.get(output, (self.once, self.always))
        return once if occurrence == "once" else always


# Outcomes of most lines.
WORKS = Recovers(extra_requests=0)
AGAIN = Recovers()
REBILLED = Recovers(rebilled=True)
COUNTED = Recovers(rebilled=True, states_bill=True)
THROTTLED = Raises(RateLimitError, 429, attempts=None)
NO_MONEY = Raises(QuotaError, 429, attempts=1)
OWING = Raises(QuotaError, 400, attempts=1)
FREE_ONLY = Raises(QuotaError, 403, attempts=1)
WRONG_KEY = Raises(AuthenticationError, 401, attempts=1)
UNANSWERED = Raises(ConnectionFailed, has_request_id=False)
LOST = Raises(ConnectionFailed, has_request_id=False, rebilled=True)
BROKEN = Raises(BadReply, rebilled=True)
UNREAD = Raises(BadReply, has_request_id=False, rebilled=True)
MOVED = Raises(BadRequestError, 307, attempts=1)


def failed(status: int) -> Raises:
    """The service failed on every try."""
    return Raises(ServerError, status)


def proxied(status: int) -> Raises:
    """A proxy failed, whose replies have no request id."""
    return Raises(ServerError, status, has_request_id=False)


TOKENS, BURST = "Throttling.AllocationQuota", "Throttling.BurstRate"
HTML = b"<html><body>Please sign in to this network</body></html>"
NO_DENSE = {"sparse": (WORKS, WORKS)}
"""The fault has no effect if only sparse vectors are requested."""
NO_SPARSE = {"dense&sparse": (COUNTED, BROKEN), "sparse": (COUNTED, BROKEN)}

# fmt: off
FAULTS = [
    # --- throttled: retried until the time budget ends
    #    what goes wrong                as the emulator does it             once                 always
    Case("429 with Retry-After",        Throttle(7),                        Recovers(after=7),   THROTTLED),
    Case("429 with retry-after-ms",     Throttle(retry_after_ms=1500),      Recovers(after=1.5), THROTTLED),
    Case("429 without a hint",          Throttle(),                         AGAIN,               THROTTLED),
    Case("429 without a body",          Throttle(empty_body=True),          AGAIN,               THROTTLED),
    Case("429 for tokens",              Throttle(code=TOKENS),              AGAIN,               THROTTLED),
    Case("429 for a burst",             Throttle(code=BURST),               AGAIN,               THROTTLED),
    Case("429 with an unknown code",    Throttle(code="Novelty"),           AGAIN,               THROTTLED),
    # --- only a payment or another key helps: no retry
    Case("429, free quota used up",     FreeQuotaExhausted(),               NO_MONEY,            NO_MONEY),
    Case("429, prepaid bill overdue",   Overdue(),                          NO_MONEY,            NO_MONEY),
    Case("429, postpaid bill overdue",  Overdue("PostpaidBillOverdue"),     NO_MONEY,            NO_MONEY),
    Case("429, not purchased",          Overdue("CommodityNotPurchased"),   NO_MONEY,            NO_MONEY),
    Case("400, arrears",                Arrearage(),                        OWING,               OWING),
    Case("403, free tier only",         FreeQuotaExhausted(only_free=True), FREE_ONLY,           FREE_ONLY),
    Case("401, wrong key",              WrongKey(),                         WRONG_KEY,           WRONG_KEY),
    # --- the service or a proxy fails
    Case("500, JSON",                   Status(500),                        AGAIN,               failed(500)),
    Case("500, HTML",                   Status(500, body="html"),           AGAIN,               proxied(500)),
    Case("500, no body",                Status(500, body="empty"),          AGAIN,               failed(500)),
    Case("502, JSON",                   Status(502),                        AGAIN,               failed(502)),
    Case("502, HTML",                   Status(502, body="html"),           AGAIN,               proxied(502)),
    Case("502, no body",                Status(502, body="empty"),          AGAIN,               failed(502)),
    Case("503, JSON",                   Status(503),                        AGAIN,               failed(503)),
    Case("503, HTML",                   Status(503, body="html"),           AGAIN,               proxied(503)),
    Case("503, no body",                Status(503, body="empty"),          AGAIN,               failed(503)),
    Case("503 with Retry-After",        Status(503, retry_after=30),        Recovers(after=30),  failed(503)),
    Case("504, JSON",                   Status(504),                        AGAIN,               failed(504)),
    Case("504, HTML",                   Status(504, body="html"),           AGAIN,               proxied(504)),
    Case("504, no body",                Status(504, body="empty"),          AGAIN,               failed(504)),
    # --- no answer
    Case("connection refused",          Drop("unreachable"),                AGAIN,               UNANSWERED),
    Case("reset before the work",       Drop("reset"),                      AGAIN,               UNANSWERED),
    Case("reset after the work",        Drop("reset", billed=True),         REBILLED,            LOST),
    Case("closed before the work",      Drop("closed"),                     AGAIN,               UNANSWERED),
    Case("closed after the work",       Drop("closed", billed=True),        REBILLED,            LOST),
    Case("closed within the body",      Truncate(0.5),                      REBILLED,            LOST),
    Case("stalled before the head",     Stall(),                            REBILLED,            LOST),
    Case("stalled in the body",         Stall(0.5),                         REBILLED,            LOST),
    Case("slower than the timeout",     Slow(61),                           REBILLED,            LOST),
    Case("slow, within the timeout",    Slow(59),                           WORKS,               WORKS),
    # --- a reply that cannot be read
    Case("half a body",                 Truncate(0.5, framed=True),         REBILLED,            BROKEN),
    Case("garbage",                     Garbage(),                          REBILLED,            BROKEN),
    Case("200 with a page of HTML",     Garbage(HTML),                      REBILLED,            BROKEN),
    Case("200 without a body",          Garbage(b""),                       REBILLED,            BROKEN),
    Case("200 with null",               Garbage(b"null"),                   REBILLED,            BROKEN),
    Case("bytes after the JSON",        TrailingBytes(),                    REBILLED,            BROKEN),
    Case("gzip, cut off",               Gzip("cut"),                        REBILLED,            BROKEN),
    Case("gzip, corrupt",               Gzip("corrupt"),                    REBILLED,            UNREAD),
    Case("gzip",                        Gzip(),                             WORKS,               WORKS),
    Case("another content type",        WrongContentType(),                 WORKS,               WORKS),
    Case("no content type",             WrongContentType(None),             WORKS,               WORKS),
    # --- a reply that does not match the request
    Case("a row too few",               WrongCount(-1),                     COUNTED,             BROKEN),
    Case("a row too many",              WrongCount(1),                      COUNTED,             BROKEN),
    Case("two rows of one number",      DuplicateIndex(),                   COUNTED,             BROKEN),
    Case("rows in another order",       Shuffle(),                          WORKS,               WORKS),
    Case("a vector too short",          WrongWidth(-1),                     COUNTED,             BROKEN, NO_DENSE),
    Case("a vector too long",           WrongWidth(1),                      COUNTED,             BROKEN, NO_DENSE),
    Case("NaN",                         NotFinite(math.nan),                COUNTED,             BROKEN, NO_DENSE),
    Case("infinity",                    NotFinite(math.inf),                COUNTED,             BROKEN, NO_DENSE),
    Case("-infinity",                   NotFinite(-math.inf),               COUNTED,             BROKEN, NO_DENSE),
    Case("a null for a vector",         NullEmbedding(),                    COUNTED,             BROKEN, NO_DENSE),
    Case("no sparse vectors",           NoSparse(),                         WORKS,               WORKS, NO_SPARSE),
    Case("unknown fields",              ExtraFields(),                      WORKS,               WORKS),
    Case("no usage",                    MissingUsage(),                     WORKS,               WORKS),
    # --- another place
    Case("redirect to another host",    Redirect(),                         MOVED,               MOVED),
]
# fmt: on
