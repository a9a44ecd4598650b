"""What a flow asks a driver to do, and what it is answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from dashscope_embeddings._core.failures import Failure
from dashscope_embeddings._core.protocol import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Another endpoint than that of embeddings, and files that are too large to be held as a body."""

    method: str
    path: str
    """Below the host's root, with its query if it has one."""
    upload_file: Path | None = None
    """Sent as the file of a form, with `fields`."""
    form_fields: Mapping[str, str] = field(default_factory=dict)
    download_to: Path | None = None
    """Where the body of a successful reply is written, whole or not at all; the reply then comes without it."""


@dataclass(frozen=True, slots=True)
class Send:
    """Post this body to the endpoint; send back a `Reply`, or a `Failure` if none came."""

    body: bytes = b""
    endpoint: Endpoint | None = None
    """None: the endpoint of embeddings."""
    max_reply_bytes: int = 64 << 20
    """Bytes of a reply's body, decompressed, that are read: no answer is larger."""
    may_reuse_connection: Callable[[Reply], bool] | None = field(default=None, compare=False, repr=False)
    """Called with the reply while its connection is still held: whether another request may use it."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Let so many seconds pass; send back None, or a `Failure` if the job was given up meanwhile."""

    seconds: float


Step: TypeAlias = Send | Sleep
StepResult: TypeAlias = Reply | Failure | None
