"""The pytest plugin by a name within this package. pytest itself loads `pytest_dashscope_embeddings`: the same code."""

from pytest_dashscope_embeddings import (  # type: ignore[import-untyped] # installed beside this package
    _dashscope_emulator_server,
    dashscope_emulator,
)

__all__ = ["_dashscope_emulator_server", "dashscope_emulator"]
