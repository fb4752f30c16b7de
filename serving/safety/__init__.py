"""Checks of prompts and pictures, off by default: word lists, the NSFW network, and the operator's own functions."""

__all__: list[str] = []
