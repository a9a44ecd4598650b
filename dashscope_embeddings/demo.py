"""The demo's inside: real text cut into passages, an index of it in each framework, and three rankings.

Needs LangChain and LlamaIndex, but only once an index is built.
"""

from __future__ import annotations

import heapq
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from dashscope_embeddings.vectors import Output, SparseVector, Usage

Ranking: TypeAlias = "list[tuple[int, float]]"
"""(place of a passage in the corpus, score), best first."""

QUESTIONS = (
    "Why does a list as a default parameter value keep its items from call to call?",
    "In which order are scopes searched for the name of a variable?",
    "Which methods does a context manager need?",
    "leave the innermost loop early and skip its else clause",
)
"""About Python's help topics; the last one is in another form than the text, and in other words."""


class NoTextError(InvalidInput):
    """There is nothing to search."""


# --- passages ----------------------------------------------------------------------------------------------

_LONGEST, _SLACK = 1_000, 150
"""Characters: above the first a text is cut evenly; so far from the even cut a better place may lie."""
_PLACES = tuple(map(re.compile, (r"\n\s*\n", r"(?<=[.!?:])\s|(?<=[。！？])", r"\s")))
"""Where to cut, the best first: between paragraphs, sentences, words."""
_HEADING = re.compile(r"#{1,6} +(?P<marked>[^\n]+)|(?P<underlined>\S[^\n]*)\n([*=\-^~])\3{2,}")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text, large enough to answer a question and small enough to be about one thing."""

    title: str
    body: str

    @property
    def text(self) -> str:
        """What is embedded: without its title, a later piece of a section does not say what it is about."""
        return f"{self.title}\n\n{self.body}"

    @property
    def first_sentence(self) -> str:
        """The body's beginning, on one line."""
        return _sentences(self.body)[0].rstrip()

    def excerpt(self, question: str) -> str:
        """The body from its first sentence on that shares the most words with a question, on one line."""
        sentences, asked = _sentences(self.body), _words(question)
        shared = [len(asked & _words(sentence)) for sentence in sentences]
        return "".join(sentences[shared.index(max(shared)) :])


def topics() -> list[Passage]:
    """Python's own help topics; a paragraph that several topics share is taken once, from the shortest."""
    from pydoc_data.topics import topics as texts  # noqa: PLC0415 - half a megabyte that only the demo needs

    seen: set[str] = set()
    found = []
    for name, text in sorted(texts.items(), key=lambda topic: (len(topic[1]), topic[0])):
        for heading, blocks in _sections(text):
            fresh = {" ".join(block.split()): block for block in blocks}
            body = "\n\n".join(block for plain, block in fresh.items() if plain not in seen)
            seen.update(fresh)
            found += [Passage(heading or name, piece) for piece in cut(body)]
    return found


def folder(root: Path) -> tuple[list[Passage], list[str]]:
    """All .txt and .md files in a folder and the folders in it, hidden ones aside.

    Returns:
        The passages, and for each file that gave none its name and why.

    Raises:
        NoTextError: no file gave any.
    """
    found: list[Passage] = []
    skipped = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or path.suffix.lower() not in {".txt", ".md"} or not path.is_file():
            continue
        try:
            text = path.read_text("utf-8-sig")
        except UnicodeDecodeError:
            skipped.append(f"{name}: not UTF-8")
            continue
        except OSError as error:
            skipped.append(f"{name}: {error.strerror}")
            continue
        pieces = [
            Passage(f"{name}: {heading}" if heading else str(name), body)
            for heading, blocks in _sections(text)
            for body in cut("\n\n".join(blocks))
        ]
        found += pieces
        if not pieces:
            skipped.append(f"{name}: empty")
    if not found:
        why = f" ({'; '.join(skipped)})" if skipped else ""
        raise NoTextError(f"no text in {root}: it holds no .txt or .md file with any{why}")
    return found, skipped


def cut(text: str) -> Iterator[str]:
    """Pieces of about even length, a thousand characters or somewhat more at most."""
    rest = text.strip()
    while (pieces := math.ceil(len(rest) / _LONGEST)) > 1:
        even = round(len(rest) / pieces)
        end = _best_place(rest, even)
        yield rest[:end].rstrip()
        rest = rest[end:].lstrip("\n")
    if rest:
        yield rest


def _best_place(text: str, even: int) -> int:
    for place in _PLACES:
        ends = [found.end() for found in place.finditer(text, even - _SLACK, even + _SLACK)]
        if ends:
            return min(ends, key=lambda end: abs(end - even))
    return even


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?] )|(?<=[。！？])(?=.)", " ".join(text.split()))


def _words(text: str) -> set[str]:
    """The longer ones, which say what a text is about."""
    return set(re.findall(r"\w{4,}", text.lower()))


def _sections(text: str) -> Iterator[tuple[str | None, list[str]]]:
    """(heading, paragraphs) of each section, in order; the heading may stand underlined or after hashes."""
    heading: str | None = None
    blocks: list[str] = []
    for block in re.split(r"\n(?:[^\S\n]*\n)+", text.strip("\n")):
        title = _HEADING.match(block)
        if title is None:
            blocks.append(block)
            continue
        yield heading, blocks
        heading = (title["marked"] or title["underlined"]).strip()
        body = block[title.end() :].strip("\n")
        blocks = [body] if body else []
    yield heading, blocks


# --- search ------------------------------------------------------------------------------------------------

_DEPTH = 50
"""Hits of each ranking that are fused: a passage far down in one may stand high in the other."""
_SLICE = 160
"""Passages that LangChain gets at once, for the sake of a progress bar: sixteen requests of ten."""
_FLATTENING = 60
"""The constant of reciprocal rank fusion, as in the paper of Cormack, Clarke and Büttcher, SIGIR 2009."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What each ranking found for a question; the two frameworks' rankings by the framework's name."""

    dense: dict[str, Ranking]
    """By cosine."""
    sparse: Ranking
    """By the sum of products of shared tokens' weights; empty where the model has no sparse vectors."""
    fused: dict[str, Ranking]
    """By reciprocal ranks in both; empty without sparse vectors."""


class Search:
    """The same passages in a LangChain and in a LlamaIndex index, and their sparse vectors.

    LangChain has its store embed the texts. LlamaIndex takes nodes that hold their vector, so one billed
    request gives the dense vectors for its index and the sparse ones besides.

    Args:
        passages: What is searched.
        model: Its name.
        settings: Of both adapters, such as `base_url`, `dimensions`.

    Raises:
        ImportError: LangChain or LlamaIndex is not installed.
        InvalidInput: a setting that cannot work, or no key.
    """

    def __init__(self, passages: Sequence[Passage], model: str, **settings: Any) -> None:
        from langchain_core.vectorstores import InMemoryVectorStore  # noqa: PLC0415 - only who runs the demo
        from llama_index.core import VectorStoreIndex  # noqa: PLC0415 - same

        from dashscope_embeddings.langchain import DashScopeEmbeddings  # noqa: PLC0415 - same
        from dashscope_embeddings.llama_index import DashScopeEmbedding  # noqa: PLC0415 - same

        self.passages = passages
        self.langchain = DashScopeEmbeddings(model=model, **settings)
        self.llama_index = DashScopeEmbedding(model, **settings)
        self._client = self.llama_index.client
        self._store = InMemoryVectorStore(self.langchain)
        self._index = VectorStoreIndex(nodes=[], embed_model=self.llama_index)
        self._sparse: list[SparseVector] = []

    @property
    def has_sparse(self) -> bool:
        """Whether the model gives sparse vectors."""
        return self._client.settings.model.sparse

    @property
    def usage(self) -> dict[str, Usage]:
        """What each road was billed so far."""
        second = "LlamaIndex and sparse" if self.has_sparse else "LlamaIndex"
        return {"LangChain": self.langchain.usage, second: self.llama_index.usage}

    def fill_langchain(self, progress: Callable[[int], object]) -> None:
        """Embeds all passages for LangChain; `progress` is told how many more are done."""
        for start in range(0, len(self.passages), _SLICE):
            part = self.passages[start : start + _SLICE]
            ids = [str(place) for place in range(start, start + len(part))]
            self._store.add_texts([passage.text for passage in part], ids=ids)
            progress(len(part))

    def fill_llama_index(self, progress: Callable[[int], object]) -> None:
        """Embeds all passages for LlamaIndex, dense and sparse at once."""
        from llama_index.core.schema import TextNode  # noqa: PLC0415 - as above

        texts = [passage.text for passage in self.passages]
        output: Output = "dense&sparse" if self.has_sparse else "dense"
        result = self._client.embed(texts, output=output, progress=progress)
        self._sparse = result.sparse or []
        self._index.insert_nodes(
            [
                TextNode(id_=str(place), text=text, embedding=vector)
                for place, (text, vector) in enumerate(zip(texts, result.dense, strict=True))
            ]
        )

    def ask(self, question: str) -> Answer:
        """The passages that answer a question, in all rankings.

        Raises:
            DashScopeError: the question could not be embedded.
        """
        hits = self._store.similarity_search_with_score(question, k=_DEPTH)
        nodes = self._index.as_retriever(similarity_top_k=_DEPTH).retrieve(question)
        dense = {
            "LangChain": [(int(document.id or ""), score) for document, score in hits],
            "LlamaIndex": [(int(node.node_id), node.score or 0.0) for node in nodes],
        }
        if not self.has_sparse:
            return Answer(dense, [], {})
        asked = self._client.embed(question, text_type="query", output="sparse").sparse or []
        sparse = rank_sparse(asked[0], self._sparse)
        return Answer(dense, sparse, {name: fuse(ranking, sparse) for name, ranking in dense.items()})


def rank_sparse(query: SparseVector, documents: Iterable[SparseVector], depth: int = _DEPTH) -> Ranking:
    """By the dot product, which only shared tokens add to; documents without any are no hits."""
    weights = query.as_dict()
    scores = (
        math.fsum(weights.get(index, 0.0) * value for index, value in document.as_dict().items())
        for document in documents
    )
    hits = ((place, score) for place, score in enumerate(scores) if score > 0)
    return heapq.nsmallest(depth, hits, key=_best_first)


def fuse(*rankings: Ranking, depth: int = _DEPTH) -> Ranking:
    """Reciprocal rank fusion: a hit scores 1 / (60 + its rank) in each ranking that holds it."""
    scores: defaultdict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, (place, _) in enumerate(ranking, start=1):
            scores[place] += 1 / (_FLATTENING + rank)
    return heapq.nsmallest(depth, scores.items(), key=_best_first)


def _best_first(hit: tuple[int, float]) -> tuple[float, int]:
    place, score = hit
    return -score, place
