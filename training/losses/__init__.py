"""Losses of stage 1 beyond the distance of pixels, and the VGG16 features that they and the evaluation use."""

__all__: list[str] = []
