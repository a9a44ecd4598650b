"""The constants of the search for rate and concurrency: value, unit, reason, and the simulated service if one fixes it.

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
FREQUENT_429S = 8
"""So many single 429s among the last `RECENT_REPLIES` end the ramp ("GCRA 30/s, room for 3, 200 ms")."""

# --- the open circuit --------------------------------------------------------------------------------------
WINDOW_SECONDS = 1.0
"""The counting window that is tried first; quotas per minute may be enforced per second."""
WINDOW_MARGIN_SECONDS = 0.006
"""Waited after the end of that window, for the jitter of the network ("arrival 30/s, 10 ms")."""
LONG_WINDOWS_SECONDS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 30.0, 45.0, 60.0)
"""Longer windows: a probe when each would have ended ("180 in 6 s", "600 in 60 s")."""
LATE_MINUTE_SECONDS = (60.5, 61.5)
"""More probes for a minute, which is the usual window: it begins late where connecting takes long ("2400 in 60 s")."""
LONG_WINDOW_MARGIN_SECONDS = 0.05
"""Waited after them: the service counts a first request when its connection is made ("tokens 60,000 in 6 s")."""
WINDOW_TOLERANCE_SECONDS = 0.15
"""How late a probe may pass and still show a window of 1 s ("answer 30/s, slow 429s, lognormal")."""
LONG_WINDOW_REFUSALS = 2
"""Refused probes after that which show a longer window: a single one may be random ("random 429s 20%, 30/s")."""
PROBE_DELAY_SECONDS = 0.04
"""Before the first probe without a known limit; later ones show buckets and caps late ("GCRA 30/s, room for 3")."""
AT_ONCE_SECONDS = 0.15
"""A first probe that passes within this time after the 429 does not show a window of 1 s ("cap 32, 500 ms")."""
PROBE_BACKOFF = 2.5
"""Factor for the next probe's delay; a smaller one costs more 429s ("arrival 30/s, 10 ms")."""
MAX_PROBE_GAP_SECONDS = 8.0
FIXED_TIMES_IN_FLIGHT = 1.5
"""If more than this multiple of the requests in flight passed within the second, it was no cap ("fixed second 30")."""
RANDOM_PASS_SHARE = 0.6
"""If more requests than this passed since the first 429, the 429s were random ("random 429s 5%, no quota")..."""
MANY_SENDS = 8
"""...also if one probe was refused, for that may be random too, if so many sends tell ("random 429s 14%, no quota")...
"""
MAX_REFUSED_SHARE = 0.3
"""...unless more of the last `RECENT_REPLIES` than this were 429s: a wrong verdict must not be repeated for long
("GCRA 6.6/s, room for 4, slow 429s 1.2 s": 66 % throttled without it)."""
FREQUENT_RANDOM = 0.05
"""Where more of the replies are random 429s, a first probe that passes ends the suspicion ("random 429s 20%, 30/s")."""
QUICK_SECONDS = 0.5
"""...and 429s come sooner than this: else a mistake costs too many ("11/s, slow 429s, 1 s")."""
MAX_RETRY_AFTER_SECONDS = 60.0
IDLE_SECONDS = 60.0
"""After this long without a request the circuit closes: every counting window has ended."""
WINDOW_ROOM = 0.85
"""A limit that is met when less than this share of a window of 1 s had passed, but as many were in flight as at first,
is one on concurrency ("cap 4, 1 s, lognormal")."""
FEW_PASSED = 3.0
"""If no more passed between the first 429 and the probe, they say nothing about the rate ("two processes, 30/s")."""

# --- a known limit -----------------------------------------------------------------------------------------
SHARE = 0.97
"""Share of a measured limit that is used: the service's clock and order are not ours ("arrival 30/s, 10 ms")."""
NEAR = 0.12
"""Relative difference of two measurements of the same limit ("arrival 30/s, 200 ms")."""
MIN_LIMIT = 0.2
"""Requests a second: no limit is estimated below it."""
FIRST_HOLD, MAX_HOLD = 2.0, 4.0
"""Seconds at the limit before it is exceeded: at first, and when it was confirmed ("30/s, 60/s from 5 s")."""
HELD_REQUESTS = 120.0
"""No more requests than these are sent at the limit before it is exceeded: one or two 429s among them are few
("neighbour half of 150/s")."""
OVERSHOOT, DOUBLING_SECONDS = 0.03, 1.5
"""Share by which it is exceeded at first, for as long as it was held, and the seconds of a doubling after that."""
BUCKET_HOLD, UNSURE_HOLD, BUCKET_DOUBLING_SECONDS = 0.3, 0.5, 0.6
"""The same for a bucket: while its limit rises, after a surprise, and the doubling ("GCRA 30/s, room for 3")."""
UNSURE_SHARE = 0.7
"""A bucket's limit falls by no more at once: a measurement of less than a second varies ("four shards of 10/s")."""
DROPPED_SHARE, DROPPED_HOLD, DROPPED_SECONDS = 0.8, 0.8, 15.0
"""A fall below this share may be another program of the account: shorter holds, for these seconds, and until the limit
is back ("neighbour half of 40/s, 2 s on, 5 s off")."""
FALL_SHARE, FALL_SECONDS = 0.7, (0.1, 1.5)
"""If less than this share of what left the window passed between two limits that were met so many seconds apart, the
limit falls by that share at once, not in steps ("neighbour half of 40/s, 10 ms, 3,000")."""
DROPPED_OVERSHOOT, DROPPED_DOUBLING_SECONDS = 0.1, 0.7
HINTED_HOLD, MAX_HINTED_HOLD = 6.0, 60.0
"""Seconds of holding where a 429 asks for seconds of silence: exceeding costs more ("Retry-After 1, 30/s")."""
HINTED_HOLD_PER_LIMIT, HINTED_QUICK_HOLD = 0.2, 3.0
"""A limit that was measured once is held for this time, in seconds, for each request a second: the lower it is, the
longer the job, and the likelier it is that only the room of a small bucket was measured. A hold shorter than
`HINTED_QUICK_HOLD` is doubled like a bucket's ("GCRA 52.4/s, room for 3, Retry-After 1": 6 times the ideal without
it)."""
BUCKET_MEMORY_SECONDS = 3.0
"""A bucket's rate is what passed since the earliest limit met within this time ("GCRA 30/s, room for 3")."""
RECENT_SENDS = 10
"""Fewer sends than these do not show the rate that a bucket lets through ("GCRA 30/s, room for 3, 200 ms")."""
LAST_SENDS_SHARE = 0.25
"""Of the difference between what passed last and what passed since a bucket was empty, added to the latter: without it,
a limit that is far too low rises slowly ("GCRA 127/s, room for 5, lognormal 0.8 s")."""
RECENT_REPLIES = 50
"""The number of last replies in which single 429s are compared with the number of random ones to expect."""
EXCLUDED_SHARE = 0.85
"""At a rate below this share of what used to pass, 429s are not due to the rate ("two shards of 20/s")."""
FAR_BELOW_SHARE = 0.45
"""The same after a drop, of what passed before it: another program takes half ("random 429s 20%, 30/s")."""

# --- random 429s or a limit (CUSUM) ------------------------------------------------------------------------
LIMIT_SHARE = 0.6
"""Share of 429s at a limit, at least: the hypothesis that is tested against random ones ("two shards of 20/s")."""
THRESHOLD_NATS = 6.0
"""Two 429s with at most two successes between them, if random ones are rare ("random 429s 1%, no quota")."""
MIN_RANDOM_SHARE, MAX_RANDOM_SHARE = 0.01, 0.2
"""Bounds of the assumed share of random 429s; a higher one misses a quota cut in half ("neighbour half of 40/s").
Within a configured quota the higher one is assumed ("erratic 20 %, 100/s known")."""
MEMORY_REPLIES = 200.0
"""Replies after which the counts of random 429s are halved: the share may change ("random 429s 5%, 30/s")."""
EXAMINED_SENDS = 64
"""The newest sends that are tested."""
NEXT_SENDS, NEXT_PASSED = 4, 3
"""A 429 was random if `NEXT_PASSED` of the next requests passed: those after the first 429 of a limit are refused
("arrival 30/s, 10 ms")."""

# --- an amount in a longer window --------------------------------------------------------------------------
LONG_WINDOW_STRETCH = 1.003
"""The window kept is longer by this, for the jitter of the network ("180 in 6 s")."""
LONG_WINDOW_TRY_SECONDS = 0.1
"""Interval of tries beyond the known amount, as long as they pass ("tokens 60,000 in 6 s")."""
LONG_WINDOW_PACE = 4.0
"""Times the mean rate at which the amount is used up: the service may limit bursts as well ("600 in 60 s")."""
LONG_WINDOW_ROOM = 0.8
"""A limit that is met while less than this share of the amount is in use is not this window's ("46/s, 396 ms, random
429s 13%")."""

# --- requests in flight ------------------------------------------------------------------------------------
START_IN_FLIGHT = 16
"""Requests in flight at first, and the floor: what every account takes in practice."""
MAX_IN_FLIGHT = 128
"""More threads cost more CPU than they win; 128 in flight are 128 requests/s at 1 s a reply ("100/s, 1 s")."""
LATENCY_SAMPLES = 16
"""Latencies whose median is compared; a single slow reply says nothing ("50/s, lognormal 0.2 s")."""
SPARE_IN_FLIGHT = 1.7
"""Times the requests that the service works on at once, by its latencies: more in flight only wait there. The factor
leaves room for growth ("queue 40/s, 200 ms")..."""
SPARE_FOR_NOISE, OWN_NOISE = 2.5, 0.3
"""...and grows by the first of these for each mean difference of two replies, as a share of the latency, beyond the
second: where latencies vary, the lowest are low by chance ("GCRA 127/s, room for 5, lognormal 0.8 s"); those of
threads that wait for each other vary less (row `busy` of the benchmarks)."""
SHRINK_ABOVE = 1.3
"""Times that: the window shrinks from there on ("crowded above 10, 200 ms")."""
LATENCY_SLACK_SECONDS = 0.02
"""Added to the comparison: a few milliseconds are noise of the client's machine ("arrival 30/s, late timers")."""
FORGET_LATENCIES_SECONDS = 10.0
"""After this long without a request the window starts again: latencies may be others."""
CAP_TEST_SECONDS, MAX_CAP_TEST_SECONDS = 0.1, 16.0
"""Time at a found cap until more at once are tried; doubled with every refusal ("cap 8, 200 ms")."""
CAP_SPACING = 1.25
"""Requests a second at a cap: times those that pass at the median latency ("cap 8, 200 ms")."""
CAP_ACCEPTED = 3
"""So many answers to requests beyond a cap show that it is higher ("cap 32, 500 ms")."""
CAP_FREQUENT_RANDOM = 0.03
"""Where more of the replies are random 429s, a test of a higher cap fails after three 429s, not after one
("random 429s 5%, no quota")."""
MIN_CAP = 2
"""A cap is not set lower: a probe that is never answered must not hold up everybody."""
LOWER_CAP_SHARE = 0.75
"""If 429s go on with this share of a cap in flight, it may be lower; with less, it is none ("cap 5, 54 ms")."""
CAP_CONFIRMATIONS = 2
"""Refused tests of the same cap that make it certain ("cap 4, 50 ms")."""
