"""The demo: real text, an index of it in each framework, questions and what they found."""

from dashscope_embeddings.cli.demo.passages import QUESTIONS, NoTextError, Passage, cut, folder, topics
from dashscope_embeddings.cli.demo.search import Answer, Ranking, Search, Store, fuse, rank_sparse

__all__ = [
    "QUESTIONS",
    "Answer",
    "NoTextError",
    "Passage",
    "Ranking",
    "Search",
    "Store",
    "cut",
    "folder",
    "fuse",
    "rank_sparse",
    "topics",
]
