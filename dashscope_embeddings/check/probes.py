"""One short text at a time, in threads: what it gave, how long it took, in which words it was refused."""

from __future__ import annotations

import functools
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dashscope_embeddings._core.error_codes import remedy
from dashscope_embeddings.errors import DashScopeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from pydantic import SecretStr

    from dashscope_embeddings._core.address import Address
    from dashscope_embeddings._core.protocol import Protocol
    from dashscope_embeddings.client import EmbeddingClient
    from dashscope_embeddings.vectors import Embeddings, Output, TextType

    Ask: TypeAlias = tuple[TextType, Output]

T = TypeVar("T")

TEXT = "The cat sleeps in the sun."
"""All that is ever sent."""
DOCUMENT: Ask = ("document", "dense")
LATE = "no answer in time"
_MARGIN = 2.0
"""Seconds beyond the timeout, for who has to look a name up first."""


@dataclass(frozen=True, slots=True)
class Try:
    """One text, asked once."""

    found: Embeddings | None
    error: DashScopeError | None
    said: str
    seconds: float

    @property
    def dense(self) -> list[float] | None:
        """Its dense vector; None where there was no answer."""
        return self.found.dense[0] if self.found is not None else None


@dataclass(frozen=True, slots=True)
class Account:
    """Whose key it is, and how to ask with it."""

    key: SecretStr
    timeout: float
    make: Callable[..., EmbeddingClient]
    clock: Callable[[], float]

    def job(
        self, place: Address, model: str, asks: Sequence[Ask] = (DOCUMENT,), *, protocol: Protocol = "native"
    ) -> Callable[[], list[Try]]:
        """To call: tries these asks one after the other on one connection, up to the first that fails."""
        client = self.make(
            model,
            api_key=self.key,
            base_url=place.root,
            workspace=place.workspace,
            protocol=protocol,
            timeout=self.timeout,
            # More would also mean five minutes of patience with throttling, which is worth telling at once.
            max_retries=0,
        )
        return functools.partial(self._perform, client, asks)

    def _perform(self, client: EmbeddingClient, asks: Sequence[Ask]) -> list[Try]:
        tries: list[Try] = []
        try:
            for text_type, output in asks:
                tries.append(self._try(client, text_type, output))
                if tries[-1].error is not None:
                    break
        finally:
            client.close()
        return tries

    def _try(self, client: EmbeddingClient, text_type: TextType, output: Output) -> Try:
        begun = self.clock()
        try:
            found = client.embed(TEXT, text_type=text_type, output=output)
        except DashScopeError as error:
            return Try(None, error, self._words(error, client.settings.address), self.clock() - begun)
        return Try(found, None, "answers", self.clock() - begun)

    def _words(self, error: DashScopeError, place: Address) -> str:
        """The reply's own words: which text it was, and which other regions there are, is said elsewhere."""
        words = error.message.removeprefix("text 0 of 1: ").removeprefix("the service answered ")
        words = words.replace(f"no answer from {place.host}: ", "no answer: ")
        words = words.partition(f". {place.advice}")[0].partition(" Asked ")[0]
        words, remedied, _ = words.partition(f" {remedy(error)}")
        return words.removesuffix(".") if remedied else words


def at_once(jobs: Sequence[Callable[[], T]], seconds: float) -> list[T | None]:
    """What each gives, in a thread of its own; None where it takes longer.

    Nobody waits for who is late: looking up a name, which no timeout covers, cannot be broken off.
    """
    done: dict[int, T] = {}
    troubles: list[Exception] = []

    def run(at: int, job: Callable[[], T]) -> None:
        try:
            done[at] = job()
        except Exception as error:  # noqa: BLE001 - raised again where somebody hears it
            troubles.append(error)

    threads = [threading.Thread(target=run, args=each, daemon=True) for each in enumerate(jobs)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds + _MARGIN
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if troubles:
        raise troubles[0]
    return [done.get(at) for at in range(len(jobs))]
