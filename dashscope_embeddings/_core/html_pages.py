"""Describes a page or text that came instead of the service's JSON, from a firewall, a proxy or a login page."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_INSPECTED_BYTES = 65_536
_HTML_START = re.compile(rb"\s*(?:<!doctype html|<html|<head|<title|<body|<h1|<script|<meta)", re.IGNORECASE)
_TEXT_START = re.compile(rb"(?!null|true|false)[A-Za-z<]")
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_MAX_TITLE_CHARACTERS = 80


def describe_foreign_body(headers: Mapping[str, str], body: bytes) -> str | None:
    """What the body is, and what to check; None: it is empty, or JSON that is broken."""
    start = body[:_INSPECTED_BYTES].removeprefix(b"\xef\xbb\xbf").strip()
    kind, content = "text", start
    if _HTML_START.match(start) or "text/html" in headers.get("content-type", "").lower():
        title = _TITLE.search(start)
        kind, content = "an HTML page", title[1] if title else b""
    elif not _TEXT_START.match(start):
        return None
    shown = " ".join(html.unescape(content.decode("utf-8", "replace")).split())[:_MAX_TITLE_CHARACTERS]
    quoted = f' ("{shown}")' if shown else ""
    return (
        f"{kind}{quoted} came in place of the service's JSON. It comes from a firewall, a proxy, a gateway or a "
        "login page on the way: is base_url right, and does this network let requests to this host through?"
    )
