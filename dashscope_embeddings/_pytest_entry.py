"""A pytest fixture, `dashscope_emulator`: unchanged code under test uses the emulator instead of the service.

    def test_the_index_is_asked_once(dashscope_emulator):
        dashscope_emulator.faults = [faults.Throttle(times=1)]
        my_application.index(["one", "two"])
        assert dashscope_emulator.billed_texts == 2

pytest loads the plugin in every run where this package is installed, so it imports the emulator only when a test uses
the fixture. This file is installed as a top-level module, `pytest_dashscope_embeddings`: within the package, its import
would import the package, with httpx and pydantic, before coverage is measured.
`-p no:dashscope_embeddings` disables it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

_KEY = "sk-made-up-for-the-emulator"
_CLEARED_VARIABLES = (
    "DASHSCOPE_API_KEY_FILE_PATH",
    "DASHSCOPE_BASE_URL",
    *("DASHSCOPE_API_REGION", "DASHSCOPE_REGION"),
    *("DASHSCOPE_WORKSPACE_ID", "DASHSCOPE_WORKSPACE"),
)
"""Variables that would name another key, host or account than the emulator's."""


@pytest.fixture(scope="session")
def _dashscope_emulator_server() -> Iterator[Server]:
    """One server for the whole run, so that an object that outlives its test can still connect."""
    from dashscope_embeddings.emulator import in_process  # noqa: PLC0415 - see the top of the file

    with in_process().serve() as server:
        yield server


@pytest.fixture
def dashscope_emulator(_dashscope_emulator_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """The emulator that serves all requests while the test runs, without state of earlier tests.

    It serves `base_url="emulator"`, and a port of this machine to which it sets `DASHSCOPE_HTTP_BASE_URL` and
    `DASHSCOPE_COMPATIBLE_BASE_URL`. `DASHSCOPE_API_KEY` is set to a made-up key; any key is accepted. Code that
    passes another `base_url=`, `region=` or `workspace=` itself does not reach it.

    `requests`, `billed_texts` and `billed_tokens` count what it received; `asked` holds the latest 100 requests.
    `faults = [...]` injects faults from the next request on, and `tells_quota = True` answers `fetch_quota()`. Between
    tests, requests, faults and that switch are reset, and the rate limits and model limits that clients measured; a
    client that outlives its test keeps its own. Files and batches of the Batch route stay, under their own ids.
    """
    from dashscope_embeddings import _process  # noqa: PLC0415 - see the top of the file
    from dashscope_embeddings.emulator import in_process  # noqa: PLC0415 - same

    emulator = in_process()
    _dashscope_emulator_server.emulator = emulator
    root = _dashscope_emulator_server.url
    monkeypatch.setenv("DASHSCOPE_HTTP_BASE_URL", f"{root}/api/v1")
    monkeypatch.setenv("DASHSCOPE_COMPATIBLE_BASE_URL", f"{root}/compatible-mode/v1")
    monkeypatch.setenv("DASHSCOPE_API_KEY", _KEY)
    for name in _CLEARED_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def reset() -> None:
        emulator.faults, emulator.tells_quota = (), False
        emulator.clear()
        # Limits measured under one test's faults do not hold in the next.
        _process.reset(learned_only=True)

    reset()
    yield emulator
    reset()
