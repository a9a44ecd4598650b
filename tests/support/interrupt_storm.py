"""A program that is interrupted at random times, many times, and must work correctly afterwards.

    python tests/support/interrupt_storm.py [INTERRUPTS] [SEED] [--served]

Exits with 0 if the client still returns the right vectors and its queues are empty.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

from dashscope_embeddings.emulator import Emulator
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings

if TYPE_CHECKING:
    from collections.abc import Callable

DIMENSIONS, MAX_CONCURRENCY, TIME_LIMIT_SECONDS = 64, 3, 300.0


class InterruptStorm:
    """The main thread calls every entry point while a signal handler raises KeyboardInterrupt in it."""

    def __init__(self, url: str, seed: int, *, in_process: bool) -> None:
        self.random = random.Random(seed)  # noqa: S311 - repeated with the same seed
        self.max_pause_seconds = 0.004 if in_process else 0.02
        self.dense = DashScopeEmbeddings(
            base_url=url, api_key="sk-made-up", dimensions=DIMENSIONS, max_concurrency=MAX_CONCURRENCY, timeout=20
        )
        self.sparse = DashScopeSparseEmbeddings(self.dense)
        self.unpaired = DashScopeEmbeddings(
            base_url=url, api_key="sk-made-up", dimensions=DIMENSIONS, max_concurrency=MAX_CONCURRENCY, timeout=20
        )
        self.is_interruptible, self.interrupt_count, self.call_count, self.is_finished = False, 0, 0, False

    def entry_points(self) -> list[Callable[[str], object]]:
        return [
            self.unpaired.embed_query,
            lambda text: self.unpaired.embed_documents([text]),
            lambda text: self.unpaired.embed_documents([f"{text} {i}" for i in range(45)]),
            lambda text: list(self.unpaired.client.stream(f"{text} {i}" for i in range(25))),
            self.dense.embed_query,
            self.sparse.embed_query,
            lambda text: (self.dense.embed_documents([text]), self.sparse.embed_documents([text])),
        ]

    def interrupt(self, *_: object) -> None:
        if self.is_interruptible:
            self.is_interruptible = False
            self.interrupt_count += 1
            raise KeyboardInterrupt

    def send_signals(self) -> None:
        """Runs in another thread: sends signals at random times."""
        generator = random.Random(self.random.random())  # noqa: S311
        main = threading.main_thread().ident or 0
        while not self.is_finished:
            time.sleep(generator.uniform(0.0, self.max_pause_seconds))
            signal.pthread_kill(main, signal.SIGUSR1)

    def run(self, interrupts: int) -> None:
        signal.signal(signal.SIGUSR1, self.interrupt)
        threading.Thread(target=self.send_signals, daemon=True).start()
        entry_points = self.entry_points()
        while self.interrupt_count < interrupts:
            call, self.call_count = self.random.choice(entry_points), self.call_count + 1
            try:
                self.is_interruptible = True
                call(f"text {self.call_count}")
                self.is_interruptible = False
            except KeyboardInterrupt:
                pass
        self.is_finished = True

    def check(self) -> list[str]:
        """Problems found afterwards."""
        time.sleep(1.0)  # for the replies of abandoned requests
        reference = Emulator()
        problems = []
        if self.unpaired.embed_query("q") != reference.dense("q", dimension=DIMENSIONS, text_type="query"):
            problems.append("a query has the wrong vector")
        if self.dense.embed_query("q") != reference.dense("q", dimension=DIMENSIONS, text_type="query"):
            problems.append("a query of the pair has the wrong vector")
        texts = [f"after {i}" for i in range(100)]
        if self.unpaired.embed_documents(texts) != [reference.dense(text, dimension=DIMENSIONS) for text in texts]:
            problems.append("documents have the wrong vectors")
        for name, embeddings in (("alone", self.unpaired), ("pair", self.dense)):
            for output, batcher in embeddings.client._text_batchers.items():
                if batcher._waiting or batcher._in_flight:
                    problems.append(
                        f"{name}, {output}: {len(batcher._waiting)} waiting, {len(batcher._in_flight)} in flight"
                    )
            limiter = embeddings.client._request_context("query", "dense").limiter
            if limiter.in_flight or embeddings.client._bound.in_flight:
                problems.append(f"{name}: the limiter counts {limiter.in_flight} requests in flight")
        if signal.getsignal(signal.SIGUSR1) != self.interrupt:
            problems.append("the signal handler is another one")
        return problems


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("interrupts", nargs="?", type=int, default=200)
    parser.add_argument("seed", nargs="?", type=int, default=1)
    parser.add_argument("--served", action="store_true", help="behind a socket, 3 ms a reply")
    arguments = parser.parse_args()
    faulthandler.dump_traceback_later(TIME_LIMIT_SECONDS, exit=True)
    with Emulator().serve(latency=0.003) as server:
        storm = InterruptStorm(
            server.url if arguments.served else "emulator", arguments.seed, in_process=not arguments.served
        )
        began = time.monotonic()
        storm.run(arguments.interrupts)
        problems = storm.check()
        seconds = time.monotonic() - began
    threads = threading.active_count()
    done = f"{storm.interrupt_count} interrupts in {storm.call_count} calls, {seconds:.0f} s, {threads} threads"
    summary = f"{done}: {problems or 'ok'}"
    sys.stdout.write(summary + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
