"""The two synchronous embedding endpoints: reads the fields of a request, validates them, builds the reply.

Shapes and limits: https://www.alibabacloud.com/help/en/model-studio/text-embedding-synchronous-api and
https://help.aliyun.com/zh/model-studio/text-embedding-api, read 2026-11-20.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import asdict, replace
from struct import pack
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.emulator import synthetic_vectors
from dashscope_embeddings.emulator.error_responses import ApiError, invalid_parameter, json_headers, to_json
from dashscope_embeddings.emulator.messages import EmbeddingRequest, Response

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


def read_request(protocol: WireProtocol | None, body: Mapping[str, Any]) -> EmbeddingRequest:
    """The fields of a body, whatever their types; none on a path without a protocol."""
    if protocol is None:
        return EmbeddingRequest()
    contents, parameters = body.get("input"), body.get("parameters")
    if protocol == "native":
        contents = contents.get("texts") if isinstance(contents, dict) else None
        parameters = parameters if isinstance(parameters, dict) else {}
        fields: dict[str, Any] = {
            name: parameters.get(name) for name in ("text_type", "output_type", "dimension", "instruct")
        }
    else:
        # The compatible protocol ignores text_type, output_type, instruct and dimension (without s).
        fields = {"dimension": body.get("dimensions"), "encoding_format": body.get("encoding_format")}
    texts = [contents] if isinstance(contents, str) else contents if isinstance(contents, list) else []
    if not all(isinstance(text, str) for text in texts):
        texts = []
    return EmbeddingRequest(protocol=protocol, model=body.get("model"), contents=contents, texts=tuple(texts), **fields)


def validate(request: EmbeddingRequest, body: Mapping[str, Any], models: Mapping[str, Model]) -> EmbeddingRequest:
    """The request with the defaults of its fields, and its tokens.

    Raises:
        ApiError: from the first check that fails, of model, input, rows, each row, and parameters.
    """
    if not request.model:
        raise ApiError(400, "BadRequest.EmptyModel", 'Required parameter "model" missing from request.')
    if body.get("input") is None:
        raise ApiError(400, "BadRequest.EmptyInput", "Required input parameter missing from request.")
    if request.protocol == "native" and not isinstance(body["input"], dict):
        raise ApiError(400, "BadRequest.IllegalInput", "The input parameter requires json format.")
    model = models.get(request.model) if isinstance(request.model, str) else None
    if model is None:
        message = f"The model {request.model} does not exist or you do not have access to it."
        raise ApiError(404, "ModelNotFound", "Model can not be found.", message)
    _check_rows(request, model)
    # Models without instructions or sparse vectors are assumed to ignore `instruct` and `output_type`, as `dimension`
    # is ignored by models of one dimension.
    instruct = request.instruct if model.instruct and request.instruct is not None else ""
    if not isinstance(instruct, str):
        raise invalid_parameter("Value error, instruct is not str.: parameters.instruct")
    text_type = COMPATIBLE_ROLE if request.protocol == "openai" else request.text_type
    return replace(
        request,
        text_type=_choice("text_type", text_type, ("document", "query")),
        output_type=_choice("output_type", request.output_type, _OUTPUT_TYPES) if model.sparse else "dense",
        dimension=_dimension(request.dimension, model),
        instruct=instruct,
        encoding_format=_choice("encoding_format", request.encoding_format, ("float", "base64")),
        tokens=_billed_tokens(request.texts, model, instruct),
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
    parts = []
    if request.output_type != "dense":
        tokens = synthetic_vectors.sparse(text, model=request.model, text_type=request.text_type)
        parts.append(f'"sparse_embedding":{to_json([asdict(token) for token in tokens]).decode()}')
    if request.output_type != "sparse":
        parts.append(f'"embedding":{synthetic_vectors.to_json_array(_vector(request, text))}')
    return "{" + ",".join([*parts, f'"text_index":{index}']) + "}"


def _vector(request: EmbeddingRequest, text: str) -> list[float]:
    return synthetic_vectors.dense(
        text, model=request.model, text_type=request.text_type, dimension=request.dimension, instruct=request.instruct
    )


def _base64(vector: list[float]) -> str:
    return f'"{b64encode(pack(f"<{len(vector)}f", *vector)).decode()}"'


def _check_rows(request: EmbeddingRequest, model: Model) -> None:
    contents, fixed = request.contents, model.name in _FIXED_DIMENSION_MODELS
    field = "payload.input.contents" if fixed else "input.contents"
    value_error = "" if fixed else "Value error, "
    if not isinstance(contents, (str, list)) or (contents and not request.texts):
        raise invalid_parameter(f"{value_error}contents is neither str nor list of str.: {field}")
    if isinstance(contents, list) and not contents:
        # The message for an empty list is known from chat endpoints only.
        raise invalid_parameter(f"[] is too short: {field}")
    if len(request.texts) > model.rows:
        raise invalid_parameter(
            f"{value_error}batch size is invalid, it should not be larger than {model.rows}.: {field}"
        )
    for text in request.texts:
        # The message for an empty text is not documented, nor whether blanks are stripped first.
        if not text.strip() or synthetic_vectors.count_tokens(text) > model.tokens_per_row_limit:
            raise invalid_parameter(f"Range of input length should be [1, {model.tokens_per_row_limit}]")


def _dimension(value: Any, model: Model) -> int:
    if not model.takes_dimension or value is None:
        return model.default_dimension or 1024
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    # Of a model without known dimensions, any is taken.
    if is_count and (value in model.dimensions or not model.dimensions):
        return int(value)
    # The list in the service's message for v3 has sizes that it refuses; for other models no message was seen.
    listed = _V3_DIMENSIONS if model.name == "text-embedding-v3" else str(sorted(model.dimensions))
    name = model.name.removeprefix("text-embedding-")
    raise invalid_parameter(f"Value error, dimension for embedding {name} is invalid, its value shold be in {listed}")


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
