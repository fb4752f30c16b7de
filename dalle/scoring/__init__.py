"""Pictures of files, scored against their prompts by a CLIP model and by the decoder that drew them."""

__all__: list[str] = []
