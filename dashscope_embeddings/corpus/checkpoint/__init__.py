"""The checkpoint of a corpus: one SQLite file of what was paid for, refused and skipped, and of its batches."""
