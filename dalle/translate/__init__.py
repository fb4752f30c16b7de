"""Prompts in other languages: the encoder-decoder Transformer, its search for a translation, and the translator."""

__all__: list[str] = []
