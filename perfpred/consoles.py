"""Consoles that leave tables whole when their output is a file or a pipe."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console

_PIPED_WIDTH = 200


def show_on(stream: TextIO) -> Console:
    """A console on a standard stream, as wide as the terminal, or wide enough for our tables."""
    return Console(file=stream, width=None if stream.isatty() else _PIPED_WIDTH)
