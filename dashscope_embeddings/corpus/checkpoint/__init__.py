"""The checkpoint of a corpus: one SQLite file that records everything that was paid for."""
