"""A pytest fixture, `dashscope_emulator`: code under test asks the service on this machine, unchanged.

    def test_the_index_is_asked_once(dashscope_emulator):
        dashscope_emulator.faults = [faults.Throttle(times=1)]
        my_application.index(["one", "two"])
        assert dashscope_emulator.billed_texts == 2

pytest loads it in every run wherever this package is installed, so it costs next to nothing until a test asks for
the fixture. It is installed as a module of its own as well, `pytest_dashscope_embeddings`, beside the package, and
pytest loads that one: an import of this one imports the package, with httpx and pydantic, before coverage is measured.
Switched off by `-p no:dashscope_embeddings`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

_KEY = "sk-made-up-for-the-emulator"
_CLEARED_VARIABLES = ("DASHSCOPE_API_KEY_FILE_PATH", "DASHSCOPE_API_REGION", "DASHSCOPE_WORKSPACE_ID")
"""Variables that would name another key, host or account than the emulator's."""


@pytest.fixture(scope="session")
def _dashscope_emulator_server() -> Iterator[Server]:
    """One address for the whole run: an object that outlives its test still reaches somebody."""
    from dashscope_embeddings.emulator import in_process  # noqa: PLC0415 - see the top of the file

    with in_process().serve() as server:
        yield server


@pytest.fixture
def dashscope_emulator(_dashscope_emulator_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """The emulator that everything asks while the test runs; nothing of earlier tests is left in it.

    Both `base_url="emulator"` and the addresses in `DASHSCOPE_HTTP_BASE_URL` and `DASHSCOPE_COMPATIBLE_BASE_URL`,
    which it sets to a port of this machine, lead to it; `DASHSCOPE_API_KEY` is a made-up key, and any key is let
    in. Not led here: code that passes another `base_url=`, `region=` or `workspace=` itself.

    What was asked is in `requests`, `billed_texts`, `billed_tokens` (counts) and `asked` (the latest 100 requests
    in full). `faults = [...]` sets what goes wrong, from the next request on. Between tests requests and faults
    are forgotten, and what clients learned of the pace; a client that outlives its test keeps its own. Files and
    batches of the Batch route stay, under ids of their own.
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
        emulator.faults = ()
        emulator.clear()
        # What clients learned of quotas and limits from one test's faults is not so in the next.
        _process.reset(learned_only=True)

    reset()
    yield emulator
    reset()
