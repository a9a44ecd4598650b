"""Lists of files and batches: pages, and what a list of batches may be restricted to."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from dashscope_embeddings.emulator.batch.file_store import BadField, Stored
from dashscope_embeddings.emulator.batch.lifecycle import Job

if TYPE_CHECKING:
    from collections.abc import Callable

_BEIJING = timezone(timedelta(hours=8))
_Item = TypeVar("_Item", Job, Stored)


def page(items: list[_Item], query: dict[str, str], most: int) -> tuple[list[_Item], bool]:
    """The items behind `after`, at most `limit` of them, and whether there are more."""
    limit = query.get("limit", "20" if most < 1_000 else str(most))  # noqa: PLR2004
    if not limit.isdecimal() or not 1 <= int(limit) <= most:
        raise BadField(f"'limit' must be 1 to {most}", "limit")
    start = 0
    if "after" in query:
        places = [place for place, item in enumerate(items) if item.id == query["after"]]
        if not places:
            raise BadField(f"'after' names nothing in the list: {query['after']}", "after")
        start = places[0] + 1
    return items[start : start + int(limit)], start + int(limit) < len(items)


def listing(views: list[dict[str, Any]], *, more: bool) -> dict[str, Any]:
    """An empty list was seen to be null."""
    first, last = (views[0]["id"], views[-1]["id"]) if views else (None, None)
    return {"object": "list", "data": views or None, "first_id": first, "last_id": last, "has_more": more}


def chosen(query: dict[str, str]) -> Callable[[Job], bool]:
    """What a list of batches is restricted to: a part of the name, files, statuses, times of creation."""
    files = query["input_file_ids"].split(",") if "input_file_ids" in query else None
    if files is not None and len(files) > 20:  # noqa: PLR2004  (the documented bound)
        raise BadField("'input_file_ids' must be at most 20", "input_file_ids")
    statuses = query["status"].split(",") if "status" in query else None
    after, before = (_moment(query, name) for name in ("create_after", "create_before"))

    def wanted(job: Job) -> bool:
        return (
            query.get("ds_name", "") in str((job.order.metadata or {}).get("ds_name", ""))
            and (files is None or job.order.input_file.id in files)
            and (statuses is None or job.status in statuses)
            and (after is None or job.created_at >= after)
            and (before is None or job.created_at <= before)
        )

    return wanted


def _moment(query: dict[str, str], name: str) -> float | None:
    """Unix seconds of `20260131235959`, taken as Beijing's time (no page says whose), or given as such."""
    given = query.get(name)
    if given is None:
        return None
    try:
        if len(given) != 14:  # noqa: PLR2004
            return float(given)
        return datetime.strptime(given, "%Y%m%d%H%M%S").replace(tzinfo=_BEIJING).timestamp()
    except ValueError:
        raise BadField(f"'{name}' must be a time such as 20260131235959", name) from None
