"""One short text at a time, in threads: what it gave, how long it took, in which words it was refused."""

from __future__ import annotations

import functools
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dashscope_embeddings._core.error_codes import hint_for
from dashscope_embeddings.errors import DashScopeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from pydantic import SecretStr

    from dashscope_embeddings._core.address import Address
    from dashscope_embeddings._core.protocol import ApiProtocol
    from dashscope_embeddings.client import EmbeddingClient
    from dashscope_embeddings.vectors import Embeddings, Output, TextType

    RequestVariant: TypeAlias = tuple[TextType, Output]

T = TypeVar("T")

TEXT = "The cat sleeps in the sun."
"""All that is ever sent."""
DENSE_DOCUMENT: RequestVariant = ("document", "dense")
NO_ANSWER_IN_TIME = "no answer in time"
_JOIN_MARGIN_SECONDS = 2.0
"""Seconds beyond the timeout, for who has to look a name up first."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One text, asked once."""

    embeddings: Embeddings | None
    error: DashScopeError | None
    message: str
    seconds: float

    @property
    def dense(self) -> list[float] | None:
        """Its dense vector; None where there was no answer."""
        return self.embeddings.dense[0] if self.embeddings is not None else None


@dataclass(frozen=True, slots=True)
class Prober:
    """Whose key it is, and how to ask with it."""

    key: SecretStr
    timeout: float
    make_client: Callable[..., EmbeddingClient]
    clock: Callable[[], float]

    def probe(
        self,
        host_address: Address,
        model: str,
        variants: Sequence[RequestVariant] = (DENSE_DOCUMENT,),
        *,
        protocol: ApiProtocol = "native",
    ) -> Callable[[], list[Attempt]]:
        """To call: tries these asks one after the other on one connection, up to the first that fails."""
        client = self.make_client(
            model,
            api_key=self.key,
            base_url=host_address.root_url,
            workspace=host_address.workspace,
            protocol=protocol,
            timeout=self.timeout,
            # More would also mean five minutes of patience with throttling, which is worth telling at once.
            max_retries=0,
        )
        return functools.partial(self._run, client, variants)

    def _run(self, client: EmbeddingClient, variants: Sequence[RequestVariant]) -> list[Attempt]:
        attempts: list[Attempt] = []
        try:
            for text_type, output in variants:
                attempts.append(self._attempt(client, text_type, output))
                if attempts[-1].error is not None:
                    break
        finally:
            client.close()
        return attempts

    def _attempt(self, client: EmbeddingClient, text_type: TextType, output: Output) -> Attempt:
        start = self.clock()
        try:
            embeddings = client.embed(TEXT, text_type=text_type, output=output)
        except DashScopeError as error:
            return Attempt(None, error, self._message(error, client.settings.address), self.clock() - start)
        return Attempt(embeddings, None, "answers", self.clock() - start)

    def _message(self, error: DashScopeError, host_address: Address) -> str:
        """The reply's own words: which text it was, and which other regions there are, is said elsewhere."""
        message = error.message.removeprefix("text 0 of 1: ").removeprefix("the service answered ")
        message = message.replace(f"no answer from {host_address.host}: ", "no answer: ")
        message = message.partition(f". {host_address.key_hint}")[0].partition(" Asked ")[0]
        message, hint, _ = message.partition(f" {hint_for(error)}")
        return message.removesuffix(".") if hint else message


def run_concurrently(tasks: Sequence[Callable[[], T]], timeout_seconds: float) -> list[T | None]:
    """What each gives, in a thread of its own; None where it takes longer.

    Nobody waits for who is late: looking up a name, which no timeout covers, cannot be broken off.
    """
    results: dict[int, T] = {}
    errors: list[Exception] = []

    def run(index: int, task: Callable[[], T]) -> None:
        try:
            results[index] = task()
        except Exception as error:  # noqa: BLE001 - raised again where somebody hears it
            errors.append(error)

    threads = [threading.Thread(target=run, args=each, daemon=True) for each in enumerate(tasks)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + timeout_seconds + _JOIN_MARGIN_SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if errors:
        raise errors[0]
    return [results.get(at) for at in range(len(tasks))]
