"""Base of the sparse adapters: they have settings of their own, or are paired with a dense adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import AliasChoices, ConfigDict, Field, SecretStr
from typing_extensions import Unpack

from dashscope_embeddings._adapters.base import ClientFields, as_single_text, as_text_list
from dashscope_embeddings._adapters.flows import Flow
from dashscope_embeddings._adapters.hybrid import HybridEmbedder
from dashscope_embeddings._core.client_options import SparseOptions
from dashscope_embeddings._core.secret_settings import hide_secrets
from dashscope_embeddings.catalogue import DEFAULT_MODEL
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.vectors import SparseVector, TextType, Usage


class SparseSettings(ClientFields):
    """The settings of a sparse adapter that is not paired with a dense one."""

    model_config = ConfigDict(title="a sparse adapter")

    model: str = Field(default=DEFAULT_MODEL, validation_alias=AliasChoices("model", "model_name"))
    api_key: SecretStr | None = Field(
        default=None, exclude=True, validation_alias=AliasChoices("api_key", "dashscope_api_key")
    )

    def _check_client(self, client: EmbeddingClient) -> None:
        client.settings.require_sparse()


def with_hidden_keys(options: Mapping[str, Any], accepted: type) -> dict[str, Any]:
    """The arguments of what has a sparse adapter, of which `accepted` has the names; their keys become `SecretStr`.

    In place, because a factory's frame is shown with its arguments if the constructor raises.
    """
    settings = cast("dict[str, Any]", options)
    hide_secrets(settings, SparseSettings._argument_names() | accepted.__annotations__.keys())  # noqa: SLF001 - the class above
    return settings


class SparseAdapter:
    """Embeds through a dense adapter or through settings of its own. A pickle holds the settings only."""

    def __init__(
        self, dense: ClientFields | None = None, *, memo_size: int | None = None, **options: Unpack[SparseOptions]
    ) -> None:
        """`dense`: the dense adapter to share requests with; without it, settings of `EmbeddingClient`."""
        cast("dict[str, Any]", options)["dense"] = dense
        del dense  # a string may be a key
        settings = with_hidden_keys(options, SparseOptions)
        dense = settings.pop("dense")
        if dense is None:
            if memo_size is not None:
                raise InvalidInput("memo_size belongs to a paired adapter: pass dense= as well")
            dense = SparseSettings(**settings)
        elif settings:
            raise InvalidInput(f"{', '.join(settings)}: a paired adapter has the settings of the dense one")
        elif not isinstance(dense, ClientFields):
            kind = "str" if isinstance(dense, SecretStr) else type(dense).__name__
            raise InvalidInput(f"expected a dense adapter of this package, not {kind}")
        self._source: ClientFields = dense
        self._memo_size = memo_size
        self._pair()

    def _pair(self) -> None:
        if not isinstance(self._source, SparseSettings):
            self._source.pair(self, self._memo_size)

    @property
    def document_role(self) -> TextType:
        """The role that the dense adapter gives to documents: both vectors of a text come from one request."""
        return self._source.document_role

    @property
    def hybrid(self) -> HybridEmbedder:
        """The client, and the cache of a pair."""
        return self._source.hybrid

    def _documents(self, texts: list[str]) -> Flow[list[SparseVector]]:
        return self.hybrid.component_flow("sparse", as_text_list(texts), self.document_role)

    def _queries(self, texts: list[str]) -> Flow[list[SparseVector]]:
        return self.hybrid.component_flow("sparse", as_text_list(texts), "query")

    def _query(self, text: str) -> Flow[SparseVector]:
        [row] = yield from self._queries([as_single_text(text)])
        return row

    @property
    def usage(self) -> Usage:
        """What was billed so far; of a pair, to both adapters together."""
        return self._source.usage

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pair()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseAdapter):
            return NotImplemented
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self._source, self._memo_size))
