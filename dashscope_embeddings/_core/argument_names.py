"""Suggestions for unknown arguments: the similar name, or our name for what other packages call differently."""

from __future__ import annotations

import difflib
import functools
import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from dashscope_embeddings._core.client_options import settings as client_settings
from dashscope_embeddings._core.client_options import signature
from dashscope_embeddings._core.secret_settings import hide_secrets
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

Params = ParamSpec("Params")
ReturnT = TypeVar("ReturnT")

# Our names → names in other packages. A class has one of two: LangChain says `model`, LlamaIndex `model_name`.
_NAMES_ELSEWHERE: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("api_key",): ("key", "apikey", "token", "access_key", "openai_api_key", "dashscope_key"),
    ("base_url",): ("endpoint", "url", "host", "openai_api_base", "base_http_api_url", "api_base", "api_url"),
    ("batch_size",): ("embed_batch_size", "bulk_size"),
    ("default_headers",): ("headers", "extra_headers"),
    ("dimensions",): ("output_dimension", "output_dimensionality", "dim", "dims", "size", "vector_size", "embed_dim"),
    ("embeddings_cache",): ("cache", "store", "document_embedding_cache", "query_embedding_cache"),
    ("http_client",): ("client", "session"),
    ("http_async_client",): ("async_client", "async_http_client"),
    ("instruct",): ("instruction", "query_instruction", "prompt"),
    ("long_text",): ("truncate", "truncation", "auto_truncation"),
    ("max_concurrency",): ("max_workers", "workers", "num_workers", "parallelism"),
    ("max_retries",): ("retries",),
    ("model", "model_name"): ("model_id", "deployment", "engine"),
    ("kind", "output"): ("kind",),
    ("requests_per_minute",): ("rpm", "qpm"),
    ("show_progress_bar",): ("show_progress", "progress"),
    ("text_field",): ("text_column",),
    ("text_type",): ("input_type", "task_type", "task", "role", "embedding_type"),
    ("timeout",): ("request_timeout", "read_timeout"),
    ("tokens_per_minute",): ("tpm",),
    ("workspace",): ("workspace_id",),
}

_HTTPX_OPTIONS = {
    "proxy": ("proxy", "HTTPS_PROXY"),
    "proxies": ("proxy", "HTTPS_PROXY"),
    "verify": ("verify", "SSL_CERT_FILE"),
    "ssl_context": ("verify", "SSL_CERT_FILE"),
}
"""What is set in the HTTP client: names elsewhere → httpx's, and the environment variable that says the same."""
_CALL_OPTIONS = ("text_type", "output", "array", "progress", "on_vectors")
"""Keywords of `embed`, which are sometimes passed to the constructor."""
_CALLBACKS = ("progress", "on_vectors", "refused", "arrived", "before")


def closest_name(name: str, known_names: Collection[str]) -> str | None:
    """The known name that was probably meant; None if there is no good guess."""
    for candidate in (name, *difflib.get_close_matches(name.lower(), {*known_names, "model"}, n=1, cutoff=0.7)):
        if candidate in known_names:
            return candidate
        for ours, others in _NAMES_ELSEWHERE.items():
            if candidate in (*ours, *others) and (found := next((own for own in ours if own in known_names), None)):
                return found
    return None


def suggestion(name: str, known_names: Collection[str]) -> str:
    """The end of an error message that suggests the closest name; empty if there is none."""
    if name in _HTTPX_OPTIONS and "http_client" in known_names:
        option, variable = _HTTPX_OPTIONS[name]
        return (
            f": set the environment variable {variable}, or pass http_client=httpx.Client({option}=…), and for async "
            f"code http_async_client=httpx.AsyncClient({option}=…)"
        )
    found = closest_name(name, known_names)
    return "" if found is None else f": is {found} meant?"


def reject_unknown_init_arguments(init: Callable[Params, None]) -> Callable[Params, None]:
    """Decorates `EmbeddingClient.__init__`: an unknown keyword is refused with the name that was probably meant."""
    names = client_settings().keys() | {"model"}

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **settings: Any) -> None:
        problem = None
        if len(args) > 1 or (args and "model" in settings):
            problem = "takes the model by position, and all else by name: api_key=…, dimensions=…"
        elif unknown := [name for name in settings if name not in names]:
            problem = "; ".join(f"has no argument {name}{_init_hint(name, names)}" for name in unknown)
        if problem is None:
            settings |= dict(zip(("model",), args, strict=False))
            del args
            hide_secrets(settings)
            init(self, **settings)
            return
        del args
        settings.clear()  # tracebacks may show local variables, and a value may be a key
        raise TypeError(f"{type(self).__name__} {problem}")

    checked.__signature__ = signature()  # type: ignore[attr-defined] # what `inspect.signature` looks for
    return cast("Callable[Params, None]", checked)


def _init_hint(name: str, names: Collection[str]) -> str:
    found = closest_name(name, _CALL_OPTIONS)
    return suggestion(name, names) if found is None else f": its embed(…) takes {found}"


def reject_unknown_keywords(call: Callable[Params, ReturnT]) -> Callable[Params, ReturnT]:
    """Decorates a method: refuses an unknown keyword with the name that was probably meant, and unusable callbacks."""
    parameters = inspect.signature(call).parameters
    names = frozenset(parameters)
    callbacks = [name for name in _CALLBACKS if name in names]

    def hint(name: str) -> str:
        if found := suggestion(name, names):
            return found
        setting = closest_name(name, {*client_settings(), "model"})
        return f": {setting} is set once, EmbeddingClient({setting}=…)" if setting else ""

    def check(keywords: Mapping[str, object]) -> None:
        if unknown := [name for name in keywords if name not in names]:
            problem = "; ".join(f"has no argument {name}{hint(name)}" for name in unknown)
            raise TypeError(f"{call.__name__}(…) {problem}")
        for name in callbacks:
            is_flag = isinstance(keywords.get(name), bool) and "bool" in str(parameters[name].annotation)
            if not is_flag:
                check_callback(
                    name, keywords.get(name), may_be_async=name == "on_vectors" and call.__name__ == "aembed"
                )

    if inspect.iscoroutinefunction(call):

        @functools.wraps(call)
        async def checked_coroutine(*args: Params.args, **keywords: Params.kwargs) -> object:
            check(keywords)
            return await call(*args, **keywords)

        return cast("Callable[Params, ReturnT]", checked_coroutine)

    @functools.wraps(call)
    def checked(*args: Params.args, **keywords: Params.kwargs) -> ReturnT:
        check(keywords)
        return call(*args, **keywords)

    return checked


def check_callback(name: str, value: object, *, may_be_async: bool = False) -> None:
    """Raises InvalidInput if a callback of the user's cannot be called, or would never be awaited."""
    if value is None:
        return
    if not callable(value):
        raise InvalidInput(f"{name} must be a function, not {type(value).__name__}")
    if not may_be_async and any(map(inspect.iscoroutinefunction, (value, getattr(value, "__call__", None)))):  # noqa: B004 - its code
        raise InvalidInput(f"{name} is async, and nobody would await it: pass a function that returns at once")


def check_argument_names(model_class: type[BaseModel], settings: Collection[str], known_names: Collection[str]) -> None:
    """Refuses, as pydantic does, names that a class does not have, and two names of one field."""
    problems = {name: suggestion(name, known_names) for name in settings if name not in known_names}
    for field in model_class.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            first, *more = [str(name) for name in field.validation_alias.choices if name in settings] or [""]
            problems |= dict.fromkeys(more, f": it is another name of {first}, pass one of them")
    if problems:
        raise ValidationError.from_exception_data(
            model_class.model_config.get("title") or model_class.__name__,
            [
                {
                    "type": PydanticCustomError("extra_forbidden", f"Extra inputs are not permitted{problem}"),
                    "loc": (name,),
                    "input": None,
                }
                for name, problem in problems.items()
            ],
            hide_input=True,
        )
