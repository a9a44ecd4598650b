"""The entry point of the command `dashscope-embeddings`.

This file is installed as a top-level module, `dashscope_embeddings_command`: within the package, its import would
import the package, and Ctrl-C during that second would print a traceback.
"""

import sys


def main() -> None:
    """Runs the command line. An interruption while it is still being loaded ends it with one line too."""
    try:
        from dashscope_embeddings.cli.app import main as run  # noqa: PLC0415 - see the top of the file

        run()
    except KeyboardInterrupt:
        sys.exit("stopped")
