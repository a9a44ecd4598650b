"""The demo: real text, an index of it in each framework, questions and what they found."""

from dashscope_embeddings.cli.demo.passages import QUESTIONS, NoTextError, Passage, help_topics, read_folder, split_text
from dashscope_embeddings.cli.demo.search import Answer, Ranking, Search, Store, fuse, rank_sparse

__all__ = [
    "QUESTIONS",
    "Answer",
    "NoTextError",
    "Passage",
    "Ranking",
    "Search",
    "Store",
    "fuse",
    "help_topics",
    "rank_sparse",
    "read_folder",
    "split_text",
]
