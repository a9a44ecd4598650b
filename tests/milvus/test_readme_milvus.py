"""The blocks of README that need Milvus: one in either environment, one in that of LlamaIndex's store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from readme_blocks import check_python, parameters

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("milvus_lite")


@pytest.mark.parametrize("block", parameters("python", lambda block: "milvus" in block))
def test_code_prints_what_stands_behind_its_arrows(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = "llama_index.vector_stores.milvus" if "llama_index_milvus" in block else "langchain_milvus"
    pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    check_python(block, tmp_path)
