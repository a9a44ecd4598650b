"""The checkpoint of a corpus: one SQLite file and one file of vectors, so that nothing is paid for twice."""
