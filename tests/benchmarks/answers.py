"""The bodies of the server's replies: vectors rendered ahead, refusals, and what it does not answer."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

from load import COMPATIBLE_PATH, DIMENSIONS, MARKS, PATH, ROWS, mark
from pydantic_core import to_json

_VARIANTS = 8
_ids = itertools.count()
"""Each reply has an id of its own: a client may doubt one that it saw before."""


class Answers:
    """Replies with vectors of about unit length, most of each rendered ahead."""

    def __init__(self) -> None:
        rng = random.Random(4)  # noqa: S311 - the same in every run
        self._tails = []
        for _ in range(_VARIANTS):
            floats = [rng.gauss(0.0, 1.0) for _ in range(DIMENSIONS - MARKS)]
            norm = math.hypot(*floats) * 1.00004  # leaves room for the marks
            self._tails.append(",".join(repr(x / norm) for x in floats).encode())

    def native(self, texts: list[str], role: str, tokens: int, *, in_reverse: bool = False) -> bytes:
        """The body of the native protocol's reply."""
        rows = self._rows(texts, role, b',"text_index":%d}', in_reverse=in_reverse)
        end = b']},"usage":{"total_tokens":%d},"request_id":"1773f7b2-2148-9f74-b335-%012x"}'
        return b"".join([b'{"output":{"embeddings":[', *rows, end % (tokens, next(_ids))])

    def compatible(self, texts: list[str], tokens: int) -> bytes:
        """The body of the compatible protocol's reply, which knows no roles; floats, as its page says."""
        rows = self._rows(texts, "document", b',"index":%d,"object":"embedding"}')
        end = (
            b'],"model":"text-embedding-v4","object":"list","usage":{"prompt_tokens":%d,"total_tokens":%d},'
            b'"id":"73591b79-d194-9bca-8bb5-%012x"}'
        )
        return b"".join([b'{"data":[', *rows, end % (tokens, tokens, next(_ids))])

    def _rows(self, texts: list[str], role: str, end: bytes, *, in_reverse: bool = False) -> list[bytes]:
        parts = []
        for index, text in sorted(enumerate(texts), reverse=in_reverse):
            marks = ",".join(mark(text, role)).encode()
            tail = self._tails[marks[-1] % _VARIANTS]
            parts += [b'{"embedding":[', marks, b",", tail, b"]", end % index, b","]
        return parts[:-1]


def billed(text: str) -> int:
    """Tokens of a text: four for three words, which is not what a client would guess from its characters."""
    return len(text.split()) * 4 // 3 + 1


_TOO_MANY_REQUESTS = ("Throttling.RateQuota", "Requests rate limit exceeded, please try again later.")
_TOO_MANY_TOKENS = (
    "Throttling.AllocationQuota",
    "Allocated quota exceeded, please increase your quota limit.",
)


def complaint_about(path: str, texts: Any, parameters: dict[str, Any], content: dict[str, Any]) -> str | None:
    """What this server does not answer; better refused than answered wrongly."""
    if path not in {PATH, COMPATIBLE_PATH}:
        return "url error, please check url!"
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        return "Value error, contents is neither str nor list of str.: input.contents"
    if not 0 < len(texts) <= ROWS:
        return f"Value error, batch size is invalid, it should not be larger than {ROWS}.: input.contents"
    dimension = parameters.get("dimension") or content.get("dimensions") or DIMENSIONS
    if dimension != DIMENSIONS or parameters.get("output_type", "dense") != "dense":
        return f"This server of the benchmarks knows dense vectors of {DIMENSIONS} floats only."
    return None


def refusal(*, native: bool, code: str, message: str) -> bytes:
    """The body of a reply that is no answer."""
    if native:
        return to_json({"code": code, "message": message, "request_id": f"a1c0561c-{next(_ids):x}"})
    inner = {"message": message, "type": code, "param": None, "code": code}
    return to_json({"error": inner, "request_id": f"a1c0561c-{next(_ids):x}"})


def throttled(*, of_tokens: bool, native: bool) -> bytes:
    """The body of a 429."""
    code, message = _TOO_MANY_TOKENS if of_tokens else _TOO_MANY_REQUESTS
    if not native:
        code = "insufficient_quota" if of_tokens else "limit_requests"
        thing = "quota, check your plan and billing details" if of_tokens else "requests list"
        message = f"You exceeded your current {thing}."
    return refusal(native=native, code=code, message=message)
