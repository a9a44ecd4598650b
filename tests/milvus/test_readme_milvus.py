"""The block of README that needs Milvus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from readme_blocks import check_python, parameters

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("langchain_milvus")


@pytest.mark.parametrize("block", parameters("python", lambda block: "milvus" in block))
def test_code_prints_what_stands_behind_its_arrows(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_python(block, tmp_path)
