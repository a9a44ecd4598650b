"""The fixture that this package gives to other projects' tests; `tests/packaging` asks the installed one the same."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dashscope_embeddings import _pytest_entry

if TYPE_CHECKING:
    import pytest

pytest_plugins = ["pytester"]

# The file as it stands, not the copy that the entry point names: an editable installation may hold an older one.
OPTIONS = ("-q", "-p", "no:dashscope_embeddings", "-p", "no:cacheprovider")

PROJECT = """
import functools
import hashlib
import os
import pytest
from dashscope_embeddings import EmbeddingClient, ServerError
from dashscope_embeddings._core import rate_limiter
from dashscope_embeddings.emulator import faults

client = EmbeddingClient(base_url="emulator", max_retries=0)
later_client = functools.cache(EmbeddingClient)


@pytest.mark.parametrize("protocol", ["native", "openai"])
def test_code_that_reads_its_environment_asks_the_emulator(dashscope_emulator, protocol):
    client = EmbeddingClient(protocol=protocol)
    assert client.settings.address.host.startswith("127.0.0.1:")
    vectors = client.embed(["one", "two"]).dense
    role = "document" if protocol == "native" else "query"
    assert vectors == [dashscope_emulator.dense(text, text_type=role) for text in ("one", "two")]
    assert (dashscope_emulator.requests, dashscope_emulator.billed_texts) == (1, 2)
    assert dashscope_emulator.asked[0].protocol == protocol
    assert dashscope_emulator.asked[0].texts == ("one", "two")


async def test_code_that_names_the_emulator_asks_the_same_one_from_a_loop_too(dashscope_emulator):
    await EmbeddingClient(base_url="emulator").aembed("one", text_type="query")
    assert [asked.text_type for asked in dashscope_emulator.asked] == ["query"]


def test_a_region_a_key_file_and_a_workspace_of_the_machine_lead_nowhere(dashscope_emulator):
    EmbeddingClient().embed("one")
    assert "x-dashscope-workspace" not in dashscope_emulator.asked[0].headers
    assert hashlib.sha256(b"sk-of-the-machine").hexdigest() not in dashscope_emulator.keys_seen
    assert len(dashscope_emulator.keys_seen) == 1


def test_a_fault_triggers_for_the_next_request(dashscope_emulator):
    client.embed("one")
    dashscope_emulator.faults = [faults.Status(500)]
    with pytest.raises(ServerError):
        client.embed("two")
    assert [asked.status for asked in dashscope_emulator.asked] == [200, 500]
    assert rate_limiter._limiters


def test_it_ends_with_its_test(dashscope_emulator):
    assert (dashscope_emulator.requests, dashscope_emulator.asked, dashscope_emulator.faults) == (0, [], ())
    assert not rate_limiter._limiters
    client.embed("three")
    assert dashscope_emulator.billed_texts == 1


@pytest.mark.parametrize("text", ["one", "two"])
def test_a_client_that_outlives_its_test_asks_the_emulator_of_the_next(dashscope_emulator, text):
    later_client().embed(text)
    assert [asked.texts for asked in dashscope_emulator.asked] == [(text,)]


def test_without_the_fixture():
    later_client().close()
    assert "DASHSCOPE_HTTP_BASE_URL" not in os.environ
    assert os.environ["DASHSCOPE_API_KEY"] == "sk-of-the-machine"
"""


def test_the_fixture_does_in_another_project_what_it_promises(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That project turns every warning into an error, as this one does."""
    monkeypatch.setenv("DASHSCOPE_API_REGION", "ap-southeast-1")
    monkeypatch.setenv("DASHSCOPE_WORKSPACE_ID", "ws-of-the-machine")
    monkeypatch.setenv("DASHSCOPE_API_KEY_FILE_PATH", "key-of-the-machine")
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-of-the-machine")
    pytester.makeini(
        "[pytest]\nfilterwarnings = error\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    pytester.makepyfile(PROJECT)
    pytester.runpytest_inprocess(*OPTIONS, plugins=[_pytest_entry]).assert_outcomes(passed=9)


def test_until_a_test_asks_for_it_nothing_of_the_package_is_loaded(tmp_path: Path) -> None:
    # By its installed name: beside the package.
    source = Path(_pytest_entry.__file__).read_bytes()
    (tmp_path / "pytest_dashscope_embeddings.py").write_bytes(source)
    ask = (
        "import sys, pytest; before = set(sys.modules); import pytest_dashscope_embeddings; "
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-W", "error", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['pytest_dashscope_embeddings']"


def test_it_has_a_name_within_the_package_too() -> None:
    plugin = importlib.import_module("dashscope_embeddings.pytest_plugin")
    assert plugin.dashscope_emulator is importlib.import_module("pytest_dashscope_embeddings").dashscope_emulator
