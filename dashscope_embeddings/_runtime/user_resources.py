"""What the user brought: looked at before it is used, so that a wrong kind is told as such."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from dashscope_embeddings.usage import OnRequest


@dataclass(frozen=True)
class UserResources:
    """What the user brought: used as it is, never closed, rebuilt or copied."""

    client: Any = None
    async_client: Any = None
    rate_limiter: Any = None
    """LangChain's has `acquire` and `aacquire`, LlamaIndex's `acquire` and `async_acquire`."""
    on_request: OnRequest | None = None

    def __post_init__(self) -> None:
        """Raises: InvalidInput: a client of the wrong kind, or a closed one."""
        _check_client("http_client", self.client, close_method="close")
        _check_client("http_async_client", self.async_client, close_method="aclose")


def _check_client(name: str, client: Any, close_method: str) -> None:
    """Told apart by shape, as other packages than httpx have such clients."""
    if client is None:
        return
    kind, wanted = type(client).__name__, "httpx.Client" if close_method == "close" else "httpx.AsyncClient"
    other = "aclose" if close_method == "close" else "close"
    if isinstance(client, type):
        raise InvalidInput(f"{name} must be an {wanted}, not its class: write {name}={client.__name__}()")
    shaped = all(hasattr(client, part) for part in ("post", "send", "is_closed", close_method))
    if not shaped or hasattr(client, other):
        where = "http_async_client" if close_method == "close" else "http_client"
        swapped = hasattr(client, other) and hasattr(client, "is_closed")
        mend = f": pass it as {where}" if swapped else ", for proxies, certificates and the like"
        raise InvalidInput(f"{name} must be an {wanted}, not {type(client).__module__}.{kind}{mend}")
    check_open(name, client)


def check_open(name: str, client: Any) -> None:
    """Raises: InvalidInput: the user's client is closed."""
    if client.is_closed is True:
        raise InvalidInput(f"the {name} that was given is closed: open a new one, and make this object with it")
