"""Jobs that ask a `Limiter` as the drivers do, against a service of `service_shapes.py`, on a fake clock.

Only the public interface of `Limiter` is used. A job keeps at most `limiter.concurrency` requests under way (asked
for, waiting or in flight). A waiting one sleeps for the seconds that it was told and a little longer, or is woken by
`permit.wake`, then asks again. A throttled one asks again with a new permit. No real time passes; every run is seeded.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service_shapes import Service, Work

    from dashscope_embeddings._core.rate_limiter import Limiter, Permit


@dataclass(frozen=True)
class Machine:
    """The client's side: network and timers, in seconds."""

    one_way: float = 0.001
    """Network, from the client to the service or back."""
    one_way_jitter: float = 0.0003
    handshake: float = 0.006
    """A new connection costs a round trip and up to this much more, so requests overtake each other."""
    late: tuple[float, float] = (0.0, 0.002)
    """A sleeper wakes up so much later than it asked for."""
    wake_delay: tuple[float, float] = (0.00005, 0.0005)
    """Until a caller that was woken runs."""


SLOW_CONNECTS = Machine(handshake=0.3)
"""As with TLS to far away, or a service that takes up connections slowly: the first requests arrive in any order."""
LOADED_MACHINE = Machine(late=(0.005, 0.02), wake_delay=(0.001, 0.01))


@dataclass
class Result:
    """Result of a simulated run."""

    seconds: float = 0.0
    """Time of the last reply."""
    answered: int = 0
    refused: int = 0
    tokens: int = 0
    """Of answered requests."""
    peak_in_flight: int = 0
    ideal_seconds: float = math.nan
    sends: list[tuple[float, float, bool]] = field(default_factory=list)
    """Each request: when it was sent, when its reply came, and whether it was answered."""

    @property
    def slowness(self) -> float:
        """The time it took, as a multiple of the ideal."""
        return self.seconds / self.ideal_seconds

    @property
    def throttled_share(self) -> float:
        """Refused requests as a share of all that were sent."""
        return self.refused / max(1, self.refused + self.answered)


@dataclass
class Job:
    """Requests of one process: its limiter, and their sizes in tokens."""

    limiter: Limiter
    sizes: Sequence[int]
    start_seconds: float = 0.0
    estimate_factor: float = 1.0
    """Estimated tokens of a request, which the limiter gets, divided by its actual tokens."""
    next: int = 0
    under_way: int = 0
    idle_connections: int = 0

    def concurrency(self) -> int:
        return self.limiter.concurrency


@dataclass(slots=True, eq=False)
class _Request:
    job: Job
    size: int
    permit: Permit
    turn: int = 0
    """Number of its present sleep: a timer of an earlier one does nothing."""
    is_asleep: bool = False
    sent_at: float = 0.0
    work: Work | None = None


class Simulation:
    """An event heap, a clock, and a service; `on_tick` is called every 100 ms of a traced run."""

    def __init__(self, service: Service, machine: Machine | None = None, *, seed: int = 0) -> None:
        self.now = self._began = 1000.0
        self.result = Result()
        self.in_flight = 0
        self._service, self._machine = service, machine or Machine()
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._open_jobs = 0

    def clock(self) -> float:
        return self.now

    def schedule(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        self._order += 1
        heapq.heappush(self._events, (self.now + seconds, self._order, action, arguments))

    def run(self, *jobs: Job, give_up_seconds: float = 1e6, on_tick: Callable[[], None] | None = None) -> Result:
        """Sends all requests and returns the result; of a job that does not end in time, what it reached."""
        self._open_jobs = len(jobs)
        for job in jobs:
            self.schedule(job.start_seconds, self._fill, job)
        if on_tick is not None:
            self.schedule(0.1, self._tick, on_tick)
        last = self.now + give_up_seconds
        while self._events and self._open_jobs and self.now < last:
            self.now, _, action, arguments = heapq.heappop(self._events)
            action(*arguments)
        return self.result

    def _tick(self, on_tick: Callable[[], None]) -> None:
        on_tick()
        self.schedule(0.1, self._tick, on_tick)

    def _between(self, span: tuple[float, float]) -> float:
        return span[0] + (span[1] - span[0]) * self._random.random()

    def _fill(self, job: Job) -> None:
        """Begins as many requests as the limiter wants under way."""
        while job.next < len(job.sizes) and job.under_way < job.concurrency():
            job.under_way += 1
            job.next += 1
            self._begin(job, job.sizes[job.next - 1])

    def _begin(self, job: Job, size: int) -> None:
        permit = job.limiter.create_permit(max(1, round(size * job.estimate_factor)))
        request = _Request(job, size, permit)
        permit.wake = lambda: self._wake(request)
        self._ask(request, 0)

    def _wake(self, request: _Request) -> None:
        if request.is_asleep:
            self.schedule(self._between(self._machine.wake_delay), self._ask, request, request.turn)

    def _ask(self, request: _Request, turn: int) -> None:
        if turn != request.turn:
            return
        request.turn += 1
        request.is_asleep = False
        wait = request.job.limiter.try_acquire(request.permit)
        if wait > 0.0:
            request.is_asleep = True
            self.schedule(wait + self._between(self._machine.late), self._ask, request, request.turn)
            return
        request.sent_at = self.now
        self.in_flight += 1
        self.result.peak_in_flight = max(self.result.peak_in_flight, self.in_flight)
        self.schedule(self._connect(request.job) + self._one_way(), self._arrive, request)

    def _connect(self, job: Job) -> float:
        if job.idle_connections:
            job.idle_connections -= 1
            return 0.0
        return 2.0 * self._one_way() + self._machine.handshake * self._random.random()

    def _one_way(self) -> float:
        return self._machine.one_way + self._machine.one_way_jitter * self._random.random()

    def _arrive(self, request: _Request) -> None:
        request.work = self._service.arrive(self.now - self._began, request.size)
        self.schedule(request.work.seconds, self._leave, request)

    def _leave(self, request: _Request) -> None:
        assert request.work is not None
        admitted = self._service.answer(request.work, self.now - self._began)
        self.schedule(self._one_way(), self._on_reply, request, admitted)

    def _on_reply(self, request: _Request, admitted: bool) -> None:  # noqa: FBT001 - passed on by `schedule`
        job, result = request.job, self.result
        self.in_flight -= 1
        job.idle_connections += 1
        result.seconds = self.now - self._began
        result.sends.append((request.sent_at - self._began, result.seconds, admitted))
        if not admitted:
            result.refused += 1
            job.limiter.on_throttled(request.permit, self._service.retry_after)
            self._begin(job, request.size)
        else:
            result.answered += 1
            result.tokens += request.size
            job.limiter.on_success(request.permit, request.size)
            job.under_way -= 1
            self._open_jobs -= job.under_way == 0 and job.next == len(job.sizes)
        self._fill(job)
