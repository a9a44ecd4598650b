"""The steps that a flow yields to a driver, and the results that the driver sends back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from dashscope_embeddings._core.failures import Failure
from dashscope_embeddings._core.protocol import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path

    from dashscope_embeddings._core.permit import Permit, Waiter
    from dashscope_embeddings._core.text_batcher import BatchCall


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint other than that of embeddings; files are streamed, as they may not fit in memory."""

    method: str
    path: str
    """Relative to the host's root, including the query string."""
    upload_file: Path | None = None
    """Sent as multipart form data, together with `form_fields`."""
    form_fields: Mapping[str, str] = field(default_factory=dict)
    download_to: Path | None = None
    """File for the body of a successful reply, written completely or not at all; `Reply.body` is then empty."""
    deadline_seconds: float | None = None
    """Seconds that the request may take as a whole; None: the client's own limit."""

    @property
    def has_file(self) -> bool:
        """Whether the request or its reply is a file, so that disk access would block an event loop."""
        return self.upload_file is not None or self.download_to is not None


@dataclass(frozen=True, slots=True)
class Send:
    """POST the body to the endpoint. Result: a `Reply`, or a `Failure` if there was none."""

    body: bytes = b""
    endpoint: Endpoint | None = None
    """None: the embeddings endpoint."""
    max_reply_bytes: int = 64 << 20
    """Limit of the decompressed reply body, in bytes; a longer body is an error."""
    read_reply: Callable[[Reply], bool] | None = field(default=None, compare=False, repr=False)
    """Called with the reply while its connection is still held; returns whether it may be reused."""
    permit: Permit | None = field(default=None, compare=False, repr=False)
    """The driver notes in it what sends it."""

    @property
    def is_urgent(self) -> bool:
        """Whether its reply should be handled before those of documents: it is small, or somebody waits for it."""
        return self.permit is None or self.permit.high_priority


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait. Result: None, or a `Failure` if the call was cancelled meanwhile."""

    seconds: float
    waiter: Waiter | None = field(default=None, compare=False, repr=False)
    """The wait is for this permit or text, and ends early when it is woken."""


@dataclass(frozen=True, slots=True)
class AskUserLimiter:
    """Wait until the user's `rate_limiter` lets one request through. Result: as of `Sleep`."""


@dataclass(frozen=True, slots=True)
class Start:
    """Run a flow that sends a request for several callers, and is not cancelled with this one. Result: None."""

    flow: Generator[Step, StepResult, None] = field(compare=False, repr=False)
    batch_call: BatchCall
    """The driver notes in it what sends it."""


Step: TypeAlias = "Send | Sleep | AskUserLimiter | Start"
StepResult: TypeAlias = Reply | Failure | None
