"""A translator on disk: saved and loaded as strictly as a model directory, in a format of its own.

config.json             format, name, notes, sizes, languages, search, text tokenizer, digests of the other files
tokenizer.json          the text tokenizer, of sources and translations alike
translator.safetensors  the weights of the encoder-decoder Transformer
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dalle.checkpoint.files import TOKENIZER_FILE, file_digest, listed
from dalle.checkpoint.model_config import CONFIG_FILE
from dalle.checkpoint.one_network import DirectoryFormat, find_directory, parsed
from dalle.errors import CheckpointError
from dalle.text.kinds import load_text_tokenizer
from dalle.text.tokenizer import PromptTokenizer
from dalle.translate.config import EncoderDecoderConfig
from dalle.translate.encoder_decoder import EncoderDecoder
from dalle.translate.search import SearchConfig
from dalle.translate.translator import TextConfig, Translator

__all__ = ["find_translator", "load_translator", "save_translator"]

FORMAT = DirectoryFormat(
    name="dalle-translator",
    version=1,
    weights_file="translator.safetensors",
    further={"text_tokenizer": str, "text": dict, "search": dict},
)


def find_translator(name: str | Path) -> Path:
    """The translator directory of this path, or of this name: those in `models/translate` of this package, and in
    `translate` of the folder that DALLE_MODELS names. Raises `CheckpointError`, listing the known names."""
    return find_directory(name, "translate", "translator")


def save_translator(
    folder: str | Path,
    translator: Translator,
    *,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    sources: Iterable[Path] = (),
) -> str:
    """Write a translator directory, whole or not at all. Returns its digest.

    dtype: type of the stored weights: float32, float16 or bfloat16.
    overwrite: replace a translator directory that is there; nothing else is replaced. sources: what is never replaced.
    Raises `CannotWriteError` as `write_checkpoint` does, and `CheckpointError` for a text tokenizer of another size.
    """
    folder = Path(folder)
    _check_fit(folder, translator.text_tokenizer, translator.network.config)

    def write(files: Path) -> dict[str, Any]:
        translator.text_tokenizer.save(files / TOKENIZER_FILE)
        return {
            "text_tokenizer": translator.text_tokenizer.kind,
            "text": translator.text.to_dict(),
            "search": translator.search.to_dict(),
        }

    return FORMAT.save(
        folder,
        name=translator.name,
        network=translator.network,
        config=translator.network.config,
        about=translator.about,
        dtype=dtype,
        write=write,
        overwrite=overwrite,
        sources=sources,
    )


def load_translator(folder: str | Path) -> Translator:
    """Read a translator directory. Raises `CheckpointError`, naming the file and what was expected, if anything is
    missing, damaged, foreign, of another shape, or of a newer format."""
    folder = Path(folder)
    values = FORMAT.read(folder)
    config = parsed(folder, EncoderDecoderConfig, values["network"])
    tokenizer = load_text_tokenizer(values["text_tokenizer"], listed(folder, values["digests"], TOKENIZER_FILE))
    _check_fit(folder, tokenizer, config)
    return Translator(
        name=values["name"],
        network=FORMAT.network(folder, values, lambda: EncoderDecoder(config)),
        text_tokenizer=tokenizer,
        text=parsed(folder, TextConfig, values["text"]),
        search=parsed(folder, SearchConfig, values["search"]),
        about=values["about"],
        digest=file_digest(folder / CONFIG_FILE),
    )


def _check_fit(folder: Path, tokenizer: PromptTokenizer, config: EncoderDecoderConfig) -> None:
    """Check that vocabulary and length of the text tokenizer are those of the network."""
    if tokenizer.vocab_size != config.vocab_size or tokenizer.text_length != config.source_length:
        raise CheckpointError(
            f"{folder}: the text tokenizer has {tokenizer.vocab_size} ids and rows of {tokenizer.text_length}; the "
            f"network has {config.vocab_size} and sources of {config.source_length}: they belong to different models"
        )
