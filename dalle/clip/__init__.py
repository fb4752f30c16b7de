"""How well a picture fits a prompt: a Vision Transformer and a text encoder with one space for both (CLIP, SigLIP)."""

__all__: list[str] = []
