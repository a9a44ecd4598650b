"""Lists of files and batches: pages, and what a list of batches may be restricted to."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from dashscope_embeddings.emulator.batch.file_store import InvalidFieldError, StoredFile
from dashscope_embeddings.emulator.batch.lifecycle import Batch

if TYPE_CHECKING:
    from collections.abc import Callable

_BEIJING = timezone(timedelta(hours=8))
_Item = TypeVar("_Item", Batch, StoredFile)


def page(items: list[_Item], query: dict[str, str], max_limit: int) -> tuple[list[_Item], bool]:
    """The items behind `after`, at most `limit` of them, and whether there are more."""
    limit = query.get("limit", "20" if max_limit < 1_000 else str(max_limit))  # noqa: PLR2004
    if not limit.isdecimal() or not 1 <= int(limit) <= max_limit:
        raise InvalidFieldError(f"'limit' must be 1 to {max_limit}", "limit")
    start = 0
    if "after" in query:
        places = [place for place, item in enumerate(items) if item.id == query["after"]]
        if not places:
            raise InvalidFieldError(f"'after' names nothing in the list: {query['after']}", "after")
        start = places[0] + 1
    return items[start : start + int(limit)], start + int(limit) < len(items)


def listing(views: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """An empty list was seen to be null."""
    first, last = (views[0]["id"], views[-1]["id"]) if views else (None, None)
    return {"object": "list", "data": views or None, "first_id": first, "last_id": last, "has_more": has_more}


def batch_filter(query: dict[str, str]) -> Callable[[Batch], bool]:
    """What a list of batches is restricted to: a part of the name, files, statuses, times of creation."""
    files = query["input_file_ids"].split(",") if "input_file_ids" in query else None
    if files is not None and len(files) > 20:  # noqa: PLR2004  (the documented bound)
        raise InvalidFieldError("'input_file_ids' must be at most 20", "input_file_ids")
    statuses = query["status"].split(",") if "status" in query else None
    after, before = (_parse_time(query, name) for name in ("create_after", "create_before"))

    def matches(batch: Batch) -> bool:
        return (
            query.get("ds_name", "") in str((batch.request.metadata or {}).get("ds_name", ""))
            and (files is None or batch.request.input_file.id in files)
            and (statuses is None or batch.status in statuses)
            and (after is None or batch.created_at >= after)
            and (before is None or batch.created_at <= before)
        )

    return matches


def _parse_time(query: dict[str, str], name: str) -> float | None:
    """Unix seconds of `20260131235959`, taken as Beijing's time (no page says whose), or given as such."""
    value = query.get(name)
    if value is None:
        return None
    try:
        if len(value) != 14:  # noqa: PLR2004
            return float(value)
        return datetime.strptime(value, "%Y%m%d%H%M%S").replace(tzinfo=_BEIJING).timestamp()
    except ValueError:
        raise InvalidFieldError(f"'{name}' must be a time such as 20260131235959", name) from None
