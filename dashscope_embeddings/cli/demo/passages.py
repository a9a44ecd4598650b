"""The passages that the demo searches, from Python's help topics or a folder of the user, and its default questions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.corpus import encodings
from dashscope_embeddings.corpus.sources import printable_name
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator

QUESTIONS = (
    "Why does a list as a default parameter value keep its items from call to call?",
    "In which order are scopes searched for the name of a variable?",
    "Which methods does a context manager need?",
    "leave the innermost loop early and skip its else clause",
)
"""Questions about Python's help topics; the last one is not a question, and uses other words than the text."""


# --- passages ----------------------------------------------------------------------------------------------

_MAX_CHARACTERS = 1_000
"""Characters of a passage's body: a longer text is split."""
_SENTENCES = re.compile(r"(?:(?<=[.!?]\s)|(?<=[。！？]))(?!\Z)")
"""Where sentences begin; never at the end, because LlamaIndex would cut the same text again and again."""
_HEADING = re.compile(r"#{1,6} +(?P<marked>[^\n]+)|(?P<underlined>\S[^\n]*)\n([*=\-^~])\3{2,}")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text, large enough to answer a question and small enough to have one subject."""

    title: str
    body: str

    @property
    def text(self) -> str:
        """The text to embed: with the title, because later pieces of a section do not repeat the subject."""
        return f"{self.title}\n\n{self.body}"

    @property
    def first_sentence(self) -> str:
        """The first sentence of the body, on one line."""
        return _sentences(self.body)[0].rstrip()

    def excerpt(self, question: str) -> str:
        """The body, on one line, from the sentence on that shares the most words with a question."""
        sentences, question_words = _sentences(self.body), _words(question)
        shared = [len(question_words & _words(sentence)) for sentence in sentences]
        return "".join(sentences[shared.index(max(shared)) :])


def help_topics() -> list[Passage]:
    """Python's own help topics; a paragraph in several topics is kept once, in the shortest of them."""
    from pydoc_data.topics import topics as texts  # noqa: PLC0415 - half a megabyte, only for the demo

    seen: set[str] = set()
    passages = []
    for name, text in sorted(texts.items(), key=lambda topic: (len(topic[1]), topic[0])):
        for heading, blocks in _sections(text):
            by_words = {" ".join(block.split()): block for block in blocks}
            body = "\n\n".join(block for words, block in by_words.items() if words not in seen)
            seen.update(by_words)
            passages += [Passage(heading or name, piece) for piece in split_text(body)]
    return passages


def read_folder(root: Path) -> tuple[list[Passage], list[str]]:
    """Passages of a .txt or .md file, or of all in a folder and its subfolders, without hidden ones.

    Returns:
        The passages, and the name and reason of each file without any.

    Raises:
        InvalidInput: no file has any.
    """
    if not root.exists():
        raise InvalidInput(f"no such file or folder: {printable_name(root)}")
    passages: list[Passage] = []
    skipped = []
    for path in [root] if root.is_file() else sorted(root.rglob("*")):
        below = Path(root.name) if path == root else path.relative_to(root)
        name = printable_name(below)
        hidden = path != root and any(part.startswith(".") for part in below.parts)
        if hidden or path.suffix.lower() not in {".txt", ".md"} or not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                mark = encodings.encoding_from_bom(file.read(4))
            text = path.read_text(mark or "utf-8")
        except UnicodeError:
            skipped.append(f"{name}: not UTF-8")
            continue
        except OSError as error:
            skipped.append(f"{name}: {error.strerror}")
            continue
        pieces = [
            Passage(f"{name}: {heading}" if heading else name, body)
            for heading, blocks in _sections(text)
            for body in split_text("\n\n".join(blocks))
        ]
        passages += pieces
        if not pieces:
            skipped.append(f"{name}: empty")
    if not passages:
        why = f" ({'; '.join(skipped)})" if skipped else ""
        raise InvalidInput(f"no text in {printable_name(root)}: a .txt or .md file with text is needed{why}")
    return passages, skipped


def split_text(text: str) -> list[str]:
    """Pieces of at most a thousand characters, cut by LlamaIndex between paragraphs, sentences or words.

    Raises:
        ImportError: LlamaIndex is not installed; a text that is short enough does not need it.
    """
    text = text.strip()
    if len(text) > _MAX_CHARACTERS:
        return list(_splitter().split_text(text))
    return [text] if text else []


@cache
def _splitter() -> Any:
    from llama_index.core.node_parser import SentenceSplitter  # noqa: PLC0415 - only for the demo

    return SentenceSplitter(
        chunk_size=_MAX_CHARACTERS,
        chunk_overlap=0,
        tokenizer=list,  # sizes are counted in characters
        paragraph_separator="\n\n",
        # LlamaIndex's own is for English, and reads data of NLTK, which refuses files that uv hard-linked.
        chunking_tokenizer_fn=_SENTENCES.split,
    )


def _sentences(text: str) -> list[str]:
    return _SENTENCES.split(" ".join(text.split()))


def _words(text: str) -> set[str]:
    """Words of four letters or more, which carry the subject of a text."""
    return set(re.findall(r"\w{4,}", text.lower()))


def _sections(text: str) -> Iterator[tuple[str | None, list[str]]]:
    """(heading, paragraphs) of each section, in order; a heading is underlined or follows hashes."""
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
