"""The blocks of README that need software of this environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from readme_blocks import check_python, parameters

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("langchain_chroma")


@pytest.mark.parametrize("block", parameters("python", lambda block: "langchain_chroma" in block))
def test_code_prints_what_stands_behind_its_arrows(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_python(block, tmp_path)
