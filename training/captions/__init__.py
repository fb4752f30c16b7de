"""Captions from metadata: how training words them, and how the evaluation does."""

__all__: list[str] = []
