"""The two synchronous embedding endpoints: reads the fields of a request, validates them, builds the reply.

Shapes and limits: https://www.alibabacloud.com/help/en/model-studio/text-embedding-synchronous-api and
https://help.aliyun.com/zh/model-studio/text-embedding-api, read 2026-11-20.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import asdict, dataclass
from struct import pack
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.emulator import synthetic_vectors
from dashscope_embeddings.emulator.error_responses import (
    ApiError,
    invalid_parameter,
    json_headers,
    model_not_found,
    to_json,
)
from dashscope_embeddings.emulator.messages import RequestFields, Response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dashscope_embeddings.catalogue import Model
    from dashscope_embeddings.emulator.messages import WireProtocol

NATIVE_PATH = "/api/v1/services/embeddings/text-embedding/text-embedding"
COMPATIBLE_PATH = "/compatible-mode/v1/embeddings"

COMPATIBLE_ROLE = "query"
"""The compatible protocol has no role to send. For qwen3.7-text-embedding its vectors equal the native ones
of `text_type=query` (a third party's measurement of 2026-09-25); for the other models this is assumed."""

_OUTPUT_TYPES = ("dense", "sparse", "dense&sparse")
_FIXED_DIMENSION_MODELS = ("text-embedding-v1", "text-embedding-v2")
_V3_DIMENSIONS = "[64, 128, 256, 512, 768, 1024, 1536, 2048, 3072]"


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """An embedding request that passed every check."""

    protocol: WireProtocol
    model: str
    texts: tuple[str, ...]
    text_type: str
    output_type: str
    dimension: int
    instruct: str
    encoding_format: str
    tokens: int
    """Tokens to bill."""


def read_fields(protocol: WireProtocol | None, body: Mapping[str, Any]) -> RequestFields:
    """The fields of a body, whatever their types; none on a path without a protocol."""
    if protocol is None:
        return RequestFields()
    contents, parameters = body.get("input"), body.get("parameters")
    names = ["text_type", "output_type", "dimension", "instruct"]
    if protocol == "native":
        contents = contents.get("texts") if isinstance(contents, dict) else None
        found = {name: parameters.get(name) for name in names} if isinstance(parameters, dict) else {}
    else:
        # The compatible protocol ignores text_type, output_type, instruct and dimension (without s).
        found = {"dimension": body.get("dimensions"), "encoding_format": body.get("encoding_format")}
    texts = [contents] if isinstance(contents, str) else contents if isinstance(contents, list) else []
    are_texts = all(isinstance(text, str) for text in texts)
    return RequestFields(model=body.get("model"), contents=contents, texts=tuple(texts) if are_texts else (), **found)


def validate(protocol: WireProtocol, body: Mapping[str, Any], models: Mapping[str, Model]) -> EmbeddingRequest:
    """The checked request. Raises ApiError; the order of the checks is model, input, rows, each row, parameters."""
    fields = read_fields(protocol, body)
    if not fields.model:
        raise ApiError(400, "BadRequest.EmptyModel", 'Required parameter "model" missing from request.')
    if body.get("input") is None:
        raise ApiError(400, "BadRequest.EmptyInput", "Required input parameter missing from request.")
    if protocol == "native" and not isinstance(body["input"], dict):
        raise ApiError(400, "BadRequest.IllegalInput", "The input parameter requires json format.")
    model = models.get(fields.model) if isinstance(fields.model, str) else None
    if model is None:
        raise model_not_found(protocol, str(fields.model))
    _check_rows(fields, model)
    dimension = _dimension(fields, model)
    instruct = _instruct(fields, model)
    return EmbeddingRequest(
        protocol,
        model.name,
        fields.texts,
        COMPATIBLE_ROLE if protocol == "openai" else _choice("text_type", fields.text_type, ("document", "query")),
        # Models without sparse vectors have no such parameter; like `dimension`, it is ignored there.
        _choice("output_type", fields.output_type, _OUTPUT_TYPES) if model.sparse else "dense",
        dimension,
        instruct,
        _choice("encoding_format", fields.encoding_format, ("float", "base64")),
        _billed_tokens(fields.texts, model, instruct),
    )


def success_response(request: EmbeddingRequest, request_id: str) -> Response:
    """HTTP 200 with the vectors."""
    if request.protocol == "native":
        rows = ",".join(_native_row(request, index, text) for index, text in enumerate(request.texts))
        usage = f'{{"total_tokens":{request.tokens}}}'
        body = f'{{"output":{{"embeddings":[{rows}]}},"usage":{usage},"request_id":"{request_id}"}}'
    else:
        write = _base64 if request.encoding_format == "base64" else synthetic_vectors.to_json_array
        rows = ",".join(
            f'{{"embedding":{write(_vector(request, text))},"index":{index},"object":"embedding"}}'
            for index, text in enumerate(request.texts)
        )
        usage = f'{{"prompt_tokens":{request.tokens},"total_tokens":{request.tokens}}}'
        body = f'{{"data":[{rows}],"model":"{request.model}","object":"list","usage":{usage},"id":"{request_id}"}}'
    return Response(200, body.encode(), json_headers(request_id))


def _native_row(request: EmbeddingRequest, index: int, text: str) -> str:
    parts = [f'"text_index":{index}']
    if request.output_type != "sparse":
        parts.insert(0, f'"embedding":{synthetic_vectors.to_json_array(_vector(request, text))}')
    if request.output_type != "dense":
        tokens = synthetic_vectors.sparse(text, model=request.model, text_type=request.text_type)
        parts.insert(0, f'"sparse_embedding":{to_json([asdict(token) for token in tokens]).decode()}')
    return "{" + ",".join(parts) + "}"


def _vector(request: EmbeddingRequest, text: str) -> list[float]:
    return synthetic_vectors.dense(
        text,
        model=request.model,
        text_type=request.text_type,
        dimension=request.dimension,
        # The documents say that an instruction needs the role `query`; assumed: with another role it does nothing.
        instruct=request.instruct if request.text_type == "query" else "",
    )


def _base64(vector: list[float]) -> str:
    return f'"{b64encode(pack(f"<{len(vector)}f", *vector)).decode()}"'


def _check_rows(fields: RequestFields, model: Model) -> None:
    contents, fixed = fields.contents, model.name in _FIXED_DIMENSION_MODELS
    field = "payload.input.contents" if fixed else "input.contents"
    value_error = "" if fixed else "Value error, "
    if not isinstance(contents, (str, list)) or (contents and not fields.texts):
        raise invalid_parameter(f"{value_error}contents is neither str nor list of str.: {field}")
    if isinstance(contents, list) and not contents:
        # The message for an empty list is known from chat endpoints only.
        raise invalid_parameter(f"[] is too short: {field}")
    if len(fields.texts) > model.rows:
        raise invalid_parameter(
            f"{value_error}batch size is invalid, it should not be larger than {model.rows}.: {field}"
        )
    for text in fields.texts:
        # The message for an empty text is not documented, nor whether blanks are stripped first.
        if not text.strip() or synthetic_vectors.count_tokens(text) > model.tokens_per_row_limit:
            raise invalid_parameter(f"Range of input length should be [1, {model.tokens_per_row_limit}]")


def _dimension(fields: RequestFields, model: Model) -> int:
    default = model.default_dimension or 1024
    if not model.takes_dimension or fields.dimension is None:
        return default
    if isinstance(fields.dimension, int) and not isinstance(fields.dimension, bool):
        if fields.dimension in model.dimensions:
            return fields.dimension
        if not model.dimensions and fields.dimension > 0:
            return fields.dimension
    # The list in the service's message for v3 has sizes that it refuses; for other models no message was seen.
    listed = _V3_DIMENSIONS if model.name == "text-embedding-v3" else str(sorted(model.dimensions))
    name = model.name.removeprefix("text-embedding-")
    raise invalid_parameter(f"Value error, dimension for embedding {name} is invalid, its value shold be in {listed}")


def _instruct(fields: RequestFields, model: Model) -> str:
    """The instruction. Assumed: a model without instructions ignores it, as it ignores `dimension`; not documented."""
    if not model.instruct or fields.instruct is None:
        return ""
    if not isinstance(fields.instruct, str):
        raise invalid_parameter("Value error, instruct is not str.: parameters.instruct")
    return fields.instruct


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """One of the allowed values, the first by default.

    What the service does with another value is not documented; an error shows the caller's mistake.
    """
    if value is None:
        return allowed[0]
    if value in allowed:
        return str(value)
    raise invalid_parameter(
        f"Value error, {name} is invalid, its value should be in {list(allowed)}: parameters.{name}"
    )


def _billed_tokens(texts: tuple[str, ...], model: Model, instruct: str) -> int:
    """Tokens of a request; qwen3.7 adds a fixed number a row: "a" was seen billed as 17 there."""
    per_row = 16 if model.name.startswith("qwen3.7") else 0
    return sum(map(synthetic_vectors.count_tokens, texts)) + len(texts) * (
        per_row + synthetic_vectors.count_tokens(instruct)
    )
