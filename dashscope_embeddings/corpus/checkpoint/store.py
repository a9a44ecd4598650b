"""The texts of a corpus: its input, what was paid for, and what was refused.

The output is written from the checkpoint and can be written again. A process may be killed at any instruction:
transactions are atomic, and each reply is committed before its thread sends the next request. The write-ahead log is
not synced at each commit: a power failure may lose the last replies, never earlier ones.
"""

from __future__ import annotations

import contextlib
from itertools import chain
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._core.text_length import estimate_tokens
from dashscope_embeddings.corpus.checkpoint import checksums
from dashscope_embeddings.corpus.checkpoint.opening import open_database
from dashscope_embeddings.corpus.checkpoint.rows import Counts, OutputRow, PackedVectors
from dashscope_embeddings.corpus.checkpoint.schema import HAS_RESULTS, PENDING, VECTOR_COLUMNS
from dashscope_embeddings.errors import BadReply, DashScopeError, InvalidInput, ServiceError
from dashscope_embeddings.vectors import counted

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Self

    from dashscope_embeddings._core.text_length import CountTokens
    from dashscope_embeddings.corpus.checkpoint.database import Database
    from dashscope_embeddings.corpus.checkpoint.rows import InputText, PaidReply


class CheckpointStore:
    """The texts of one output. Methods may be called from any thread."""

    def __init__(self, database: Database) -> None:
        self.database, self.transaction = database, database.transaction
        self.has_integer_ids = True
        """Whether all ids of the input are integers: then they are integers in the output too."""
        self.damaged_texts = 0
        """Texts of the input whose vectors are damaged and must be requested again."""
        self.count_tokens: CountTokens = estimate_tokens
        self._vector_bytes = self._find_vector_bytes()

    @classmethod
    def open(cls, path: Path | None) -> Self:
        """Opens or creates the checkpoint at `path`; None: a temporary one.

        Raises:
            InvalidInput: the file is not a checkpoint or is damaged, or one of its files is missing.
            sqlite3.Error: another process has locked it, it cannot be read, or the disk is full.
        """
        with contextlib.ExitStack() as stack:
            store = cls(stack.enter_context(contextlib.closing(open_database(path))))
            stack.pop_all()
        return store

    def close(self) -> None:
        """Closes the database; other runs may then open it."""
        self.database.close()

    # --- settings -------------------------------------------------------------------------------------------

    def is_new(self) -> bool:
        """Whether no input was ever loaded."""
        return self.database.get_setting("fingerprint") is None

    def has_results(self) -> bool:
        """Whether the service has answered for any text, or has or may have a batch."""
        return bool(self.database.fetch_value(HAS_RESULTS))

    def check_settings(self, fingerprint: Mapping[str, Any]) -> bool:
        """Stores the settings of a run, if its vectors may share an output with those in the checkpoint.

        Returns:
            Whether earlier rejections are obsolete, because other settings may accept these texts.

        Raises:
            InvalidInput: the checkpoint holds vectors of other settings.
        """
        name, is_paid = self.database.path, self._has_paid_work()
        known = self.database.get_setting("fingerprint") or {}
        if not known and is_paid:
            raise checksums.damage_error(name, "the settings of its vectors are missing")
        rejections_obsolete = bool(known.get("long_text") != fingerprint["long_text"])
        if known.get("long_text") == "error":
            known["long_text"] = fingerprint["long_text"]  # so far all texts were embedded whole
        differing = [setting for setting in fingerprint if known and known.get(setting) != fingerprint[setting]]
        if differing and not is_paid:
            rejections_obsolete = True
        elif differing == ["service"]:
            raise InvalidInput(
                f"{name} holds vectors of {known['service']}, and this run would use {fingerprint['service']}: name "
                "the same region or address, or write to another output"
            )
        elif differing:
            message = "; ".join(f"{key} was {known.get(key)!r} and is now {fingerprint[key]!r}" for key in differing)
            raise InvalidInput(
                f"these vectors must not be mixed with those in {name}: {message}. Write to another output, or delete "
                "this one and its checkpoint to pay for all texts again"
            )
        self.database.set_setting("fingerprint", dict(fingerprint))
        return rejections_obsolete

    def _has_paid_work(self) -> bool:
        """Whether any vector was stored or any batch was submitted."""
        is_paid = "EXISTS (SELECT 1 FROM vectors) OR EXISTS (SELECT 1 FROM batches) OR requests > 0"
        return bool(self.database.fetch_value(f"SELECT {is_paid} FROM checkpoint"))  # noqa: S608 - no input in it

    # --- the input ------------------------------------------------------------------------------------------

    def start_run(self, fingerprint: Mapping[str, Any], *, retry_rejected: bool) -> None:
        """Deletes the input of the previous run; `retry_rejected`: also its rejections, to send these texts again."""
        retry_rejected |= self.check_settings(fingerprint)
        for statement in ("DELETE FROM records", "DELETE FROM skipped", "UPDATE checkpoint SET records = 0"):
            self.database.fetch_all(statement)
        self.database.fetch_all("UPDATE units SET text = NULL WHERE text IS NOT NULL AND part_of IS NULL")
        if retry_rejected:
            self.database.fetch_all(
                "UPDATE units SET reason = NULL, code = NULL, request_id = NULL WHERE reason IS NOT NULL"
            )
        self.has_integer_ids, self.damaged_texts = True, 0

    def add_items(self, items: Sequence[InputText], *, with_text: bool) -> list[tuple[InputText, str]]:
        """Adds a few hundred texts; returns those whose id was used before, each with the earlier place."""
        items, duplicates = self._split_duplicates(items)
        hashes = [checksums.text_hash(item.text) for item in items]
        known = self._known_texts(hashes)
        last = self.database.fetch_value("SELECT units FROM checkpoint")
        new, rows, texts = [], [], {}
        for (position, record_id, place, text), digest in zip(items, hashes, strict=True):
            if digest not in known:
                last += 1
                known[digest] = last, False
                new.append((last, digest, self.count_tokens(text), text))
            unit, needs_text = known[digest]
            if needs_text or with_text:
                texts[unit] = text
            self.has_integer_ids &= not isinstance(record_id, str)
            id_text = None if record_id is None else str(record_id)
            rows.append((position, id_text, place, unit, checksums.row_checksum(position, id_text, place, digest)))
        execute_many = self.database.execute_many
        execute_many("INSERT INTO units (unit, hash, tokens, text) VALUES (?, ?, ?, ?)", new)
        execute_many(
            "UPDATE units SET text = ? WHERE unit = ? AND text IS NULL", ((text, unit) for unit, text in texts.items())
        )
        execute_many("INSERT INTO records VALUES (?, ?, ?, ?, ?)", rows)
        self.database.fetch_all("UPDATE checkpoint SET records = records + ?, units = ?", (len(rows), last))
        return duplicates

    def _known_texts(self, hashes: Sequence[bytes]) -> dict[bytes, tuple[int, bool]]:
        """Hash → unit of texts that are known already, and whether they have no vectors; deletes damaged vectors."""
        marks = ",".join("?" * len(hashes))
        known: dict[bytes, tuple[int, bool]] = {}
        for digest, unit, checksum, *vectors in self.database.fetch_all(
            f"SELECT hash, unit, {VECTOR_COLUMNS} FROM units LEFT JOIN vectors USING (unit) "  # noqa: S608 - our own names
            f"WHERE part_of IS NULL AND hash IN ({marks})",
            hashes,
        ):
            needs_text = checksum is None or not checksums.is_intact(digest, checksum, PackedVectors(*vectors))
            if needs_text and checksum is not None:
                self.database.fetch_all("DELETE FROM vectors WHERE unit = ?", (unit,))
                self.damaged_texts += 1
            known[digest] = unit, needs_text
        return known

    def _split_duplicates(self, items: Sequence[InputText]) -> tuple[list[InputText], list[tuple[InputText, str]]]:
        """Items with a new id; and items whose id occurred before, with its earlier place."""
        ids = [str(item.id) for item in items if item.id is not None]
        marks = ",".join("?" * len(ids))
        places = dict(self.database.fetch_all(f"SELECT id, place FROM records WHERE id IN ({marks})", ids))  # noqa: S608 - only question marks
        unique, duplicates = [], []
        for item in items:
            if item.id is None or (place := places.setdefault(str(item.id), item.place)) is item.place:
                unique.append(item)
            else:
                duplicates.append((item, place))
        return unique, duplicates

    def add_invalid(self, position: int, place: str, record_id: str | None, reason: str) -> None:
        """Adds a record that is skipped."""
        self.database.fetch_all("INSERT INTO skipped VALUES (?, ?, ?, ?)", (position, record_id, place, reason))
        self.database.fetch_all("UPDATE checkpoint SET records = records + 1")

    def counts(self) -> Counts:
        """Counts texts of the input by state."""
        with self.database.lock:
            ((pending, tokens),) = self.database.fetch_all(f"SELECT count(*), total(tokens) FROM units WHERE {PENDING}")  # noqa: S608 - no input in it
            refused = "records WHERE unit IN (SELECT unit FROM units WHERE reason IS NOT NULL)"
            texts, rejected, invalid = (
                self.database.fetch_value(f"SELECT count(*) FROM {rows}")  # noqa: S608 - no input in it
                for rows in ("records", refused, "skipped")
            )
            return Counts(texts, pending, tokens, rejected, invalid)

    # --- replies --------------------------------------------------------------------------------------------

    def pending_texts(self) -> Iterator[tuple[int, str]]:
        """Unit and text of pending texts, in the order of the input."""
        query = f"SELECT unit, text FROM units WHERE unit > ? AND {PENDING} ORDER BY unit LIMIT ?"  # noqa: S608 - no input in it
        return self.database.fetch_paged(query)

    def store_reply(self, reply: PaidReply) -> None:
        """Commits a reply.

        Raises:
            BadReply: the width of the dense vectors differs from earlier ones.
        """
        widths = {len(dense) for _, _, dense, *_ in reply.rows if dense is not None}
        with self.transaction():
            if len(widths | ({self._vector_bytes} - {0})) > 1:
                raise BadReply(
                    f"dense vectors of different widths: {sorted(widths)} bytes, before {self._vector_bytes}"
                )
            self._vector_bytes = max(widths, default=self._vector_bytes)
            if reply.rows:  # in one statement: before each one, this thread waits for the others that run Python code
                marks = ", ".join(["(?, ?, ?, ?, ?)"] * len(reply.rows))
                self.database.fetch_all(f"INSERT OR REPLACE INTO vectors VALUES {marks}", [*chain(*reply.rows)])  # noqa: S608 - only question marks
            self.database.fetch_all(
                "UPDATE checkpoint SET requests = requests + ?, texts = texts + ?, tokens = tokens + ?", reply.billed
            )

    def drop_parts(self, whole: int) -> None:
        """Deletes the parts of a text; those under way stay until their line has ended, without belonging to it."""
        fetch_all = self.database.fetch_all
        fetch_all("DELETE FROM vectors WHERE unit IN (SELECT unit FROM units WHERE part_of = ?)", (whole,))
        fetch_all("UPDATE units SET part_of = 0 WHERE part_of = ?", (whole,))
        fetch_all("DELETE FROM units WHERE part_of = 0 AND line IS NULL")
        fetch_all("UPDATE units SET parts = 0 WHERE unit = ?", (whole,))

    def reject(self, unit: int, reason: DashScopeError | str) -> None:
        """Commits that the service refused a text, or a part of it; or why it was not sent."""
        message, code, request_id = str(reason), None, None
        if isinstance(reason, DashScopeError):
            message, request_id = reason.message, reason.request_id
            code = reason.code if isinstance(reason, ServiceError) else None
        with self.transaction():
            whole = self.database.fetch_value("SELECT coalesce(part_of, unit) FROM units WHERE unit = ?", (unit,))
            self.drop_parts(whole)
            self.database.fetch_all(
                "UPDATE units SET reason = ?, code = ?, request_id = ? WHERE unit = ?",
                (message, code, request_id, whole),
            )

    def total_billed(self) -> tuple[int, int, int]:
        """Requests, texts and tokens billed in all runs."""
        return self.database.fetch_all("SELECT requests, texts, tokens FROM checkpoint")[0]  # type: ignore[no-any-return] # NOT NULL

    @property
    def dimension(self) -> int | None:
        """Floats in a dense vector; None: there are no dense vectors."""
        return self._vector_bytes // 4 or None

    def _find_vector_bytes(self) -> int:
        """The bytes of the first intact dense vector; 0: there is none."""
        rows = self.database.connection.execute(
            f"SELECT hash, {VECTOR_COLUMNS} FROM vectors JOIN units USING (unit) WHERE dense IS NOT NULL ORDER BY unit"  # noqa: S608 - our own names
        )
        vectors = ((digest, checksum, PackedVectors(*columns)) for digest, checksum, *columns in rows)
        return next((len(row[2].dense or b"") for row in vectors if checksums.is_intact(*row)), 0)

    # --- the output -----------------------------------------------------------------------------------------

    def rows(self, *, with_text: bool) -> Generator[OutputRow, None, None]:
        """All texts with vectors, in the order of the input.

        Raises:
            InvalidInput: after the last row, if rows are missing because the checkpoint is damaged.
        """
        total = self.database.fetch_value("SELECT records FROM checkpoint")
        readable = self.database.fetch_value("SELECT count(*) FROM skipped")
        text_column = "text" if with_text else "NULL"
        rows = self.database.connection.execute(
            f"SELECT position, id, place, hash, records.sum, {text_column}, reason, {VECTOR_COLUMNS} FROM records "  # noqa: S608 - our own names
            "LEFT JOIN units USING (unit) LEFT JOIN vectors USING (unit) ORDER BY position"
        )
        for *record, checksum, text, reason, vectors_checksum, dense, indices, values in rows:
            position, record_id, place, digest = record
            if checksum != checksums.row_checksum(*record):
                continue
            if with_text and not checksums.is_text_intact(text, digest):
                continue
            vectors = PackedVectors(dense, indices, values)
            if checksums.is_intact(digest, vectors_checksum, vectors):
                readable += 1
                yield OutputRow(self._output_id(position, record_id), text, vectors, place)
            elif reason is not None and vectors_checksum is None:
                readable += 1
        if readable != total:
            raise InvalidInput(
                f"{total - readable:,} of {counted(total, 'record')} cannot be written: {self.database.path} is "
                "damaged. Run the command with its input again: it embeds only these texts again"
            )

    def rejected_records(self) -> Iterator[dict[str, Any]]:
        """All records of the input without vectors, in the order of the input, with the reason.

        Where ids are read from a field, that of a record which cannot be read is None: a position may be another's id.
        """
        has_positions = self.database.fetch_value("SELECT EXISTS (SELECT 1 FROM records WHERE id IS NULL)")
        rows = self.database.connection.execute(
            "SELECT position, id, place, reason, code, request_id, 0 FROM records CROSS JOIN units USING (unit) "
            "WHERE reason IS NOT NULL UNION ALL "
            "SELECT position, id, place, reason, NULL, NULL, 1 FROM skipped ORDER BY 1"
        )
        for position, record_id, place, reason, code, request_id, is_invalid in rows:
            # The id of an invalid record may not be an integer even if all others are.
            keeps_id = is_invalid and (record_id is not None or not has_positions)
            output_id = record_id if keeps_id else self._output_id(position, record_id)
            yield {"id": output_id, "place": place, "reason": reason, "code": code, "request_id": request_id}

    def _output_id(self, position: int, record_id: str | None) -> int | str:
        if record_id is None:
            return position if self.has_integer_ids else str(position)
        return int(record_id) if self.has_integer_ids else record_id
