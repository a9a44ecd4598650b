"""Embeds whole corpora: files of texts in, one file of vectors out, continued after any interruption.

from dashscope_embeddings import EmbeddingClient, corpus

summary = corpus.embed_corpus("docs/", "vectors.parquet", client=EmbeddingClient())
for row in corpus.read("vectors.parquet"):
    print(row.id, row.dense)
"""

from __future__ import annotations

from dashscope_embeddings.corpus.batch.api import (
    batch_cancel,
    batch_client,
    batch_fetch,
    batch_run,
    batch_status,
    batch_submit,
)
from dashscope_embeddings.corpus.batch.types import BatchEstimate, BatchProgress, BatchSummary
from dashscope_embeddings.corpus.checkpoint.rows import BatchFile
from dashscope_embeddings.corpus.embedder import Progress
from dashscope_embeddings.corpus.options import OnBadInput
from dashscope_embeddings.corpus.realtime import (
    Estimate,
    Summary,
    embed_corpus,
    estimate_corpus,
    ledger_beside,
)
from dashscope_embeddings.corpus.writers import Vector, read, rejects_beside

__all__ = [
    "BatchEstimate",
    "BatchFile",
    "BatchProgress",
    "BatchSummary",
    "Estimate",
    "OnBadInput",
    "Progress",
    "Summary",
    "Vector",
    "batch_cancel",
    "batch_client",
    "batch_fetch",
    "batch_run",
    "batch_status",
    "batch_submit",
    "embed_corpus",
    "estimate_corpus",
    "ledger_beside",
    "read",
    "rejects_beside",
]
