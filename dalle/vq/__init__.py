"""Image tokenizers: pictures to codes, and codes to pictures."""

__all__: list[str] = []
