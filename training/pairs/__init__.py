"""Pairs of a picture and its captions: sources, WebDataset shards, and augmented views."""

__all__: list[str] = []
