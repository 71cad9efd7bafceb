"""The command `dlmt`: one file a group of commands, beside what they share."""

from .entry import main

__all__ = ["main"]
