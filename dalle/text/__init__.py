"""Text tokenizers: prompts to rows of text ids, or to a text encoder's features."""

__all__: list[str] = []
