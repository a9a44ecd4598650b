"""A record of the input, and where its file holds the text and the id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dashscope_embeddings.corpus.options import AUTO, InputOptions

if TYPE_CHECKING:
    from collections.abc import Collection


class Record(NamedTuple):
    """One record of a file."""

    place: str
    """File and line (JSON arrays and Parquet: record, from 1), such as `docs/a.csv:17`."""
    text: Any = None
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


class DuplicateKeys(dict[str, Any]):
    """The fields of a record that may have several of one name."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.all_keys = [key for key, _ in pairs]


def _lookup(values: dict[str, Any], path: str) -> Any:
    """The value at a path. A field whose name holds the dot itself takes precedence over a nested one.

    Raises:
        KeyError: there is none.
        ValueError: there are several.
    """
    if path in values:
        if isinstance(values, DuplicateKeys) and values.all_keys.count(path) > 1:
            raise ValueError(f"has more than one field {path!r}: rename or remove all but one")
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
    try:
        return Record(place, *(_lookup(values, name) for name in fields.wanted()))
    except KeyError as missing:
        return Record(place, problem=_missing_field(values, missing.args[0], fields))
    except ValueError as duplicate:
        return Record(place, problem=str(duplicate))


_MAX_NAMES = 8


def _missing_field(values: dict[str, Any], wanted: str, fields: Fields) -> str:
    present = list(values)
    for name, value in values.items():
        if isinstance(value, dict) and wanted.startswith(f"{name}."):
            present = [f"{name}.{inner}" for inner in value]
    names = ", ".join(map(repr, present[:_MAX_NAMES])) + (", …" if len(present) > _MAX_NAMES else "")
    role = "the text (text_field, --text-field)" if wanted == fields.text else "the id (id_field, --id-field)"
    nested = (
        f", such as {name}.{wanted}" for name, value in values.items() if isinstance(value, dict) and wanted in value
    )
    return f"has no field {wanted!r}; it has {names or 'none'}: name the one that holds {role}{next(nested, '')}"
