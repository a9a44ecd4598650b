"""Requests to an emulator in this process, and the clock that it runs by."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx

from dashscope_embeddings.emulator.embeddings import COMPATIBLE_PATH, NATIVE_PATH

if TYPE_CHECKING:
    from dashscope_embeddings.emulator import Emulator

KEY = "sk-made-up"
V4 = "text-embedding-v4"


class Clock:
    """Stands until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def post(emulator: Emulator, path: str, body: object, key: str | None = KEY) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with httpx.Client(transport=emulator.transport(), base_url="http://emulator", timeout=5) as client:
        return client.post(path, content=content, headers=headers)


def native(emulator: Emulator, texts: Any, model: str = V4, **parameters: Any) -> httpx.Response:
    body = {"model": model, "input": {"texts": texts}, "parameters": parameters}
    return post(emulator, NATIVE_PATH, body)


def compatible(emulator: Emulator, texts: Any, model: str = V4, **parameters: Any) -> httpx.Response:
    return post(emulator, COMPATIBLE_PATH, {"model": model, "input": texts, **parameters})


def rows(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["output"]["embeddings"]
    return found
