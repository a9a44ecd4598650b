"""A record of the input, and where its file holds the text and the id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dashscope_embeddings.corpus.options import AUTO, InputOptions

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class Record(NamedTuple):
    """One record of a file."""

    place: str
    """File and line (JSON arrays and Parquet: record, from 1), such as `docs/a.csv:17`."""
    text: Any
    id: Any = None
    """None: the record's position in the whole input, from 0."""
    problem: str | None = None
    """Why the record has no usable text; None: it may have one."""
    affects_whole_file: bool = False
    """Whether the problem concerns the whole file: skipping this record alone would lose others."""


POSITIONS_OPTION = '(id_field=None, --id-field "")'
"""What makes ids of positions."""


class Fields(NamedTuple):
    """The fields that hold a record's text and id: their names, or paths such as `data.text`."""

    text: str
    id: str | None

    @classmethod
    def of(cls, options: InputOptions, names: Collection[str]) -> Fields:
        """The fields of a record or table with these names."""
        if options.id_field != AUTO:
            return cls(options.text_field, options.id_field)
        return cls(options.text_field, "id" if "id" in names and options.text_field != "id" else None)

    def wanted(self) -> list[str]:
        """The fields to read."""
        return [self.text] if self.id is None else [self.text, self.id]

    def missing(self, wanted: str, present: Sequence[str], objects: Sequence[str] = ()) -> str:
        """The problem of a record without a wanted field; `objects`: the fields that contain it."""
        shown = 8
        names = ", ".join(map(repr, present[:shown])) + (", …" if len(present) > shown else "")
        role = "the text (text_field, --text-field)" if wanted == self.text else "the id (id_field, --id-field)"
        found = f", such as {objects[0]}.{wanted}" if objects else ""
        return f"has no field {wanted!r}; it has {names or 'none'}: name the one that holds {role}{found}"


class _DuplicateFieldError(Exception):
    """A record has several fields of one name."""


class DuplicateKeys(dict[str, Any]):
    """The fields of a record that may have several of one name."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.all_keys = [key for key, _ in pairs]


def _lookup(values: dict[str, Any], path: str) -> Any:
    """The value at a path. A field whose name holds the dot itself takes precedence over a nested one.

    Raises:
        KeyError: there is none.
        _DuplicateFieldError: there are several.
    """
    if path in values:
        if isinstance(values, DuplicateKeys) and values.all_keys.count(path) > 1:
            raise _DuplicateFieldError(f"has more than one field {path!r}: rename or remove all but one")
        return values[path]
    for name, value in values.items():
        if isinstance(value, dict) and path.startswith(f"{name}."):
            try:
                return _lookup(value, path.removeprefix(f"{name}."))
            except KeyError:
                continue
    raise KeyError(path)


def record_from_fields(place: str, values: dict[str, Any], fields: Fields) -> Record:
    """The record of a JSON object, or of the named cells of a row; with names alone, whether they have the fields."""
    wanted = fields.text
    try:
        text = _lookup(values, wanted)
        if fields.id is None:
            return Record(place, text)
        wanted = fields.id
        return Record(place, text, _lookup(values, wanted))
    except KeyError:
        present = list(values)
        for name, value in values.items():
            if isinstance(value, dict) and wanted.startswith(f"{name}."):
                present = [f"{name}.{inner}" for inner in value]
        objects = [name for name, value in values.items() if isinstance(value, dict) and wanted in value]
        return Record(place, None, None, fields.missing(wanted, present, objects))
    except _DuplicateFieldError as error:
        return Record(place, None, None, str(error))
