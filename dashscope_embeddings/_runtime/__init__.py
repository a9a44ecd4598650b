"""Performs the steps of `_core`: sockets, threads, event loops, clocks and files. It decides nothing."""
