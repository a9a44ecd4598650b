"""The command `demo`: searches real text with an index in LangChain and one in LlamaIndex."""

from dashscope_embeddings.cli.demo.passages import QUESTIONS, NoTextError, Passage, help_topics, read_folder, split_text
from dashscope_embeddings.cli.demo.search import DENSE, SPARSE, Answer, Ranking, Search, Store, fuse

__all__ = ["DENSE", "QUESTIONS", "SPARSE", "Answer", "NoTextError", "Passage", "Ranking", "Search", "Store", "fuse"]
__all__ += ["help_topics", "read_folder", "split_text"]
