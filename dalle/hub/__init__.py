"""Models on a hub: pulled by `hf:OWNER/NAME`, and pushed with a model card."""

__all__: list[str] = []
