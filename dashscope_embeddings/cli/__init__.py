"""The command line, `dashscope-embeddings`: one module for each command, and `app`, which collects them."""
