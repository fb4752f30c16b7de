"""A model on disk: a directory of configurations, weights and a text tokenizer; strict, digested, never unpickled."""

from dalle.checkpoint.checkpoint import (
    Checkpoint,
    ModelFacts,
    check_checkpoint,
    load_checkpoint,
    load_facts,
    load_image_tokenizer,
    read_parts,
    save_checkpoint,
    write_checkpoint,
)

__all__ = [
    "Checkpoint",
    "ModelFacts",
    "check_checkpoint",
    "load_checkpoint",
    "load_facts",
    "load_image_tokenizer",
    "read_parts",
    "save_checkpoint",
    "write_checkpoint",
]
