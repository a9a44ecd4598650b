"""The fixture that this package gives to other projects' tests; `tests/packaging` asks the installed one the same."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from dashscope_embeddings import _pytest_entry

pytest_plugins = ["pytester"]

# The file as it stands, not the copy that the entry point names: an editable installation may hold an older one.
OPTIONS = ("-q", "-p", "no:dashscope_embeddings", "-p", "no:cacheprovider")


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """Another project, that turns every warning into an error, as this one does."""
    pytester.makeini(
        "[pytest]\nfilterwarnings = error\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    return pytester


def passes(project: pytest.Pytester, source: str, tests: int = 1) -> None:
    project.makepyfile(source)
    project.runpytest_inprocess(*OPTIONS, plugins=[_pytest_entry]).assert_outcomes(passed=tests)


def test_code_that_reads_its_environment_asks_the_emulator(project: pytest.Pytester) -> None:
    passes(
        project,
        """
        import pytest
        from dashscope_embeddings import EmbeddingClient

        @pytest.mark.parametrize("protocol", ["native", "openai"])
        def test_it(dashscope_emulator, protocol):
            client = EmbeddingClient(protocol=protocol)
            assert client.settings.address.host.startswith("127.0.0.1:")
            vectors = client.embed(["one", "two"]).dense
            role = "document" if protocol == "native" else "query"
            assert vectors == [dashscope_emulator.dense(text, text_type=role) for text in ("one", "two")]
            assert (dashscope_emulator.requests, dashscope_emulator.billed_texts) == (1, 2)
            assert dashscope_emulator.asked[0].protocol == protocol
            assert dashscope_emulator.asked[0].texts == ("one", "two")
        """,
        tests=2,
    )


ASYNC = """
    from dashscope_embeddings import EmbeddingClient

    async def test_it(dashscope_emulator):
        client = EmbeddingClient(base_url="emulator")
        await client.aembed("one", text_type="query")
        assert [asked.text_type for asked in dashscope_emulator.asked] == ["query"]
"""


def test_code_that_names_the_emulator_asks_the_same_one_from_a_loop_too(project: pytest.Pytester) -> None:
    passes(project, ASYNC)


def test_a_region_a_key_file_and_a_workspace_of_the_machine_lead_nowhere(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_REGION", "ap-southeast-1")
    monkeypatch.setenv("DASHSCOPE_WORKSPACE_ID", "ws-of-the-machine")
    monkeypatch.setenv("DASHSCOPE_API_KEY_FILE_PATH", "key-of-the-machine")
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-of-the-machine")
    passes(
        project,
        """
        import hashlib
        from dashscope_embeddings import EmbeddingClient

        def test_it(dashscope_emulator):
            EmbeddingClient().embed("one")
            assert "x-dashscope-workspace" not in dashscope_emulator.asked[0].headers
            assert hashlib.sha256(b"sk-of-the-machine").hexdigest() not in dashscope_emulator.keys_seen
            assert len(dashscope_emulator.keys_seen) == 1
        """,
    )


def test_faults_trigger_for_the_next_request_and_end_with_their_test(project: pytest.Pytester) -> None:
    passes(
        project,
        """
        import os
        import pytest
        from dashscope_embeddings import EmbeddingClient, ServerError
        from dashscope_embeddings._core import rate_limiter
        from dashscope_embeddings.emulator import faults

        client = EmbeddingClient(base_url="emulator", max_retries=0)

        def test_a_failure(dashscope_emulator):
            client.embed("one")
            dashscope_emulator.faults = [faults.Status(500)]
            with pytest.raises(ServerError):
                client.embed("two")
            assert [asked.status for asked in dashscope_emulator.asked] == [200, 500]
            assert rate_limiter._limiters

        def test_after_it(dashscope_emulator):
            assert (dashscope_emulator.requests, dashscope_emulator.asked, dashscope_emulator.faults) == (0, [], ())
            assert not rate_limiter._limiters
            client.embed("three")
            assert dashscope_emulator.billed_texts == 1

        def test_without_the_fixture():
            assert "DASHSCOPE_HTTP_BASE_URL" not in os.environ
            assert "DASHSCOPE_API_KEY" not in os.environ
        """,
        tests=3,
    )


def test_a_client_that_outlives_its_test_asks_the_emulator_of_the_next(project: pytest.Pytester) -> None:
    passes(
        project,
        """
        import functools
        from dashscope_embeddings import EmbeddingClient

        client = functools.cache(EmbeddingClient)

        def test_one(dashscope_emulator):
            client().embed("one")
            assert dashscope_emulator.requests == 1

        def test_two(dashscope_emulator):
            client().embed("two")
            assert [asked.texts for asked in dashscope_emulator.asked] == [("two",)]
            client().close()
        """,
        tests=2,
    )


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
