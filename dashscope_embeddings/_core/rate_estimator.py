"""How fast requests may go, found out from what was answered and what was throttled. Pure: told the time.

The service may enforce a quota a minute over windows of seconds, by requests or by tokens, and does not say
what is left (https://www.alibabacloud.com/help/en/model-studio/rate-limit, seen 2026-11-20). So: start fast,
since most accounts are never throttled; at a wall, stop, count what had passed in the last second, and carry
on at that rate; then try a little more, ever more rarely where the same ceiling is met again. Refusals that
come one at a time, and at rates that had been fine, are strays: a busy service, not a quota. Slowing down
would not make them fewer.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from dashscope_embeddings._core.throttle_detector import CERTAIN, SUSPECTED, Currency, Strays

_START = 200.0
"""Requests a second at first, doubled with every 40 answers: a quota that is not there costs nothing."""
_DOUBLINGS = 9.0
"""At most so many: more is no limit at all."""
_LEAST = 5.0
"""Requests a second after a first wall that let less pass: others may have used up what there was."""
_WINDOW = 1.0
"""Seconds the service counts over, until it turns out to be more."""
_LONGEST_WINDOW = 60.0
_UPLINK = 0.1
"""Seconds at most that a request takes to be counted, however long its answer takes."""
_LATE = 0.005
"""Seconds by which a window is waited out for longer than it lasts."""
_SECOND_LOOK = 0.06
"""Seconds until a request tells whether a refusal was a stray, when no reply under way does."""
_LEASE = 5.0
"""Seconds after which an unanswered probe is given up: its caller may be gone."""
_IDLE = 60.0
"""Seconds without a request after which no hold is left: every window is over."""
_LONGEST_RETRY_AFTER = 60.0
_NEAR = 0.12
"""Relative difference of two counts that say the same."""
_SHORTEST_TRIAL, _TRIAL, _LONGEST_TRIAL = 1.0, 2.0, 16.0
"""Seconds to approach a limit, and then again to exceed it by a little."""
_EXCESS = 0.03
_DOUBLING = 1.5
"""Seconds in which the rate doubles once exceeding the limit went unpunished."""
_MANY = 4096


@dataclass(slots=True, eq=False)
class Permit:
    """One request's place with the limiter, from asking to answer."""

    tokens: int
    """About how many the request will be billed."""
    urgent: bool = False
    """A query: goes before documents that wait."""
    sent: float | None = None
    settled: bool = False
    answered: float | None = None
    refused: bool = False
    """Or given up: in either case not counted by the service, as far as we know."""
    probe: int = 0
    """Number of the hold during which it was sent, to see whether that is over."""
    weight: float = 1.0
    """What it takes from the pace: 1, or its size when tokens are what is short."""
    cost: float = 0.0
    """Its tokens as the token quota was charged with them."""
    ticket: int = 0
    """Place in the queue; 0: never had to wait."""
    wakes: float = 0.0
    """When it was told to ask again."""


@dataclass(slots=True)
class Pace:
    """The rate of one account, host and model, and whether sending is on hold."""

    limit: float | None = None
    """The quota found, in requests a second; None: none yet."""
    in_flight: int = 0
    _sends: deque[Permit] = field(default_factory=lambda: deque(maxlen=_MANY))
    _latest: float = -math.inf
    _latency: float = 0.1
    _strays: Strays = field(default_factory=Strays)
    _currency: Currency = field(default_factory=Currency)
    _accepted: float = 0.0
    _window: float = _WINDOW
    _ceiling: float = 0.0
    """The highest rate that went well since the last wall."""
    _reacted: float = -math.inf
    """Refusals of what was sent earlier are old news."""
    _since: int = 0
    """Answers to what was sent after that."""
    _cut: float = -math.inf
    _began: float = 0.0
    """The trial of a limit: its beginning, half its length and how far below the limit it starts."""
    _trial: float = _TRIAL
    _bend: float = 0.05
    _suspect: float | None = None
    """When the refused request was sent of which it is open whether it is a stray."""
    _against: int = 0
    """Refusals of what was sent later, less answers to it."""
    _holding: bool = False
    _hold: int = 1
    """Number of the hold, or of the next."""
    _opens: float = -math.inf
    _retry_at: float = -math.inf
    _probe: Permit | None = None
    _probes: int = 0
    """Refused in this hold."""
    _wall: float = 0.0
    _refused_at: float = 0.0
    _passed_at_wall: float = 0.0
    _epoch: float | None = None
    _passed_in_epoch: float = 0.0

    def opens(self, now: float) -> float:
        """When a request may go as far as holds are concerned, or when to look for a probe's answer."""
        if (self._holding or self._suspect is not None) and now > max(self._latest, self._opens) + _IDLE:
            self._suspect = self._probe = None
            if self._holding:
                self._end_hold(self._passed_at_wall, now)
        at = max(self._opens, self._retry_at)
        if self._probe is not None and self._probe.sent is not None and now < self._probe.sent + _LEASE:
            return max(at, self._probe.sent + self._latency, now + 0.02)
        return at

    def rate(self, now: float) -> float:
        """Requests a second, or units of weight."""
        if self.limit is None:
            return _START * math.pow(2.0, min(self._accepted / 40.0, _DOUBLINGS))
        x = (now - self._began) / self._trial - 1.0
        if x < 0.0:
            return self.limit * (1.0 + self._bend * x**3)
        if x < 1.0:
            return self.limit * (1.0 + _EXCESS * x**3)
        doublings = (x - 1.0) * self._trial / _DOUBLING
        return self.limit * (1.0 + _EXCESS) * math.pow(2.0, min(doublings, _DOUBLINGS))

    def send(self, permit: Permit, now: float, *, waited: bool) -> None:
        """A request goes; `waited`: it would have gone earlier at a higher rate."""
        if self._epoch is None:
            self._epoch = self._latest = now
        gap = now - self._latest
        if not waited:
            self._began += gap  # a rate that nobody needs is not on trial
            if gap > _WINDOW:
                self._epoch += gap
        self._latest = permit.sent = now
        permit.weight = self._currency.weigh(permit.tokens)
        self._sends.append(permit)
        while (oldest := self._sends[0].sent) is not None and oldest < now - self._window - 2 * _WINDOW:
            self._sends.popleft()
        self.in_flight += 1
        if self._holding or self._suspect is not None:
            permit.probe, self._probe = self._hold, permit

    def drop(self, permit: Permit) -> None:
        """A request that was sent ended without an answer."""
        self.in_flight = max(0, self.in_flight - 1)
        permit.refused = True
        self._answered(permit)

    def accept(self, permit: Permit, now: float) -> None:
        """A request was answered."""
        self.in_flight = max(0, self.in_flight - 1)
        permit.answered = now
        sent = permit.sent or now
        self._latency += 0.2 * (now - sent - self._latency)
        self._accepted += permit.weight
        self._since += sent > self._reacted
        self._strays.reply(refused=False, blameless=self._blameless(now))
        self._answered(permit)
        if self._holding:
            if permit.probe == self._hold:
                self._recover(sent, now)
        elif self._suspect is not None and (permit.probe > 0 or sent > self._suspect):
            self._believe(self._suspect, now)

    def refuse(self, permit: Permit, now: float, retry_after: float | None) -> None:
        """A request was throttled; nothing is sent for the seconds the service asked for."""
        self.in_flight = max(0, self.in_flight - 1)
        permit.refused, permit.answered = True, now
        sent = permit.sent or now
        current = permit is self._probe
        self._answered(permit)
        if retry_after is not None and retry_after > 0.0:
            self._retry_at = max(self._retry_at, now + min(retry_after, _LONGEST_RETRY_AFTER))
        if self._holding:
            if current:
                self._hold_on(sent, now)
        elif sent > self._reacted:
            self._strays.reply(refused=True, blameless=self._blameless(now))
            self._judge(permit, sent, now)

    def _answered(self, permit: Permit) -> None:
        if permit is self._probe:
            self._probe = None

    def _judge(self, permit: Permit, sent: float, now: float) -> None:
        """A refusal that is news: a stray, the limit a little exceeded, or a wall?"""
        if self._suspect is not None:
            self._against += permit.probe > 0 or sent > self._suspect
            if self._against > 1 and self._strays.wall >= CERTAIN:
                self._stop(self._suspect, now)
            return
        near = self.limit is not None and self._since > 2 and self._is_near(self._measure(sent))  # noqa: PLR2004
        if near or self._strays.wall < SUSPECTED:
            self._isolated(sent, now)
        else:
            self._suspect, self._against = sent, 0
            self._opens = max(self._opens, now + _SECOND_LOOK)

    def _believe(self, suspect: float, now: float) -> None:
        """An answer speaks for the suspect being a stray."""
        self._against -= 1
        if self._against < 0:
            self._suspect = self._probe = None
            self._opens = now
            self._isolated(suspect, now)

    def _isolated(self, sent: float, now: float) -> None:
        """A refusal with answers around it."""
        if self._blameless(now):
            self._strays.met_one()
        if self.limit is None:
            return
        self._note_currency(sent)
        if not self._strays.established:
            self._slow_down(sent, now)

    def _blameless(self, now: float) -> bool:
        """Whether a refusal now would not be the rate's fault, as far as we know."""
        if self.limit is None:
            return True
        low = now < self._began + 0.8 * self._trial or self.rate(now) < 0.85 * self._ceiling
        return low and now > self._cut + self._window

    def _is_near(self, measured: float) -> bool:
        return self.limit is not None and abs(measured - self.limit) <= max(_NEAR * self.limit, 1.0)

    def _passed(self, until: float, seconds: float) -> list[Permit]:
        """What was sent in the seconds before, and not refused."""
        return [
            permit
            for permit in self._sends
            if permit.sent is not None and until - seconds < permit.sent <= until and not permit.refused
        ]

    def _measure(self, until: float) -> float:
        """Requests a second that passed, over the window before."""
        window = self._window
        if len(self._sends) == _MANY:
            window = max(0.1, min(window, until - (self._sends[0].sent or 0.0)))
        return sum(permit.weight for permit in self._passed(until, window)) / window

    def _slow_down(self, sent: float, now: float) -> None:
        """The limit was exceeded, by little: do not stop."""
        measured, limit = self._measure(sent), self.limit or _LEAST
        near, tried = self._is_near(measured), now > self._began + 0.5 * self._trial
        self.limit = max(measured, (0.95 if near else 0.85) * limit)
        self._ceiling = max(self._ceiling, measured)
        if not near:
            self._trial = _SHORTEST_TRIAL
        elif tried:
            self._trial = min(2.0 * self._trial, _LONGEST_TRIAL)
        else:
            self._trial = max(self._trial / 2.0, _TRIAL)
        self._bend = 0.03
        self._opens = max(self._opens, now + 1.0 / limit)
        self._restart(now)

    def _note_currency(self, sent: float) -> None:
        if self._currency.refused_above([permit.tokens for permit in self._passed(sent, self._window)]):
            for permit in self._sends:
                permit.weight = self._currency.weigh(permit.tokens)

    def _restart(self, now: float) -> None:
        self._began = self._cut = self._reacted = now
        self._since = 0
        self._strays.forget()

    def _stop(self, sent: float, now: float) -> None:
        """A wall: send nothing until what it counted has left the window."""
        self._suspect = self._probe = None
        self._holding, self._probes = True, 0
        self._hold += 1
        self._wall = self._refused_at = sent
        self._reacted = now
        self._note_currency(sent)
        self._passed_at_wall = self._measure(sent)
        passed = self._passed(sent, _WINDOW)
        counted = min(passed[0].answered or now, (passed[0].sent or now) + _UPLINK) if passed else sent
        self._opens = max(self._opens, counted + _WINDOW + _LATE)

    def _hold_on(self, sent: float, now: float) -> None:
        """A probe was refused."""
        self._refused_at = sent
        self._passed_at_wall = self._measure(sent)
        held = now - self._wall
        pause = 0.1 * 1.5**self._probes if held < 1.3 else min(0.5 * held, 8.0)  # noqa: PLR2004
        self._probes += 1
        self._opens = now + pause

    def _recover(self, sent: float, now: float) -> None:
        """A probe was answered: the wall is behind us, and where it stood is known better."""
        found = self._passed_at_wall
        if self._refused_at - self._wall > 1.1 * self._window:
            elapsed = max(_WINDOW, (self._refused_at + sent) / 2.0 - (self._epoch or 0.0))
            self._window = min(_LONGEST_WINDOW, elapsed)
            found = (self._accepted - self._passed_in_epoch) / elapsed
        elif self._probes:
            found = (found + self._measure(sent) - 1.0 / self._window) / 2.0
        self._epoch, self._passed_in_epoch = sent, self._accepted
        self._end_hold(found, now)

    def _end_hold(self, found: float, now: float) -> None:
        before = self.limit
        least = _LEAST if before is None else before / 2.0
        near = self._is_near(found)
        self.limit = self._ceiling = max(found, least)
        self._holding, self._suspect, self._probe = False, None, None
        self._restart(now)
        if before is None:
            self._bend, self._trial = 0.05, _TRIAL
            if found < least:
                self._began -= 2.0 * _TRIAL
        elif near:
            self._bend, self._trial = 0.03, min(2.0 * self._trial, _LONGEST_TRIAL)
        else:
            self._bend, self._trial = 0.2, _TRIAL
