"""Text tokenizers: prompts to text ids, or to a text encoder's features."""

__all__: list[str] = []
