"""A program that is interrupted again and again at random moments, and then asks as if nothing had been.

    python tests/interrupt_storm.py [INTERRUPTS] [SEED] [--served]

Ends with 0 if the client still answers with the right vectors, and nobody is left in its queues.
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

WIDTH, CALLERS, LONGEST = 64, 3, 300.0


class Storm:
    """One thread, the main one, asks in every way there is; a signal handler raises in it now and then."""

    def __init__(self, url: str, seed: int, *, near: bool) -> None:
        self.random = random.Random(seed)  # noqa: S311 - repeated with the same seed
        self.longest_pause = 0.004 if near else 0.02
        self.dense = DashScopeEmbeddings(
            base_url=url, api_key="sk-made-up", dimensions=WIDTH, max_concurrency=CALLERS, timeout=20
        )
        self.sparse = DashScopeSparseEmbeddings(self.dense)
        self.alone = DashScopeEmbeddings(
            base_url=url, api_key="sk-made-up", dimensions=WIDTH, max_concurrency=CALLERS, timeout=20
        )
        self.inside, self.met, self.asked, self.over = False, 0, 0, False

    def ways(self) -> list[Callable[[str], object]]:
        return [
            self.alone.embed_query,
            lambda text: self.alone.embed_documents([text]),
            lambda text: self.alone.embed_documents([f"{text} {i}" for i in range(45)]),
            lambda text: list(self.alone.client.stream(f"{text} {i}" for i in range(25))),
            self.dense.embed_query,
            self.sparse.embed_query,
            lambda text: (self.dense.embed_documents([text]), self.sparse.embed_documents([text])),
        ]

    def interrupt(self, *_: object) -> None:
        if self.inside:
            self.inside = False
            self.met += 1
            raise KeyboardInterrupt

    def blow(self) -> None:
        """In another thread: signals at random moments."""
        chance = random.Random(self.random.random())  # noqa: S311
        main = threading.main_thread().ident or 0
        while not self.over:
            time.sleep(chance.uniform(0.0, self.longest_pause))
            signal.pthread_kill(main, signal.SIGUSR1)

    def run(self, interrupts: int) -> None:
        signal.signal(signal.SIGUSR1, self.interrupt)
        threading.Thread(target=self.blow, daemon=True).start()
        ways = self.ways()
        while self.met < interrupts:
            way, self.asked = self.random.choice(ways), self.asked + 1
            try:
                self.inside = True
                way(f"text {self.asked}")
                self.inside = False
            except KeyboardInterrupt:
                pass
        self.over = True

    def check(self) -> list[str]:
        """What is wrong afterwards."""
        time.sleep(1.0)  # requests whose callers left come back
        right = Emulator()
        wrong = []
        if self.alone.embed_query("q") != right.dense("q", dimension=WIDTH, text_type="query"):
            wrong.append("a query has the wrong vector")
        if self.dense.embed_query("q") != right.dense("q", dimension=WIDTH, text_type="query"):
            wrong.append("a query of the pair has the wrong vector")
        texts = [f"after {i}" for i in range(100)]
        if self.alone.embed_documents(texts) != [right.dense(text, dimension=WIDTH) for text in texts]:
            wrong.append("documents have the wrong vectors")
        for name, embeddings in (("alone", self.alone), ("pair", self.dense)):
            for output, waiting in embeddings.client._waiting.items():
                if waiting._waiting or waiting._flying:
                    wrong.append(f"{name}, {output}: {len(waiting._waiting)} wait, {len(waiting._flying)} fly")
        if (memo := self.dense.halves.memo) is not None and memo._flights:
            wrong.append(f"{len(memo._flights)} shared requests never ended")
        return wrong


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("interrupts", nargs="?", type=int, default=200)
    parser.add_argument("seed", nargs="?", type=int, default=1)
    parser.add_argument("--served", action="store_true", help="behind a socket, 3 ms a reply")
    asked = parser.parse_args()
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    with Emulator().serve(latency=0.003) as server:
        storm = Storm(server.url if asked.served else "emulator", asked.seed, near=not asked.served)
        began = time.monotonic()
        storm.run(asked.interrupts)
        wrong = storm.check()
        seconds = time.monotonic() - began
    threads = threading.active_count()
    told = f"{storm.met} interrupts in {storm.asked} calls, {seconds:.0f} s, {threads} threads: {wrong or 'well'}"
    sys.stdout.write(told + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
