"""The constants of the search for rate and concurrency: value, unit, reason, and the simulated service that fixes it.

The services are those of `tests/support/limiter_simulation.py`, which shows what a change does to each.
"""

from __future__ import annotations

# --- slow start and ramp -----------------------------------------------------------------------------------
START_RATE = 120.0
"""Requests a second at first. More would send many requests into a small quota ("arrival 30/s, 10 ms")."""
START_DOUBLING_ANSWERS = 60.0
"""Answers that double it. Fewer meet a quota of a longer window with too many in flight ("180 in 6 s")."""
MAX_DOUBLINGS = 9.0
"""Of any rate: a higher one is as good as no limit."""
RAMP_DOUBLING_SECONDS = 0.12
"""The ramp starts from a poor estimate and has to be over soon ("cap 8, 200 ms")."""
UNLIMITED_RATE = 1000.0
"""Requests a second that the ramp reaches only where there is no rate limit ("cap 8, 200 ms")."""
FREQUENT_429S = 8
"""So many single 429s among the last `RECENT_REPLIES` end the ramp ("GCRA 30/s, room for 3, 200 ms")."""

# --- the open circuit --------------------------------------------------------------------------------------
WINDOW_SECONDS = 1.0
"""The counting window that is tried first; quotas per minute may be enforced per second."""
WINDOW_MARGIN_SECONDS = 0.006
"""Waited after the end of that window, for the jitter of the network ("arrival 30/s, 10 ms")."""
LONG_WINDOWS_SECONDS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 30.0, 45.0, 60.0)
"""Longer windows: a probe when each would have ended ("180 in 6 s", "600 in 60 s")."""
LONG_WINDOW_MARGIN_SECONDS = 0.05
"""Waited after them: the service counts a first request when its connection is made ("tokens 60,000 in 6 s")."""
WINDOW_TOLERANCE_SECONDS = 0.15
"""How late a probe may pass and still show a window of 1 s ("answer 30/s, slow 429s, lognormal")."""
PROBE_DELAY_SECONDS = 0.04
"""Before the first probe without a known limit; later ones show buckets and caps late ("GCRA 30/s, room for 3")."""
PROBE_BACKOFF = 2.5
"""Factor for the next probe's delay; a smaller one costs more 429s ("arrival 30/s, 10 ms")."""
MAX_PROBE_GAP_SECONDS = 8.0
FIXED_TIMES_IN_FLIGHT = 1.5
"""If more than so many times the requests in flight passed within the second, it was no cap ("fixed second 30")."""
RANDOM_PASS_SHARE = 0.6
"""If more requests than this passed since the first 429, the 429s were random ("strays 5%, no quota")."""
FREQUENT_RANDOM = 0.05
"""Where more of the replies are random 429s, a first probe that passes ends the suspicion ("strays 20%, 30/s")."""
MAX_RETRY_AFTER_SECONDS = 60.0
IDLE_SECONDS = 60.0
"""After this long without a request the circuit closes: every counting window has ended."""

# --- a known limit -----------------------------------------------------------------------------------------
SHARE = 0.97
"""Share of a measured limit that is used: the service's clock and order are not ours ("arrival 30/s, 10 ms")."""
NEAR = 0.12
"""Relative difference of two measurements of the same limit ("arrival 30/s, 200 ms")."""
MIN_LIMIT = 0.2
"""Requests a second: no limit is estimated below it."""
FIRST_HOLD, MAX_HOLD = 2.0, 4.0
"""Seconds at the limit before it is exceeded: at first, and when it was confirmed ("30/s, 60/s from 5 s")."""
OVERSHOOT, DOUBLING_SECONDS = 0.03, 1.5
"""Share by which it is exceeded at first, for as long as it was held, and the seconds of a doubling after that."""
BUCKET_HOLD, UNSURE_HOLD, BUCKET_DOUBLING_SECONDS = 0.25, 0.5, 0.6
"""The same for a bucket: at first, after a surprise, and the doubling ("GCRA 30/s, room for 3")."""
DROPPED_SHARE, DROPPED_HOLD, DROPPED_SECONDS = 0.8, 0.8, 15.0
"""A fall below this share may be another program of the account: shorter holds for so long ("neighbour")."""
DROPPED_OVERSHOOT, DROPPED_DOUBLING_SECONDS = 0.1, 0.7
HINTED_HOLD, MAX_HINTED_HOLD = 6.0, 60.0
"""Seconds of holding where a 429 asks for seconds of silence: exceeding costs more ("Retry-After 1, 30/s")."""
BUCKET_MEMORY_SECONDS = 3.0
"""A bucket's rate is what passed since the earliest limit met within this time ("GCRA 30/s, room for 3")."""
RECENT_SENDS = 10
"""So many sends tell the rate that a bucket lets through ("GCRA 30/s, room for 3, 200 ms")."""
RECENT_REPLIES = 50
"""Among so many replies, single 429s are compared with the random ones that are expected."""
EXCLUDED_SHARE = 0.85
"""At a rate below this share of what used to pass, 429s are not due to the rate ("two shards of 20/s")."""
