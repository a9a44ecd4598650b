"""Base class of the adapters: a client's settings as pydantic fields, the client made from them, and pairing."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, SecretStr, model_validator
from typing_extensions import Self

from dashscope_embeddings._adapters.hybrid import HybridEmbedder
from dashscope_embeddings._adapters.hybrid_cache import CAPACITY_TEXTS, HybridCache
from dashscope_embeddings._core.argument_names import check_argument_names, suggestion
from dashscope_embeddings._core.client_options import SettingFields
from dashscope_embeddings._core.secret_settings import hide_secrets
from dashscope_embeddings._core.text_inputs import as_plain_string, iterate_texts
from dashscope_embeddings._process import ForkSafeLock, warn_once
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.vectors import TextType, Usage

_client_lock = ForkSafeLock()


class ClientFields(SettingFields):
    """The settings of `EmbeddingClient`, documented there. Settings that cannot change a vector are left out of dumps.

    A new client is made when a field changes, by assignment or by `model_copy(update=…)`, and after unpickling; copies
    with equal fields share one client.
    """

    model_config = ConfigDict(
        extra="forbid",
        populate_by_name=True,
        protected_namespaces=(),
        hide_input_in_errors=True,
    )

    # The fields that hold the model and the key: each framework has its own names for them.
    _model_field: ClassVar[str] = "model"
    _key_field: ClassVar[str] = "api_key"
    # Fields of the framework that `_settings` reads as well.
    _framework_fields: ClassVar[tuple[str, ...]] = ()

    # The address found at construction. If a variable changes later, the key must not be sent to another host.
    found_address: str | None = Field(default=None, exclude=True, repr=False)

    _client: EmbeddingClient | None = PrivateAttr(default=None)
    _hybrid_cache: tuple[EmbeddingClient, HybridCache] | None = PrivateAttr(default=None)
    _memo_size: int = PrivateAttr(default=CAPACITY_TEXTS)
    _partner_count: int = PrivateAttr(default=0)

    def __init__(self, /, *misplaced: Any, **settings: Any) -> None:
        if misplaced:
            del misplaced
            settings.clear()  # a key may be among them, and frames are shown
            raise TypeError(f"{type(self).__name__} takes its arguments by name: model=…, api_key=…")
        hide_secrets(settings, self._argument_names())
        check_argument_names(type(self), settings, self._argument_names())
        super().__init__(**settings)

    def _comparison_values(self) -> dict[str, Any]:
        """The values that decide equality: all settings, but not the client made from them."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        # LlamaIndex makes a new manager for every object: compare the handlers that it calls.
        values["callback_manager"] = getattr(values.get("callback_manager"), "handlers", None)
        values["embeddings_cache"] = getattr(cache := values.get("embeddings_cache"), "wrapped", cache)
        return values

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ClientFields):
            return NotImplemented
        return type(self) is type(other) and self._comparison_values() == other._comparison_values()

    def __hash__(self) -> int:
        plain = (str, int, float, SecretStr, type(None))
        return hash((type(self), *(value for value in self._comparison_values().values() if isinstance(value, plain))))

    @classmethod
    def _argument_names(cls) -> frozenset[str]:
        """The names of all arguments, with their aliases."""
        aliases = (field.validation_alias for field in cls.model_fields.values())
        choices = [str(name) for alias in aliases if isinstance(alias, AliasChoices) for name in alias.choices]
        return frozenset(cls.model_fields).union(choices)

    if not TYPE_CHECKING:
        # As pydantic's, but with keys replaced by SecretStr in frames and fields. Pydantic's mypy plugin types these.

        @classmethod
        def model_validate(cls, obj: Any, **how: Any) -> Self:
            if isinstance(obj, Mapping):
                obj = dict(obj)
                hide_secrets(obj, cls._argument_names())
            return super().model_validate(obj, **how)

        @classmethod
        def model_validate_json(cls, json_data: str | bytes, **how: Any) -> Self:
            boxed = [json_data]
            del json_data  # a variable of this frame would show a key in tracebacks
            return cls.__pydantic_validator__.validate_json(boxed.pop(), **how)

        @classmethod
        def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Self:
            hide_secrets(values, cls._argument_names())
            return super().model_construct(_fields_set, **values)

    @model_validator(mode="after")
    def _make_client(self) -> Self:
        """Makes the client, so that wrong settings are found at construction."""
        client = self.client
        self._check_client(client)
        # So that later copies, and pickles in processes with other variables, use the same key and host.
        setattr(self, self._key_field, client.key)
        self.found_address = client.settings.address.root_url
        self._client = client
        return self

    def _check_client(self, client: EmbeddingClient) -> None:
        if client.settings.protocol == "openai":
            warn_once(
                "roles",
                'protocol="openai" does not distinguish queries from documents, and the vendor does not document which '
                'role it uses for both. protocol="native" sends the role',
            )

    def _settings(self) -> dict[str, Any]:
        """Arguments for `EmbeddingClient`."""
        settings = {name: getattr(self, name) for name in ClientFields.model_fields}
        found_address = settings.pop("found_address")
        if self.base_url is None and self.region is None and self.workspace is None:
            settings["base_url"] = found_address
        return settings | {"model": getattr(self, self._model_field), "api_key": getattr(self, self._key_field)}

    @property
    def client(self) -> EmbeddingClient:
        """The client of this object, for what the framework's interface does not offer.

        Raises:
            InvalidInput: a field was changed to a value that cannot work.
        """
        if (client := self._client) is not None:
            return client
        with _client_lock.current:
            if self._client is None:
                self._client = EmbeddingClient(**self._settings())
            return self._client

    def __setattr__(self, name: str, value: Any) -> None:
        setting = {name: value}
        del value
        hide_secrets(setting)
        super().__setattr__(name, self._as_field(name, setting[name]))
        if name in {*ClientFields.model_fields, self._model_field, self._key_field, *self._framework_fields}:
            self._client = None

    def _as_field(self, name: str, value: Any) -> Any:  # noqa: ARG002 - an adapter wraps some fields by name
        """The value to keep for one that was assigned."""
        return value

    @property
    def document_role(self) -> TextType:
        """The role of texts that are not queries: dense adapters have a field for it."""
        role: TextType = getattr(self, "text_type", "document")
        return role

    @property
    def hybrid(self) -> HybridEmbedder:
        """Embeds with the client; shares a cache with the sparse adapters that are paired with this one."""
        client = self.client
        if not self._partner_count:
            return HybridEmbedder(client)
        with _client_lock.current:
            if self._hybrid_cache is None or self._hybrid_cache[0] is not client:
                self._hybrid_cache = client, HybridCache(self._memo_size)
            return HybridEmbedder(client, self._hybrid_cache[1])

    def pair(self, partner: object, memo_size: int | None = None) -> None:
        """Pairs a sparse adapter with this one.

        As long as `partner` exists, requests ask for dense and sparse vectors, and the sparse ones are cached for it.

        Raises:
            InvalidInput: the model or the protocol has no sparse vectors.
        """
        self.client.settings.require_sparse()
        if memo_size is not None:
            self._memo_size = memo_size
        self._partner_count += 1
        weakref.finalize(partner, _unpair, weakref.ref(self))

    @property
    def usage(self) -> Usage:
        """What the requests of this object were billed so far, with its present settings."""
        return self.client.usage

    @property
    def cache_namespace(self) -> str:
        """A namespace for caches of these vectors: it contains service, model, dimension, role and instruct.

        For LangChain's `CacheBackedEmbeddings`. It needs two different stores for documents and queries: with one
        store for both, a query gets the vector of an equal document. Letters, digits, ".", "-" and "_" only.
        """
        settings = self.client.settings
        spaces = [settings.namespace(self.document_role), settings.namespace("query")]
        return spaces[0] if settings.instruct is None else f"{spaces[0]}_for_{spaces[1].rpartition('_')[2]}"

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # Clients, limiters and stores are shared, as by a shallow copy: their locks cannot be copied.
        memo = {} if memo is None else memo
        caches = (getattr(self, "embeddings_cache", None), self._hybrid_cache)
        for shared in (self.http_client, self.http_async_client, self.rate_limiter, self.on_request, *caches):
            memo[id(shared)] = shared
        copy = super().__deepcopy__(memo)
        copy._partner_count, copy._hybrid_cache = 0, None  # noqa: SLF001 - a copy has no partner yet
        return copy

    def __copy__(self) -> Self:
        copy = super().__copy__()
        copy._partner_count, copy._hybrid_cache = 0, None  # noqa: SLF001 - same
        return copy

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields changed.

        Raises:
            InvalidInput: a name in `update` is not a field.
        """
        unknown = [name for name in update or {} if name not in type(self).model_fields]
        if unknown:
            listing = ", ".join(f"{name} is none{suggestion(name, type(self).model_fields)}" for name in unknown)
            raise InvalidInput(f"model_copy(update=…) takes names of fields, and {listing}")
        hide_secrets(update := dict(update or {}))
        copy = super().model_copy(deep=deep)
        for name, value in update.items():
            setattr(copy, name, value)
        return copy

    def __getstate__(self) -> dict[Any, Any]:
        if self.http_client is not None or self.http_async_client is not None:
            raise InvalidInput(
                "embeddings with an http_client cannot be pickled, because sockets cannot move to another process. "
                "Make them in the other process, or set proxies and certificates by environment variables"
            )
        # The state of a copy, because LlamaIndex deletes entries that cannot be pickled from it.
        copy = self.model_copy()
        copy._client = None  # noqa: SLF001 - of the same class
        copy.on_request = None  # a hook stays in its process
        state = super(ClientFields, copy).__getstate__()
        return {**state, "__pydantic_private__": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        if self.__pydantic_private__ is None:
            self.model_post_init(None)


def _unpair(dense: weakref.ref[ClientFields]) -> None:
    if (adapter := dense()) is not None:
        adapter._partner_count -= 1  # noqa: SLF001 - undoes `pair`


def as_text_list(texts: Any) -> list[str]:
    """The texts passed to a method that takes a list; not a string, whose characters would be embedded one by one."""
    if isinstance(texts, (str, bytes)):
        raise InvalidInput(f"expected a list of texts, not {type(texts).__name__}")
    return [*map(as_plain_string, iterate_texts(texts))]


def as_single_text(text: Any) -> str:
    if not isinstance(text, str):
        raise InvalidInput(f"expected one text, a string, not {type(text).__name__}")
    return text
