"""Objects that the user passes (HTTP clients, rate limiter, hook), checked so that a wrong kind is named early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._core.argument_names import check_callback
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from dashscope_embeddings.usage import OnRequest


@dataclass(frozen=True)
class UserResources:
    """Objects that the user passed: used as they are, never closed, rebuilt or copied."""

    client: Any = None
    async_client: Any = None
    rate_limiter: Any = None
    """LangChain's has `acquire` and `aacquire`, LlamaIndex's `acquire` and `async_acquire`."""
    on_request: OnRequest | None = None

    def __post_init__(self) -> None:
        """Raises: InvalidInput: an object of the wrong kind, or a closed client."""
        _check_client("http_client", self.client, close_method="close")
        _check_client("http_async_client", self.async_client, close_method="aclose")
        check_callback("on_request", self.on_request)
        _check_rate_limiter(self.rate_limiter)


def _check_rate_limiter(limiter: Any) -> None:
    is_async = callable(getattr(limiter, "aacquire", None)) or callable(getattr(limiter, "async_acquire", None))
    if limiter is not None and (
        isinstance(limiter, type) or not (callable(getattr(limiter, "acquire", None)) and is_async)
    ):
        raise InvalidInput(
            "rate_limiter must be one of LangChain's or LlamaIndex's, with the methods acquire and aacquire or "
            f"async_acquire, not {type(limiter).__name__}; for a number, set requests_per_minute"
        )


def _check_client(name: str, client: Any, close_method: str) -> None:
    """Checks methods, not classes: packages other than httpx have such clients too."""
    if client is None:
        return
    is_sync = close_method == "close"
    expected, other_name = ("httpx.Client", "http_async_client") if is_sync else ("httpx.AsyncClient", "http_client")
    if isinstance(client, type):
        raise InvalidInput(f"{name} must be an {expected}, not its class: write {name}={client.__name__}()")
    has_methods = all(hasattr(client, part) for part in ("post", "send", "is_closed", close_method))
    is_other_kind = hasattr(client, "aclose" if is_sync else "close")
    if not has_methods or is_other_kind:
        is_swapped = is_other_kind and hasattr(client, "is_closed")
        advice = f": pass it as {other_name}" if is_swapped else ", for proxies, certificates and the like"
        kind = f"{type(client).__module__}.{type(client).__name__}"
        raise InvalidInput(f"{name} must be an {expected}, not {kind}{advice}")
    check_open(name, client)


def check_open(name: str, client: Any) -> None:
    """Raises: InvalidInput: the user's client is closed."""
    if client.is_closed is True:
        raise InvalidInput(f"{name} is closed: open a new one, and make this object with it")
