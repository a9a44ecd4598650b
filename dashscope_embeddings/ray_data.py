"""Ray Data: the rows of a dataset in, the same rows with their vectors out, by actors that share one account.

texts = ray.data.read_parquet("texts/")
embed_dataset(texts, workers=2, requests_per_minute=6_000).write_parquet("vectors/")

Needs the extra `ray`. A batch that raises fails the job, with the error's words in Ray's; as the class it is,
where `ds.context.raise_original_map_exception` is set. `DataContext.max_errored_blocks` would drop the rows of
a failed block instead. Ray asks for a block again whose actor was lost, and it is paid for again. All this was
read in Ray 2.60; the first two were tried with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from typing_extensions import Unpack

from dashscope_embeddings._core import client_options
from dashscope_embeddings._core.client_options import ModelOptions
from dashscope_embeddings._core.secret_settings import hide_secrets
from dashscope_embeddings._core.text_inputs import text_problem
from dashscope_embeddings._core.text_length import shared_limits
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus.embedder import as_embedding
from dashscope_embeddings.corpus.readers import import_pyarrow
from dashscope_embeddings.corpus.writers import vector_fields
from dashscope_embeddings.errors import DashScopeError, InvalidInput
from dashscope_embeddings.vectors import Output, SparseVector, TextType

if TYPE_CHECKING:
    from ray.data import Dataset

OnError = Literal["raise", "null"]
"""What to do about a row whose text cannot be embedded."""

BATCH_SIZE = 1_000
"""Rows that `embed_dataset` gives an actor at once: a hundred requests, and 4 MB of 1,024 floats a row."""
CPUS = 0.5
"""What an actor keeps of its node's: less than half a CPU was busy at 1,600 texts a second."""
_ERROR_COLUMN = "error"
_MAX_IDS_SHOWN = 5


def embed_dataset(
    ds: Dataset, *, workers: int, batch_size: int = BATCH_SIZE, num_cpus: float = CPUS, **how: Any
) -> Dataset:
    """The dataset with vectors, embedded by so many actors when it is read or written.

    All arguments are checked here and now; key and address are found here too, in the argument or in this
    process's environment, and travel to the actors inside Ray's own messages.

    Args:
        ds: Any dataset with a column of texts.
        workers: Actors, and the parts that a quota is divided into.
        batch_size: Rows that are embedded, and fail, together; Ray joins blocks that are smaller.
        num_cpus: What Ray keeps free for each actor.
        **how: Arguments of `EmbedBatch`, and with them those of `EmbeddingClient`.

    Raises:
        InvalidInput: a setting or a column that cannot work, or no key.
        TypeError: an argument that there is not.
        ImportError: Ray is not installed.
    """
    hide_secrets(how, {*client_options.settings(), *(EmbedBatch.__init__.__kwdefaults__ or ()), "model"})
    try:
        from ray.data import ActorPoolStrategy  # noqa: PLC0415 - `EmbedBatch` alone needs no Ray
    except ImportError as missing:
        raise ImportError('datasets need Ray: pip install "dashscope-embeddings[ray]"') from missing
    if mine := [name for name in _UNPICKLABLE_ARGUMENTS if how.get(name) is not None]:
        raise InvalidInput(f"{mine[0]} cannot travel to other processes: its sockets and locks stay here")
    trial = EmbedBatch(workers=workers, **how)
    if (columns := ds.columns(fetch_if_missing=False)) is not None:
        trial.check(columns)
    settings = trial.client.settings
    # The environment of the actors may name another key and another host: it is not to be asked again.
    how |= {
        "api_key": trial.client.key,
        "base_url": settings.address.root_url,
        "workspace": settings.address.workspace,
        "region": how.get("region") if how.get("base_url") else None,
    }
    return ds.map_batches(
        EmbedBatch,
        fn_constructor_kwargs={"workers": workers, **how},
        compute=ActorPoolStrategy(size=workers),
        batch_size=batch_size,
        batch_format="pyarrow",
        num_cpus=num_cpus,
    )


_UNPICKLABLE_ARGUMENTS = ("http_client", "http_async_client", "rate_limiter", "on_request")


class EmbedBatch:
    """Adds vectors to the rows of a batch: a callable class for `Dataset.map_batches(batch_format="pyarrow")`.

    Each actor makes one and keeps its client: connections, and what was learned of quota and limits, live as
    long as the actor does. `embed_dataset` is the same with all arguments checked before any actor starts.

    The columns that it adds are named and typed as in the Parquet files of `embed_corpus`: `embedding`, lists
    of float32 of one fixed size; `sparse_indices`, lists of uint32, ascending; `sparse_values`, lists of
    float32. Equal texts of a batch are asked, and billed, once.

    Args:
        column: The one that holds the texts.
        text_type: "document" for what is searched, "query" for what a user asks with.
        output: "dense", "sparse" or "dense&sparse" (one request, billed once).
        on_error: "raise" fails the batch and names its bad rows: those without text before anything is sent,
            those that the service refuses once the rest of the batch was asked. "null" leaves such a row
            without vectors, says why in a column `error`, and goes on; what is wrong with the account, the
            connection or the whole request is raised all the same.
        id_column: The one whose values name bad rows in messages; else they are places in their batch.
        workers: How many actors share the account, at most: each takes its part of the quota.
        **settings: Arguments of `EmbeddingClient`. `requests_per_minute` and `tokens_per_minute` are the whole
            account's, to be divided by `workers`; without them each actor finds its pace by itself. `api_key`
            is best a pydantic `SecretStr`, because Ray can export the arguments of operators as they print;
            without it the environment of the actor is asked.

    Raises:
        InvalidInput: a setting that cannot work, no key, or a quota without `workers`.
        TypeError: an argument that there is not.
    """

    def __init__(  # noqa: PLR0913 - every one a thing that a dataset may need; all keywords
        self,
        *,
        column: str = "text",
        text_type: TextType = "document",
        output: Output = "dense",
        on_error: OnError = "raise",
        id_column: str | None = None,
        workers: int | None = None,
        **settings: Unpack[ModelOptions],
    ) -> None:
        hide_secrets(cast("dict[str, Any]", settings), {*client_options.settings(), "model"})
        if on_error not in get_args(OnError):
            raise InvalidInput(f'on_error={on_error!r}: expected "raise" or "null"')
        self.client = EmbeddingClient(**{**settings, **_quota_share(settings, workers)})
        self._width = self.client.settings.request_options(text_type, output).expected_width
        self._text_type: TextType = text_type
        self._output: Output = output
        self._column, self._id_column = column, id_column
        self._is_null_on_error = on_error == "null"

    def check(self, columns: Sequence[str]) -> None:
        """Whether rows with these columns can be embedded.

        Raises:
            InvalidInput: a column that is named is not there, or one that would be added is.
        """
        for argument, name in (("column", self._column), ("id_column", self._id_column)):
            if name is not None and name not in columns:
                found = ", ".join(map(repr, columns))
                raise InvalidInput(f"there is no column {name!r}, only {found}: name the right one with {argument}=")
        added = [f.name for f in self._added_fields()]
        if taken := [name for name in added if name in columns]:
            raise InvalidInput(f"there is a column {taken[0]!r} already: drop or rename it before")

    def __call__(self, batch: Any) -> Any:
        """The rows of a batch with their vectors, in their order.

        Args:
            batch: A `pyarrow.Table`; a pandas frame or a dict of one-dimensional arrays becomes one.

        Returns:
            A `pyarrow.Table`.

        Raises:
            InvalidInput: the columns do not fit, or rows have no text; nothing was sent.
            DashScopeError: as from `EmbeddingClient.embed`. `failed` and `reasons` name rows of the batch;
                `partial` is empty, because what arrived of a failed batch is lost with it.
        """
        table = _as_table(batch)
        self.check(table.column_names)
        texts = _column_texts(table, self._column)
        reasons = self._input_errors(texts) if self._is_null_on_error else {}
        rows = [row for row in range(len(texts)) if row not in reasons]
        try:
            vectors = self._embed_rows(texts, rows)
        except DashScopeError as error:
            if not self._is_null_on_error or not _is_about_rows_only(error):
                raise self._batch_error(error, rows, table) from None
            reasons |= {rows[at]: said for at, said in error.reasons.items()}
            vectors = _partial_vectors(error, rows)
        return self._with_columns(table, vectors, reasons)

    def _embed_rows(self, texts: list[Any], rows: list[int]) -> _RowVectors:
        asked = [texts[row] for row in rows]
        result = self.client.embed(asked, text_type=self._text_type, output=self._output, array=True)
        dense = result.dense_array if "dense" in self._output else ()
        return _RowVectors(dict(zip(rows, dense, strict=False)), dict(zip(rows, result.sparse or (), strict=False)))

    def _input_errors(self, texts: list[Any]) -> dict[int, str]:
        settings = self.client.settings
        limits = shared_limits(settings.address.host, settings.model)
        complaints = {row: text_problem(text, limits, settings.long_text) for row, text in enumerate(texts)}
        return {
            row: "there is no text" if texts[row] is None else f"the text {words}; not sent"
            for row, words in complaints.items()
            if words is not None
        }

    def _batch_error(self, error: DashScopeError, rows: list[int], table: Any) -> DashScopeError:
        """The error in terms of the batch: it crosses processes, and takes no vectors along that nobody gets."""
        batch_error = error.copy()
        batch_error.failed = [rows[at] for at in error.failed]
        batch_error.reasons = {rows[at]: said for at, said in error.reasons.items()}
        if not _is_about_rows_only(error):
            return batch_error
        if self._id_column is None:
            batch_error.add_hint("These are places in one batch: id_column= names a column to tell rows by")
        else:
            ids = [str(table.column(self._id_column)[row].as_py()) for row in batch_error.failed[:_MAX_IDS_SHOWN]]
            batch_error.add_hint(
                f"Their {self._id_column}: {', '.join(ids)}{', …' if len(batch_error.failed) > _MAX_IDS_SHOWN else ''}"
            )
        batch_error.add_hint('on_error="null" goes on without such rows')
        return batch_error

    # --- Arrow --------------------------------------------------------------------------------------------

    def _added_fields(self) -> list[Any]:
        """What is added: vectors as the corpus' Parquet has them, and why there are none."""
        pa = import_pyarrow()
        vectors = vector_fields(self._output, self._width)
        return [*vectors, pa.field(_ERROR_COLUMN, pa.string())] if self._is_null_on_error else vectors

    def _with_columns(self, table: Any, row_vectors: _RowVectors, reasons: dict[int, str]) -> Any:
        self._width = self._width or next((len(vector) for vector in row_vectors.dense.values()), None)
        columns = {
            "embedding": row_vectors.dense,
            "sparse_indices": {row: vector.indices for row, vector in row_vectors.sparse.items()},
            "sparse_values": {row: vector.values for row, vector in row_vectors.sparse.items()},
            _ERROR_COLUMN: reasons,
        }
        for f in self._added_fields():
            table = table.append_column(f, _as_column(columns[f.name], table.num_rows, f.type))
        return table


@dataclass(frozen=True, slots=True)
class _RowVectors:
    """Row of a batch → its vectors."""

    dense: dict[int, Any] = field(default_factory=dict)
    sparse: dict[int, SparseVector] = field(default_factory=dict)


def _quota_share(settings: Mapping[str, Any], workers: Any) -> dict[str, Any]:
    """One actor's part of the account's quota."""
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise InvalidInput(f"workers={workers!r}: expected a whole number of at least 1")
    quotas = {name: settings[name] for name in _QUOTA_ARGUMENTS if settings.get(name) is not None}
    if quotas and workers is None:
        raise InvalidInput(f"{next(iter(quotas))} is the account's: say with workers= how many actors share it")
    # What is no number is named by the client.
    return {
        name: quota / (workers or 1) if isinstance(quota, (int, float)) else quota for name, quota in quotas.items()
    }


_QUOTA_ARGUMENTS = ("requests_per_minute", "tokens_per_minute")


def _is_about_rows_only(error: DashScopeError) -> bool:
    """Whether single texts were refused, and nothing else failed."""
    return bool(error.reasons) and sorted(error.reasons) == sorted(error.failed)


def _partial_vectors(error: DashScopeError, rows: list[int]) -> _RowVectors:
    """What arrived all the same."""
    found = _RowVectors()
    for at, vectors in error.partial.items():
        arrived = as_embedding(at, vectors)
        if arrived.dense is not None:
            found.dense[rows[at]] = arrived.dense
        if arrived.sparse is not None:
            found.sparse[rows[at]] = arrived.sparse
    return found


def _as_table(batch: Any) -> Any:
    pa = import_pyarrow()
    if isinstance(batch, pa.Table):
        return batch
    try:
        if isinstance(batch, Mapping):
            return pa.table(dict(batch))
        return pa.Table.from_pandas(batch, preserve_index=False).replace_schema_metadata()
    except (pa.ArrowException, AttributeError, TypeError):
        kind = type(batch).__name__
        raise InvalidInput(f'this {kind} is no plain table: use map_batches(…, batch_format="pyarrow")') from None


def _column_texts(table: Any, name: str) -> list[Any]:
    """Whatever is in the column: single rows without text are named later."""
    column = table.column(name)
    texts = column.to_pylist()
    if any(text is not None for text in texts) and not any(isinstance(text, str) for text in texts):
        raise InvalidInput(f"the column {name!r} holds {column.type}, not texts: name the right one with column=")
    return list(texts)


def _as_column(values: Mapping[int, Any], rows: int, kind: Any) -> Any:
    """A column with nulls where there is no value."""
    pa = import_pyarrow()
    if not pa.types.is_fixed_size_list(kind):
        return pa.array([values.get(row) for row in range(rows)], kind)
    import numpy as np  # noqa: PLC0415 - comes with Ray

    # Rows without vectors hold zeros under their null: an element itself is never null.
    matrix = np.zeros((rows, kind.list_size), np.float32)
    for row, vector in values.items():
        matrix[row] = vector
    missing = None if len(values) == rows else pa.array([row not in values for row in range(rows)])
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), type=kind, mask=missing)
