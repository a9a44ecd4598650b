"""What the frameworks' classes have in common: a client's settings as pydantic fields, and the client."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from pydantic import AliasChoices, BaseModel, Field, PrivateAttr

from dashscope_embeddings.catalogue import warn_once
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.lengths import LongText  # noqa: TC001 - pydantic reads it at run time
from dashscope_embeddings.wire import Protocol  # noqa: TC001 - same

if TYPE_CHECKING:
    from typing_extensions import Self

    from dashscope_embeddings.vectors import Usage

_building = threading.Lock()


class ClientFields(BaseModel):
    """Settings of `EmbeddingClient`, documented there. What cannot change a vector is left out of dumps.

    The client is made from the fields whenever they differ from those it was made of: assignment,
    `model_copy(update=…)` and unpickling all get what they ask for, and equal copies share one client.
    """

    dimensions: int | None = Field(default=None, validation_alias=AliasChoices("dimensions", "dimension"))
    instruct: str | None = None
    protocol: Protocol = "native"
    long_text: LongText = "error"
    region: str | None = None
    workspace: str | None = None
    # Part of dumps, because the emulator's vectors must never pass for the service's.
    base_url: str | None = Field(default=None, validation_alias=AliasChoices("base_url", "api_base"))
    timeout: float = Field(
        default=60.0, exclude=True, validation_alias=AliasChoices("timeout", "request_timeout")
    )
    max_retries: int = Field(default=6, exclude=True)
    max_concurrency: int = Field(default=16, exclude=True)
    requests_per_minute: float | None = Field(default=None, exclude=True)
    tokens_per_minute: float | None = Field(default=None, exclude=True)
    tokens_per_request: int | None = Field(default=None, exclude=True)
    default_headers: dict[str, str] | None = Field(default=None, exclude=True, repr=False)
    rate_limiter: Any = Field(default=None, exclude=True, repr=False)
    http_client: Any = Field(default=None, exclude=True, repr=False)
    http_async_client: Any = Field(default=None, exclude=True, repr=False)

    _client: tuple[dict[str, Any], EmbeddingClient] | None = PrivateAttr(default=None)

    def _settings(self) -> dict[str, Any]:
        """Arguments of `EmbeddingClient`; adapters add those that are named otherwise in their framework."""
        return {name: getattr(self, name) for name in ClientFields.model_fields}

    @property
    def client(self) -> EmbeddingClient:
        """The client that this object asks; use it for what the framework's interface has no place for.

        Raises:
            InvalidInput: a field was changed to something that cannot work.
        """
        settings = self._settings()
        made = self._client
        if made is None or made[0] != settings:
            with _building:
                made = self._client
                if made is None or made[0] != settings:
                    made = self._client = (settings, EmbeddingClient(**settings))
        return made[1]

    @property
    def usage(self) -> Usage:
        """What this object's requests were billed so far, with the present settings."""
        return self.client.usage

    def _warn_of_roles(self) -> None:
        if self.protocol == "openai":
            warn_once(
                "roles",
                'protocol="openai" cannot tell queries from documents: both are embedded alike, and no page '
                'says as which. protocol="native" can',
            )

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # The user's clients and limiters are shared, as a plain copy does: their locks cannot be copied.
        memo = {} if memo is None else memo
        for shared in (self.http_client, self.http_async_client, self.rate_limiter):
            memo[id(shared)] = shared
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        if self.http_client is not None or self.http_async_client is not None:
            raise InvalidInput(
                "embeddings with an http_client of yours cannot be pickled: its sockets stay here. Make them "
                "in the other process, or set proxies and certificates by environment variables"
            )
        state = super().__getstate__()
        private = state.get("__pydantic_private__")
        return state if not private else {**state, "__pydantic_private__": {**private, "_client": None}}


def listed(texts: Any) -> list[str]:
    """The texts of an interface that takes a list of them.

    Raises:
        InvalidInput: one string, whose letters would otherwise be embedded one by one.
    """
    if isinstance(texts, (str, bytes)):
        raise InvalidInput("expected a list of texts, not one: write [text], or embed it as a query")
    return texts if isinstance(texts, list) else list(texts)


def single(text: Any) -> str:
    """The text of an interface that takes one.

    Raises:
        InvalidInput: it is no string.
    """
    if not isinstance(text, str):
        raise InvalidInput(f"expected one text, a string, not {type(text).__name__}")
    return text
