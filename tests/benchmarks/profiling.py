"""CPU seconds by function, over all threads of a client."""

from __future__ import annotations

import contextlib
import cProfile
import io
import pstats
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LINES = 28
_THREADS_UNTIL = (3, 12)
"""From this version on only one thread of a process can be profiled."""


@contextlib.contextmanager
def profiled() -> Iterator[None]:
    """Prints to the standard error where the CPU time went within, by own and by cumulated time."""
    profiles: list[cProfile.Profile] = []

    def watch(*_: object) -> None:
        # The first event of a new thread: from here on its own profile takes the events.
        profile = cProfile.Profile(time.thread_time)
        profiles.append(profile)
        profile.enable()

    if sys.version_info < _THREADS_UNTIL:
        threading.setprofile(watch)
    watch()
    try:
        yield
    finally:
        profiles[0].disable()
        threading.setprofile(None)
        _print(profiles)


def _print(profiles: list[cProfile.Profile]) -> None:
    out = io.StringIO()
    for profile in profiles:
        # Not create_stats: it would end the profile of the thread that calls it.
        profile.snapshot_stats()
    stats = pstats.Stats(profiles[0], stream=out)
    for profile in profiles[1:]:
        if profile.stats:
            stats.add(profile)
    if sys.version_info >= _THREADS_UNTIL:
        out.write("Other threads than the main one are missing: run this with Python 3.11.\n")
    stats.strip_dirs()
    for order in ("tottime", "cumtime"):
        stats.sort_stats(order).print_stats(_LINES)
    sys.stderr.write(out.getvalue())
