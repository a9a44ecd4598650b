"""Shared by the property tests: number of examples, and strategies for texts and lists.

`HYPOTHESIS_EXAMPLES=10` runs ten times as many examples from a random seed; without it every run is the same.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from dashscope_embeddings import _process

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")

_EXAMPLE_FACTOR = int(os.environ.get("HYPOTHESIS_EXAMPLES") or 0)


def profile(count: int, **more: Any) -> settings:
    """Settings for `count` examples, the same on every machine."""
    return settings(
        max_examples=count * max(_EXAMPLE_FACTOR, 1),
        derandomize=not _EXAMPLE_FACTOR,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        # Slow is what the emulator's vectors and asyncio make it; the one fixture is the clean environment.
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
        **more,
    )


def examples(count: int) -> Callable[[T], T]:
    """`profile` as a decorator that preserves the test's type."""
    decorate: Callable[[T], T] = profile(count)
    return decorate


def reset_shared_state() -> None:
    """What the process learned in the example before: fixtures run only once a test."""
    _process.reset(learned_only=True)


# --- texts -------------------------------------------------------------------------------------------------

_ALPHABETS = (
    st.characters(codec="utf-8"),
    st.sampled_from("ab cé中国，。\n"),
    st.characters(min_codepoint=0x10000, codec="utf-8"),
)


def any_texts(max_size: int = 60) -> st.SearchStrategy[str]:
    """Strings of any Unicode plane that UTF-8 can encode, blank ones included."""
    return st.one_of(*(st.text(alphabet, max_size=max_size) for alphabet in _ALPHABETS))


def texts(max_size: int = 60) -> st.SearchStrategy[str]:
    """Strings that can be embedded: not blank."""
    return any_texts(max_size).map(lambda text: text if text.strip() else f"{text}x")


def lists_of(items: st.SearchStrategy[T], min_size: int = 0, max_size: int = 40) -> st.SearchStrategy[list[T]]:
    """Lists, many of which contain items several times."""
    with_repeats = st.lists(items, min_size=1, max_size=5).flatmap(
        lambda pool: st.lists(st.sampled_from(pool), min_size=min_size, max_size=max_size)
    )
    return st.lists(items, min_size=min_size, max_size=max_size) | with_repeats
