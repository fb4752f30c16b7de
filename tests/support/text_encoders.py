"""A text encoder as small as possible."""

from pathlib import Path

import tokenizers
import torch
import transformers

__all__ = ["write_t5"]


def write_t5(folder: Path, *, width: int) -> Path:
    """Write a T5 with features of so many channels, random, as transformers saves one, with a unigram tokenizer of
    letters."""
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=40, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    transformers.T5EncoderModel(config).save_pretrained(folder)
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    unigram.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    unigram.decoder = tokenizers.decoders.Metaspace()
    unigram.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    unigram.save(str(folder / "tokenizer.json"))
    return folder
