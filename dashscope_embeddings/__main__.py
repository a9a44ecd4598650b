"""`python -m dashscope_embeddings` is the command `dashscope-embeddings`."""

from dashscope_embeddings.cli.app import main

if __name__ == "__main__":
    main()
