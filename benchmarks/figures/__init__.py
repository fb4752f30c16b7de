"""Figures of docs/transformer.md, drawn with this project's own Transformer and the default model."""

__all__: list[str] = []
