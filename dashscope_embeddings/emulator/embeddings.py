"""The two synchronous embedding endpoints: what they read out of a body, refuse, and answer.

Shapes and limits: https://www.alibabacloud.com/help/en/model-studio/text-embedding-synchronous-api and
https://help.aliyun.com/zh/model-studio/text-embedding-api, read 2026-11-20.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import asdict, dataclass
from struct import pack
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.emulator import synthetic_vectors
from dashscope_embeddings.emulator.error_responses import Refusal, invalid, json_headers, no_such_model, to_json
from dashscope_embeddings.emulator.messages import Response

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dashscope_embeddings.catalogue import Model
    from dashscope_embeddings.emulator.messages import Protocol

NATIVE_PATH = "/api/v1/services/embeddings/text-embedding/text-embedding"
COMPATIBLE_PATH = "/compatible-mode/v1/embeddings"

COMPATIBLE_ROLE = "query"
"""The compatible protocol has no role to send. For qwen3.7-text-embedding its vectors equal the native ones
of `text_type=query` (a third party's measurement of 2026-09-25); for the other models this is assumed."""

_OUTPUTS = ("dense", "sparse", "dense&sparse")
_FIXED_SIZE = ("text-embedding-v1", "text-embedding-v2")
_V3_DIMENSIONS = "[64, 128, 256, 512, 768, 1024, 1536, 2048, 3072]"


@dataclass(frozen=True, slots=True)
class Asking:
    """An embedding request that passed every check."""

    protocol: Protocol
    model: str
    texts: tuple[str, ...]
    text_type: str
    output_type: str
    dimension: int
    instruct: str
    encoding_format: str
    tokens: int
    """What it will be billed."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The fields of a body under one name for both protocols, unchecked."""

    model: Any
    contents: Any
    text_type: Any = None
    output_type: Any = None
    dimension: Any = None
    instruct: Any = None
    encoding_format: Any = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts, none where the input is no text or list of texts."""
        if isinstance(self.contents, str):
            return (self.contents,)
        if isinstance(self.contents, list) and all(isinstance(text, str) for text in self.contents):
            return tuple(self.contents)
        return ()


def look(protocol: Protocol, body: Mapping[str, Any]) -> Sent:
    """The fields of a body, whatever their types."""
    if protocol == "native":
        given, parameters = body.get("input"), body.get("parameters")
        parameters = parameters if isinstance(parameters, dict) else {}
        return Sent(
            body.get("model"),
            given.get("texts") if isinstance(given, dict) else None,
            *(parameters.get(name) for name in ("text_type", "output_type", "dimension", "instruct")),
        )
    # text_type, output_type, instruct and dimension (without s) are no parameters here: they are ignored.
    return Sent(
        body.get("model"),
        body.get("input"),
        dimension=body.get("dimensions"),
        encoding_format=body.get("encoding_format"),
    )


def check(protocol: Protocol, body: Mapping[str, Any], models: Mapping[str, Model]) -> Asking:
    """What is asked.

    Raises:
        Refusal: looking at model, input, rows, each row, parameters in this order.
    """
    sent = look(protocol, body)
    if not sent.model:
        raise Refusal(400, "BadRequest.EmptyModel", 'Required parameter "model" missing from request.')
    if body.get("input") is None:
        raise Refusal(400, "BadRequest.EmptyInput", "Required input parameter missing from request.")
    if protocol == "native" and not isinstance(body["input"], dict):
        raise Refusal(400, "BadRequest.IllegalInput", "The input parameter requires json format.")
    model = models.get(sent.model) if isinstance(sent.model, str) else None
    if model is None:
        raise no_such_model(protocol, str(sent.model))
    _check_rows(sent, model)
    dimension = _dimension(sent, model)
    instruct = _instruct(sent, model)
    return Asking(
        protocol,
        model.name,
        sent.texts,
        COMPATIBLE_ROLE if protocol == "openai" else _choice("text_type", sent.text_type, ("document", "query")),
        # Models without sparse vectors have no such parameter; as with `dimension`, they give what they have.
        _choice("output_type", sent.output_type, _OUTPUTS) if model.sparse else "dense",
        dimension,
        instruct,
        _choice("encoding_format", sent.encoding_format, ("float", "base64")),
        _bill(sent.texts, model, instruct),
    )


def answer(asking: Asking, request_id: str) -> Response:
    """HTTP 200 with the vectors."""
    rows = (_native_row if asking.protocol == "native" else _compatible_row)(asking)
    items = ",".join(rows)
    if asking.protocol == "native":
        body = (
            f'{{"output":{{"embeddings":[{items}]}},"usage":{{"total_tokens":{asking.tokens}}},'
            f'"request_id":"{request_id}"}}'
        ).encode()
    else:
        usage = f'{{"prompt_tokens":{asking.tokens},"total_tokens":{asking.tokens}}}'
        body = (
            f'{{"data":[{items}],"model":"{asking.model}","object":"list","usage":{usage},"id":"{request_id}"}}'
        ).encode()
    return Response(200, body, json_headers(request_id))


def _native_row(asking: Asking) -> list[str]:
    rows = []
    for index, text in enumerate(asking.texts):
        parts = []
        if asking.output_type != "dense":
            tokens = synthetic_vectors.sparse(text, model=asking.model, text_type=asking.text_type)
            parts.append(f'"sparse_embedding":{to_json([asdict(token) for token in tokens]).decode()}')
        if asking.output_type != "sparse":
            parts.append(f'"embedding":{synthetic_vectors.text_of(_vector(asking, text))}')
        rows.append("{" + ",".join([*parts, f'"text_index":{index}']) + "}")
    return rows


def _compatible_row(asking: Asking) -> list[str]:
    write: Callable[[list[float]], str] = _base64 if asking.encoding_format == "base64" else synthetic_vectors.text_of
    return [
        f'{{"embedding":{write(_vector(asking, text))},"index":{index},"object":"embedding"}}'
        for index, text in enumerate(asking.texts)
    ]


def _vector(asking: Asking, text: str) -> list[float]:
    return synthetic_vectors.dense(
        text,
        model=asking.model,
        text_type=asking.text_type,
        dimension=asking.dimension,
        # Documents say that an instruction needs the role `query`; with another it is taken to do nothing.
        instruct=asking.instruct if asking.text_type == "query" else "",
    )


def _base64(vector: list[float]) -> str:
    return f'"{b64encode(pack(f"<{len(vector)}f", *vector)).decode()}"'


def _check_rows(sent: Sent, model: Model) -> None:
    contents, fixed = sent.contents, model.name in _FIXED_SIZE
    place = "payload.input.contents" if fixed else "input.contents"
    value_error = "" if fixed else "Value error, "
    if not isinstance(contents, (str, list)) or (contents and not sent.texts):
        raise invalid(f"{value_error}contents is neither str nor list of str.: {place}")
    if isinstance(contents, list) and not contents:
        # The words for an empty list are known from chat messages only.
        raise invalid(f"[] is too short: {place}")
    if len(sent.texts) > model.rows:
        raise invalid(f"{value_error}batch size is invalid, it should not be larger than {model.rows}.: {place}")
    for text in sent.texts:
        # The words for an empty text are not documented, nor whether blanks are stripped first.
        if not text.strip() or synthetic_vectors.count(text) > model.tokens_per_row_limit:
            raise invalid(f"Range of input length should be [1, {model.tokens_per_row_limit}]")


def _dimension(sent: Sent, model: Model) -> int:
    default = model.default_dimension or 1024
    if not model.takes_dimension or sent.dimension is None:
        return default
    if isinstance(sent.dimension, int) and not isinstance(sent.dimension, bool):
        if sent.dimension in model.dimensions:
            return sent.dimension
        if not model.dimensions and sent.dimension > 0:
            return sent.dimension
    # The list that the service names for v3 holds sizes that it refuses; for other models none was seen.
    listed = _V3_DIMENSIONS if model.name == "text-embedding-v3" else str(sorted(model.dimensions))
    name = model.name.removeprefix("text-embedding-")
    raise invalid(f"Value error, dimension for embedding {name} is invalid, its value shold be in {listed}")


def _instruct(sent: Sent, model: Model) -> str:
    """A model without instructions is taken to ignore them, like `dimension`: the documents do not say."""
    if not model.instruct or sent.instruct is None:
        return ""
    if not isinstance(sent.instruct, str):
        raise invalid("Value error, instruct is not str.: parameters.instruct")
    return sent.instruct


def _choice(name: str, given: Any, allowed: tuple[str, ...]) -> str:
    """One of the allowed words, the first by default.

    What the service does with another word is not documented; to refuse it shows the caller's mistake.
    """
    if given is None:
        return allowed[0]
    if given in allowed:
        return str(given)
    raise invalid(f"Value error, {name} is invalid, its value should be in {list(allowed)}: parameters.{name}")


def _bill(texts: tuple[str, ...], model: Model, instruct: str) -> int:
    """Tokens of a request; qwen3.7 adds a fixed number a row: "a" was seen billed as 17 there."""
    per_row = 16 if model.name.startswith("qwen3.7") else 0
    return sum(map(synthetic_vectors.count, texts)) + len(texts) * (per_row + synthetic_vectors.count(instruct))
