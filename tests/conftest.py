"""What every test starts from: nothing of this machine, nothing of the tests before, a service of its own."""

from __future__ import annotations

import asyncio
import gc
import os
import warnings
from typing import TYPE_CHECKING

import pytest

from dashscope_embeddings import _process
from dashscope_embeddings.emulator import Emulator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from dashscope_embeddings.emulator.http import Server


def pytest_addoption(parser: pytest.Parser) -> None:
    """Nothing asks the real service unless it is told to."""
    parser.addoption("--live", action="store_true", help="ask the real service, which needs a key and bills")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of the real service are left out where nobody asked for them."""
    if not config.getoption("--live"):
        live = [item for item in items if item.get_closest_marker("live") is not None]
        config.hook.pytest_deselected(items=live)
        items[:] = [item for item in items if item not in live]


@pytest.fixture(autouse=True)
def clean_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `DASHSCOPE_*` variable, no key file, and nothing that the process learned in an earlier test."""
    _process.reset()
    if request.node.get_closest_marker("live") is not None:
        return
    for name in [name for name in os.environ if name.startswith("DASHSCOPE_")]:
        monkeypatch.delenv(name)
    home: Path = request.getfixturevalue("_empty_home")
    # Not patched inside the package: child processes must not find a key file either.
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))


@pytest.fixture(scope="session")
def _empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def emulator() -> Emulator:
    """The service; counts and logs what it was asked."""
    return Emulator()


@pytest.fixture
def served(emulator: Emulator) -> Iterator[Server]:
    """The same emulator behind a real socket, at `served.url`."""
    with emulator.serve() as server:
        yield server


@pytest.fixture
def arrival(emulator: Emulator) -> Callable[[int], Awaitable[None]]:
    """To await, until so many requests have come: a server's thread cannot set an event of the loop."""

    async def wait_for_requests(requests: int) -> None:
        for _ in range(2_000):
            if emulator.requests >= requests:
                return
            await asyncio.sleep(0.005)
        pytest.fail(f"{emulator.requests} requests came, not {requests}")

    return wait_for_requests


@pytest.fixture
def leaks() -> Callable[[Callable[[], object]], list[str]]:
    """To call with a function; gives what Python says about sockets that it left open."""

    def collect_warnings(run: Callable[[], object]) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ResourceWarning)
            run()
            gc.collect()
            messages = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
            # They hold what they warn of: it would be warned of again, outside.
            caught.clear()
        return messages

    return collect_warnings
