"""Models on a hub: pulled by `hf:OWNER/NAME`, pushed with a card. Only this package uses `huggingface_hub`."""
