"""Ray Data: adds vectors to the rows of a dataset, with actors that share one account's quota.

texts = ray.data.read_parquet("texts/")
embed_dataset(texts, workers=2, requests_per_minute=6_000).write_parquet("vectors/")

Needs the extra `ray`. A batch that raises fails the job: Ray's error contains the message, or has the original class
if `ds.context.raise_original_map_exception` is set. If an actor is lost, Ray processes its block again, which is billed
again. Source: the code of Ray 2.60; the first two statements were tried with it.

Requests are retried inside the actor, one by one. Leave Ray's `max_map_retries` and `actor_task_retry_on_errors` off:
they would pay for a whole block again. Few small files become one block, which is one actor's work:
`read_parquet(…, override_num_blocks=8)`. A job that is interrupted starts from the beginning; `embed_corpus` resumes.
All machines share the account's quota, so that several help only if reading or chunking is slower than the quota.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from typing_extensions import Unpack

from dashscope_embeddings._adapters.arrow import import_pyarrow, vector_fields
from dashscope_embeddings._core import client_options
from dashscope_embeddings._core.client_options import ModelOptions
from dashscope_embeddings._core.results import as_embedding
from dashscope_embeddings._core.secret_settings import hide_secrets
from dashscope_embeddings._core.text_inputs import text_problem
from dashscope_embeddings._core.text_length import shared_limits
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.errors import DashScopeError, InvalidInput
from dashscope_embeddings.vectors import Embedding, Output, TextType

if TYPE_CHECKING:
    from ray.data import Dataset

OnError = Literal["raise", "null"]
"""What to do with a row whose text cannot be embedded."""

BATCH_SIZE = 1_000
"""Rows per call of an actor: 100 requests of 10 texts, and 4 MB of vectors with 1,024 floats each."""
CPUS = 0.5
"""CPUs reserved for an actor: at 1,600 texts per second less than half a CPU was busy.

Actors that reserve whole CPUs can take all of them, so that none is left to read the data.
"""
_ERROR_COLUMN = "error"
_MAX_IDS_SHOWN = 5


def embed_dataset(
    ds: Dataset, *, workers: int, batch_size: int = BATCH_SIZE, num_cpus: float = CPUS, **how: Any
) -> Dataset:
    """The dataset with vectors, which `workers` actors embed when the dataset is read or written.

    All arguments are checked now. Key and address are resolved now as well, from the arguments or this process's
    environment, and are sent to the actors in Ray's own messages.

    Args:
        ds: Any dataset with a column of texts.
        workers: Number of actors; each gets an equal part of the quota.
        batch_size: Rows that are embedded, and fail, together; Ray joins smaller blocks.
        num_cpus: CPUs that Ray reserves for each actor.
        **how: Arguments of `EmbedBatch`, which include those of `EmbeddingClient`.

    Raises:
        InvalidInput: a setting or a column that cannot work, or no key.
        TypeError: an unknown argument.
        ImportError: Ray is not installed.
    """
    hide_secrets(how, {*client_options.settings(), *(EmbedBatch.__init__.__kwdefaults__ or ()), "model"})
    try:
        from ray.data import ActorPoolStrategy  # noqa: PLC0415 - `EmbedBatch` alone needs no Ray
    except ImportError as missing:
        raise ImportError('datasets need Ray: pip install "dashscope-embeddings[ray]"') from missing
    if unpicklable := [name for name in _UNPICKLABLE_ARGUMENTS if how.get(name) is not None]:
        raise InvalidInput(f"{unpicklable[0]} cannot be sent to other processes: it belongs to this one")
    trial = EmbedBatch(workers=workers, **how)
    if (columns := ds.columns(fetch_if_missing=False)) is not None:
        trial.check(columns)
    settings = trial.client.settings
    # Passed explicitly, because the environment of the actors may name another key and another host.
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

    Each actor creates one and keeps its client, so connections and measured limits last as long as the actor.
    `embed_dataset` does the same, and checks all arguments before any actor starts.

    The added columns have the names and types of the Parquet files of `embed_corpus`: `embedding`, lists of
    float32 of one fixed size; `sparse_indices`, lists of uint32, ascending; `sparse_values`, lists of float32.
    Equal texts of a batch are sent, and billed, once.

    Args:
        column: Name of the column of texts.
        text_type: "document" for texts to be searched, "query" for texts to search with.
        output: "dense", "sparse" or "dense&sparse" (one request, billed once).
        on_error: "raise" fails the batch and names its bad rows: rows without text before anything is sent, rows
            that the service refuses after the rest of the batch was embedded. "null" gives a bad row no vectors,
            writes the reason into a column `error`, and goes on. Errors of the account, the connection or the
            whole request are raised in both cases.
        id_column: Name of a column whose values identify bad rows in messages; None: their index in the batch.
        workers: Maximum number of actors that share the account; each gets an equal part of the quota.
        **settings: Arguments of `EmbeddingClient`. `requests_per_minute` and `tokens_per_minute` are the quota of
            the whole account, which is divided by `workers`; without them each actor measures its rate limit.
            Pass `api_key` as a pydantic `SecretStr`, because Ray can export the arguments of operators as text;
            without it the key comes from the actor's environment.

    Raises:
        InvalidInput: a setting that cannot work, no key, or a quota without `workers`.
        TypeError: an unknown argument.
    """

    def __init__(  # noqa: PLR0913 - each a setting that a dataset may need; all keywords
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
        """Checks that rows with these columns can be embedded.

        Raises:
            InvalidInput: a column named by an argument is missing, or a column to be added exists.
        """
        for argument, name in (("column", self._column), ("id_column", self._id_column)):
            if name is not None and name not in columns:
                listing = ", ".join(map(repr, columns))
                raise InvalidInput(f"there is no column {name!r}, only {listing}: name the right one with {argument}=")
        added = [f.name for f in self._added_fields()]
        if taken := [name for name in added if name in columns]:
            raise InvalidInput(f"there is a column {taken[0]!r} already: drop or rename it before")

    def __call__(self, batch: Any) -> Any:
        """The rows of a batch with their vectors, in the same order.

        Args:
            batch: A `pyarrow.Table`; a pandas frame or a dict of one-dimensional arrays becomes one.

        Returns:
            A `pyarrow.Table`.

        Raises:
            InvalidInput: the columns do not fit, or rows have no text; nothing was sent.
            DashScopeError: as from `EmbeddingClient.embed`. `failed` and `reasons` are indices of rows in the batch;
                `partial` is empty, because Ray drops all rows of a failed batch.
        """
        table = _as_table(batch)
        self.check(table.column_names)
        # Some may be None or no text, which `_input_errors` or the client reports.
        texts = table.column(self._column).to_pylist()
        if any(text is not None for text in texts) and not any(isinstance(text, str) for text in texts):
            kind = table.column(self._column).type
            raise InvalidInput(f"the column {self._column!r} holds {kind}, not texts: name the right one with column=")
        reasons = self._input_errors(texts) if self._is_null_on_error else {}
        rows = [row for row in range(len(texts)) if row not in reasons]
        try:
            vectors = self._embed_rows(texts, rows)
        except DashScopeError as error:
            if not self._is_null_on_error or not _is_about_rows_only(error):
                raise self._batch_error(error, rows, table) from None
            reasons |= {rows[index]: reason for index, reason in error.reasons.items()}
            vectors = {rows[index]: as_embedding(index, found) for index, found in error.partial.items()}
        return self._with_columns(table, vectors, reasons)

    def _embed_rows(self, texts: list[Any], rows: list[int]) -> dict[int, Embedding]:
        good_texts = [texts[row] for row in rows]
        result = self.client.embed(good_texts, text_type=self._text_type, output=self._output, array=True)
        dense: Any = result.dense_array if "dense" in self._output else ()
        return {row: Embedding(row, *both) for row, *both in zip_longest(rows, dense, result.sparse or ())}

    def _input_errors(self, texts: list[Any]) -> dict[int, str]:
        settings = self.client.settings
        limits = shared_limits(settings.address.host, settings.model)
        return {
            row: "there is no text" if text is None else f"the text {problem}; not sent"
            for row, text in enumerate(texts)
            if (problem := text_problem(text, limits, settings.long_text)) is not None
        }

    def _batch_error(self, error: DashScopeError, rows: list[int], table: Any) -> DashScopeError:
        """A copy of the error with indices of the batch, without `partial`, which would be pickled for nothing."""
        batch_error = error.copy()
        batch_error.failed = [rows[index] for index in error.failed]
        batch_error.reasons = {rows[index]: reason for index, reason in error.reasons.items()}
        if not _is_about_rows_only(error):
            return batch_error
        if self._id_column is None:
            batch_error.add_hint("These are indices within one batch: id_column= names a column that identifies rows")
        else:
            ids = [str(table.column(self._id_column)[row].as_py()) for row in batch_error.failed]
            shown = [*ids[:_MAX_IDS_SHOWN], "…"] if len(ids) > _MAX_IDS_SHOWN else ids
            batch_error.add_hint(f"Their {self._id_column}: {', '.join(shown)}")
        batch_error.add_hint('on_error="null" goes on without such rows')
        return batch_error

    # --- Arrow --------------------------------------------------------------------------------------------

    def _added_fields(self) -> list[Any]:
        """The added columns: vectors as in the Parquet files of `embed_corpus`, and the reason if there are none."""
        pa = import_pyarrow()
        vectors = vector_fields(self._output, self._width)
        return [*vectors, pa.field(_ERROR_COLUMN, pa.string())] if self._is_null_on_error else vectors

    def _with_columns(self, table: Any, vectors: dict[int, Embedding], reasons: dict[int, str]) -> Any:
        dense = {row: vector.dense for row, vector in vectors.items() if vector.dense is not None}
        sparse = {row: vector.sparse for row, vector in vectors.items() if vector.sparse is not None}
        self._width = self._width or next((len(vector) for vector in dense.values()), None)
        columns: dict[str, Mapping[int, Any]] = {
            "embedding": dense,
            "sparse_indices": {row: vector.indices for row, vector in sparse.items()},
            "sparse_values": {row: vector.values for row, vector in sparse.items()},
            _ERROR_COLUMN: reasons,
        }
        for field in self._added_fields():
            table = table.append_column(field, _as_column(columns[field.name], table.num_rows, field.type))
        return table


def _quota_share(settings: Mapping[str, Any], workers: Any) -> dict[str, Any]:
    """One actor's part of the account's quota."""
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise InvalidInput(f"workers={workers!r}: expected a whole number of at least 1")
    share = {name: settings[name] for name in _QUOTA_ARGUMENTS if settings.get(name) is not None}
    if share and workers is None:
        raise InvalidInput(f"{next(iter(share))} is the account's: pass workers=, the number of actors that share it")
    for name, quota in share.items():
        if isinstance(quota, (int, float)):  # the client refuses all others
            share[name] = quota / (workers or 1)
    return share


_QUOTA_ARGUMENTS = ("requests_per_minute", "tokens_per_minute")


def _is_about_rows_only(error: DashScopeError) -> bool:
    """Whether the only failures are refusals of single texts."""
    return bool(error.reasons) and sorted(error.reasons) == sorted(error.failed)


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
        raise InvalidInput(f'this {kind} is not a table: use map_batches(…, batch_format="pyarrow")') from None


def _as_column(values: Mapping[int, Any], rows: int, kind: Any) -> Any:
    """An Arrow column with null for each row without a value."""
    pa = import_pyarrow()
    if not pa.types.is_fixed_size_list(kind):
        return pa.array([values.get(row) for row in range(rows)], kind)
    import numpy as np  # noqa: PLC0415 - comes with Ray

    # A null row holds zeros, because the elements of the list are declared as never null.
    matrix = np.zeros((rows, kind.list_size), np.float32)
    for row, vector in values.items():
        matrix[row] = vector
    missing = None if len(values) == rows else pa.array([row not in values for row in range(rows)])
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), type=kind, mask=missing)
