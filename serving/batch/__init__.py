"""Offline batches: a file of prompts to a folder of pictures, resumable after any stop."""

__all__: list[str] = []
