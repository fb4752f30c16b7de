"""Captions from metadata: those of training, and the prompts of the evaluation."""

__all__: list[str] = []
