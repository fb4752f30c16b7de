"""The `dalle` command."""

from dalle.cli.program import app, main

__all__ = ["app", "main"]
