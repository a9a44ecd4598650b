"""What the sparse retrievers of both frameworks share: documents, the index over their vectors, and its file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

try:
    import numpy as np
except ImportError as missing:
    raise ImportError('a sparse retriever needs numpy: pip install "dashscope-embeddings[numpy]"') from missing

from dashscope_embeddings._adapters.base import as_single_text
from dashscope_embeddings._adapters.partial_results import ANY_EXCEPTION, add_cached_to_partial
from dashscope_embeddings._adapters.sparse import SparseAdapter
from dashscope_embeddings._adapters.sparse_index import SparseIndex
from dashscope_embeddings._core.results import set_attributes
from dashscope_embeddings._process import ForkSafeLock
from dashscope_embeddings._runtime.files import PRIVATE_MODE, as_path, publish, write_partials
from dashscope_embeddings.errors import DashScopeError, InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

    from dashscope_embeddings._adapters.flows import Flow
    from dashscope_embeddings.vectors import SparseVector

DocumentT = TypeVar("DocumentT")

FILE_NAME = "sparse_index.npz"
_FORMAT = "dashscope_embeddings sparse index 1"
_SLICE_TEXTS = 5_000
"""Texts that are requested at a time: their vectors take about 100 MB, ten times as much as in the index."""
_lock = ForkSafeLock()
"""Held while documents are added, for a moment: never during a request. One for all, so that collections pickle."""


def check_k(k: Any, name: str) -> int:
    """The number of documents to find.

    Raises:
        InvalidInput: it is not a whole number above 0.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise InvalidInput(f"{name} must be a whole number of at least 1, not {k!r}")
    return k


def check_types(documents: Sequence[object], wanted: type, name: str, advice: str) -> None:
    """Refuses a list of something else than the framework's documents.

    Raises:
        InvalidInput: names the first, and gives the advice.
    """
    for i, document in enumerate(documents):
        if not isinstance(document, wanted):
            raise InvalidInput(f"{name} {i} is {type(document).__name__}, not {wanted.__name__}: {advice}")


class SparseCollection(Generic[DocumentT]):
    """Documents in the order in which they were added, and the index over their sparse vectors.

    Safe to use from any thread or loop. Pickles with its documents and without its client.
    """

    def __init__(self, adapter: SparseAdapter) -> None:
        self.adapter = adapter
        self._documents: list[DocumentT] = []
        """Those beyond the index are left from a call that was interrupted."""
        self._index = SparseIndex()

    def __len__(self) -> int:
        return len(self._index)

    def add(self, documents: Sequence[DocumentT], texts: list[str]) -> Flow[None]:
        """Requests the vectors of the documents' texts, and adds all documents or, after an error, none.

        Texts that are repeated within a slice are requested once.
        """
        hybrid, role = self.adapter.hybrid, self.adapter.document_role
        if len(texts) > _SLICE_TEXTS:
            yield from hybrid.check_flow(texts)  # else an invalid text is found when the slices before it are paid for
        added = SparseIndex()
        slices = (texts[at : at + _SLICE_TEXTS] for at in range(0, len(texts), _SLICE_TEXTS))
        try:
            for part in slices:
                added.add((yield from hybrid.component_flow("sparse", part, role, keep_dense=True)))
        except ANY_EXCEPTION as error:
            if len(texts) > _SLICE_TEXTS:
                _renumber(error, added.vectors(), len(texts))
            raise
        with _lock.current:
            self._documents[len(self._index) :] = documents
            self._index.extend(added)

    def search(
        self, query: str, k: int, accepts: Callable[[DocumentT], bool] | None = None
    ) -> Flow[list[tuple[DocumentT, float]]]:
        """The best `k` documents that `accepts` takes, with their scores; no request if there is none to find."""
        as_single_text(query)
        if not len(self._index):
            return []
        [vector] = yield from self.adapter.hybrid.component_flow("sparse", [query], "query")
        documents = self._documents
        is_accepted = None if accepts is None else lambda row: accepts(documents[row])
        return [(documents[row], score) for row, score in self._index.search(vector, k, is_accepted)]

    # --- file ---------------------------------------------------------------------------------------------

    @property
    def _namespace(self) -> str:
        """What the vectors of the documents depend on."""
        return self.adapter.hybrid.client.settings.namespace(self.adapter.document_role)

    def save(self, folder: str | Path, encode: Callable[[DocumentT], Any]) -> None:
        """Writes documents and index to one file, which replaces an older one when it is complete.

        Raises:
            InvalidInput: `encode` gives what JSON cannot hold, or the folder's name is empty.
            OSError: the file cannot be written.
        """
        with _lock.current:
            arrays, documents = self._index.to_arrays(), self._documents[: len(self._index)]
        encoded: list[str] = []
        try:
            encoded.extend(json.dumps(encode(document), ensure_ascii=False) for document in documents)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"document {len(encoded)} cannot be saved as JSON ({error}): see its metadata") from None
        header = json.dumps({"format": _FORMAT, "settings": self._namespace})
        contents = f'{{"header": {header}, "documents": [{",".join(encoded)}]}}'.encode("utf-8", "surrogatepass")
        path = as_path(folder, "the folder") / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays["documents"] = np.frombuffer(contents, dtype=np.uint8)
        with write_partials(path, mode=PRIVATE_MODE) as [file]:
            np.savez(file, **arrays)  # type: ignore[arg-type] # no array has the name of its only option
        publish(path)

    def load(self, folder: str | Path, decode: Callable[[Any], DocumentT]) -> None:
        """Replaces the documents by those of a file that `save` wrote; the file runs no code.

        Raises:
            InvalidInput: there is no such file, it is damaged, or it was written with other settings.
        """
        path, own_settings = as_path(folder, "the folder") / FILE_NAME, self._namespace
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                contents = json.loads(file["documents"].tobytes().decode("utf-8", "surrogatepass"))
                header, encoded = contents["header"], contents["documents"]
                if header["format"] != _FORMAT:
                    raise ValueError(header["format"])  # noqa: TRY301 - reported as any damage
                settings = header["settings"]
                if settings == own_settings:
                    index = SparseIndex.from_arrays({name: file[name] for name in file.files})
                    documents = [decode(document) for document in encoded]
                    if len(index) != len(documents):
                        raise ValueError("not a vector for each document")  # noqa: TRY301 - same
        except FileNotFoundError:
            raise InvalidInput(f"{path} does not exist: it is written by save_local or persist") from None
        except Exception as error:  # noqa: BLE001 - whatever numpy, zipfile, json and the frameworks raise over such a file
            raise InvalidInput(
                f"{path} is damaged, or not a sparse index of this package ({type(error).__name__}): make it again"
            ) from None
        if settings != own_settings:
            raise InvalidInput(
                f"{path} was written with the settings {settings}, not with {own_settings}: vectors of different "
                "models, dimensions or roles must not be compared. Load it with the settings it was written with"
            )
        with _lock.current:
            self._documents, self._index = documents, index


def _renumber(error: BaseException, earlier: list[SparseVector], count: int) -> None:
    """Extends `partial` and `failed` of the error of one slice to all `count` texts of the call."""
    start = len(earlier)
    failed = [*getattr(error, "failed", ()), *range(min(_SLICE_TEXTS, count - start), count - start)]
    set_attributes(error, failed=failed)
    add_cached_to_partial(error, [*earlier, *[None] * (count - start)], list(range(start, count)))
    if isinstance(error, DashScopeError):
        error.set_affected(sorted(error.reasons) or error.failed, count)
