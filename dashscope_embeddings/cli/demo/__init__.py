"""The command `demo`: searches real text with an index in LangChain and one in LlamaIndex."""

from dashscope_embeddings.cli.demo.passages import help_topics, split_text

__all__ = ["help_topics", "split_text"]
