"""The checkpoint of a corpus: one SQLite file and one vector file that record everything that was paid for."""
