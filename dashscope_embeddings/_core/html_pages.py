"""Pages and texts that come in place of the service's JSON: of firewalls, proxies and login pages of a network."""

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
    """What to say of a reply in other words than the service's; None: it is empty, or JSON that is broken."""
    start = body[:_INSPECTED_BYTES].removeprefix(b"\xef\xbb\xbf").strip()
    kind, words = "text", start
    if _HTML_START.match(start) or "text/html" in headers.get("content-type", "").lower():
        title = _TITLE.search(start)
        kind, words = "an HTML page", title[1] if title else b""
    elif not _TEXT_START.match(start):
        return None
    shown = " ".join(html.unescape(words.decode("utf-8", "replace")).split())[:_MAX_TITLE_CHARACTERS]
    named = f' ("{shown}")' if shown else ""
    return (
        f"{kind}{named} came in place of the service's JSON. It is of a firewall, a proxy, a gateway or a login "
        "page on the way: is base_url right, and does this network let requests to this host through?"
    )
