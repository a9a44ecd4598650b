"""The command `dashscope-embeddings`; `python -m dashscope_embeddings` is the same."""

import sys


def main() -> None:
    """Runs the command line. An interruption while it is still being loaded ends it with one line too."""
    try:
        from dashscope_embeddings.cli.app import main as run  # noqa: PLC0415 - it takes a second to load

        run()
    except KeyboardInterrupt:
        sys.exit("stopped")


if __name__ == "__main__":
    main()
