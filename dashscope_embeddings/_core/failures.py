"""The error that a missing reply, a refusal or a broken reply stands for: what was asked, and what to try."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from dashscope_embeddings import catalogue
from dashscope_embeddings._core.error_codes import Refusal, from_reply
from dashscope_embeddings._core.redaction import Redaction, printable
from dashscope_embeddings.errors import (
    AuthenticationError,
    BadReply,
    ConnectionFailed,
    DashScopeError,
    GivenUp,
    ServiceError,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Failure:
    """No reply came; `what` says why, without texts or keys."""

    what: str
    retry: bool = True
    """False: trying again cannot help, as with a URL that no client can open."""
    broken: bool = False
    """A reply came, but cannot be read."""


GIVEN_UP = Failure("not sent, because the job had failed elsewhere", retry=False)
"""A driver's answer to any step of a job that is over."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Who is asked for what, for the words of errors."""

    root: str = ""
    """As `Address.root`."""
    path: str = ""
    """Of the endpoint for embeddings; empty for any other."""
    model: str = ""
    advice: str = ""
    """What to try when the key is refused: keys belong to one region."""
    redaction: Redaction = field(default_factory=Redaction)

    @property
    def host(self) -> str:
        """Without scheme and path."""
        return urlsplit(self.root).netloc or self.root


def unanswered(failure: Failure, asked: Asked) -> DashScopeError:
    """The error that a missing reply stands for."""
    if failure is GIVEN_UP:
        return GivenUp(GIVEN_UP.what)
    what = asked.redaction.of_heads(failure.what)
    if failure.broken:
        broken = BadReply(f"the reply cannot be read: {what}")
        broken.verdict = Verdict.RETRY if failure.retry else Verdict.STOP
        return broken
    error = ConnectionFailed(f"no answer from {asked.host}: {what}")
    error.verdict = Verdict.RETRY if failure.retry else Verdict.STOP
    return error


_Broken = TypeVar("_Broken", bound=DashScopeError)


def unbelieved(broken: _Broken, asked: Asked, texts: Sequence[str] = ()) -> _Broken:
    """A broken reply's error, without what the reply repeats, also in the variables of the frames that read it."""
    broken.message = asked.redaction(broken.message, texts)
    broken.request_id = asked.redaction.request_id(broken.request_id, texts)
    broken.__context__ = None
    return broken.with_traceback(None)


def explained(refusal: Refusal, asked: Asked, texts: Sequence[str] = ()) -> ServiceError:
    """The error that a refusal stands for, with what to try, and without keys and texts that the service repeats."""
    error = from_reply(refusal, lambda words: asked.redaction(words, texts))
    error.request_id = asked.redaction.request_id(refusal.request_id, texts)
    if isinstance(error, AuthenticationError):
        error.advise(asked.advice)
    elif (hint := _hint(error, refusal, asked)) is not None:
        error.advise(hint)
    return error


# --- what to try -------------------------------------------------------------------------------------------

_NO_MODEL = ("ModelNotFound", "model_not_found", "model_not_supported")
_NO_MODEL_WORDS = ("Model not exist", "Model can not be found")
_NO_PATH = frozenset({301, 302, 303, 307, 308, 404, 405, 410, 414, 501})
_OTHER_404 = frozenset({"WorkSpaceNotFound"})
_TOO_LARGE = 413


def _hint(error: ServiceError, refusal: Refusal, asked: Asked) -> str | None:
    if refusal.code in _NO_MODEL or any(words in refusal.message for words in _NO_MODEL_WORDS):
        return _other_models(asked.model)
    place = f"Asked {asked.host}{urlsplit(asked.root).path}{asked.path}"
    if error.status == _TOO_LARGE and asked.path:
        return f"{place}, which takes no request of this size: pass a smaller batch_size"
    # Of files and batches, a 404 with words is about one of them.
    no_path = error.status in _NO_PATH and (asked.path or not refusal.message)
    if "url error" in refusal.message or (no_path and refusal.code not in _OTHER_404):
        return f"{place}. {_other_address(asked)}"
    return None


def _other_models(name: str) -> str:
    names = [row.name for row in catalogue.MODELS]
    likely = difflib.get_close_matches(name, [known for known in names if known != name], n=1)
    meant = f"Is {likely[0]} meant? " if likely and name not in names else ""
    here = ", if this region and this key have it" if name in names else ""
    return f"Asked for model {printable(name, 100)!r}{here}. {meant}Known models: {', '.join(names)}"


def _other_address(asked: Asked) -> str:
    root = urlsplit(asked.root)
    bare = f"{root.scheme}://{root.netloc}"
    if root.path:
        return (
            f"The path {root.path} is that of base_url, and the service's own was added to it: if {root.netloc} "
            f'forwards the service\'s own paths, pass base_url="{bare}". A path such as {root.path}/embeddings is '
            "not asked by this package"
        )
    if "/api/" in asked.path:
        return 'Does this host have the native protocol? protocol="openai" asks /compatible-mode/v1/embeddings'
    return 'Does this host have the OpenAI-compatible protocol? protocol="native" asks /api/v1/services/embeddings/…'
