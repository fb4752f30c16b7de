"""A CLIP model on disk: saved and loaded as strictly as a model directory, in a format of its own.

    config.json       format, name, notes, sizes, kind of the text tokenizer, and digests of the other files
    tokenizer.json    the text tokenizer
    clip.safetensors  the weights of both encoders

A classifier, `dalle.clip.classifier`, is the same with `classifier.safetensors` and no text tokenizer.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from dalle.checkpoint.files import TOKENIZER_FILE, file_digest, listed
from dalle.checkpoint.model_config import CONFIG_FILE
from dalle.checkpoint.one_network import DirectoryFormat, find_directory, parsed
from dalle.clip.classifier import Classifier, ClassifierConfig, ClassifierModel
from dalle.clip.clip import Clip
from dalle.clip.config import ClipConfig
from dalle.clip.model import ClipModel
from dalle.errors import CheckpointError
from dalle.text.kinds import load_text_tokenizer
from dalle.text.tokenizer import PromptTokenizer

__all__ = ["clip_identity", "find_clip", "load_classifier", "load_clip", "save_classifier", "save_clip"]

CLIP = DirectoryFormat(
    name="dalle-clip",
    version=1,
    weights_file="clip.safetensors",
    further={"text_tokenizer": str},
    foreign_file="open_clip_config.json",
)
CLASSIFIER = DirectoryFormat(name="dalle-classifier", version=1, weights_file="classifier.safetensors", further={})


def find_clip(name: str | Path) -> Path:
    """The CLIP directory of this path, or of this name: those in `models/clip` of this package, and in `clip` of the
    folder that DALLE_MODELS names. Raises `CheckpointError`, listing the known names."""
    return find_directory(name, "clip", "CLIP model")


def save_clip(
    folder: str | Path,
    *,
    name: str,
    network: Clip,
    text_tokenizer: PromptTokenizer,
    about: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    sources: Iterable[Path] = (),
) -> str:
    """Write a CLIP directory, whole or not at all. Returns its digest.

    dtype: type of the stored weights: float32, float16, bfloat16, or int8, as `to_int8` stores them.
    overwrite: replace a CLIP directory that is there; nothing else is replaced. sources: what is never replaced.
    Raises `CannotWriteError` as `write_checkpoint` does, and `CheckpointError` for a text tokenizer of another size.
    """
    folder = Path(folder)
    _check_fit(folder, text_tokenizer, network.config)

    def write(files: Path) -> dict[str, Any]:
        text_tokenizer.save(files / TOKENIZER_FILE)
        return {"text_tokenizer": text_tokenizer.kind}

    return CLIP.save(
        folder,
        name=name,
        network=network,
        config=network.config,
        about=about,
        dtype=dtype,
        write=write,
        overwrite=overwrite,
        sources=sources,
    )


def load_clip(folder: str | Path) -> ClipModel:
    """Read a CLIP directory. Raises `CheckpointError`, naming the file and what was expected, if anything is missing,
    damaged, foreign, of another shape, or of a newer format."""
    folder = Path(folder)
    values = CLIP.read(folder)
    config = parsed(folder, ClipConfig, values["network"])
    tokenizer = load_text_tokenizer(values["text_tokenizer"], listed(folder, values["digests"], TOKENIZER_FILE))
    _check_fit(folder, tokenizer, config)
    return ClipModel(
        name=values["name"],
        network=CLIP.network(folder, values, lambda: Clip(config)),
        text_tokenizer=tokenizer,
        about=values["about"],
        digest=file_digest(folder / CONFIG_FILE),
    )


def clip_identity(folder: str | Path) -> tuple[str, str]:
    """Name and digest of a CLIP directory, as `load_clip` has them, without reading its weights into a network. Raises
    `CheckpointError` for one that is missing, damaged, foreign, or of a newer format."""
    folder = Path(folder)
    return CLIP.read(folder)["name"], file_digest(folder / CONFIG_FILE)


def save_classifier(
    folder: str | Path,
    *,
    name: str,
    network: Classifier,
    about: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> str:
    """Write the directory of a classifier, whole or not at all, as `save_clip` does. Returns its digest."""
    return CLASSIFIER.save(
        Path(folder),
        name=name,
        network=network,
        config=network.config,
        about=about,
        dtype=dtype,
        write=lambda _: {},
        overwrite=overwrite,
        sources=(),
    )


def load_classifier(folder: str | Path) -> ClassifierModel:
    """Read the directory of a classifier. Raises `CheckpointError` as `load_clip` does."""
    folder = Path(folder)
    values = CLASSIFIER.read(folder)
    config = parsed(folder, ClassifierConfig, values["network"])
    return ClassifierModel(
        name=values["name"],
        network=CLASSIFIER.network(folder, values, lambda: Classifier(config)),
        about=values["about"],
        digest=file_digest(folder / CONFIG_FILE),
    )


def _check_fit(folder: Path, tokenizer: PromptTokenizer, config: ClipConfig) -> None:
    """Check that vocabulary and length of the text tokenizer are those of the text encoder."""
    text = config.text
    if tokenizer.vocab_size > text.vocab_size or tokenizer.text_length != text.text_length:
        raise CheckpointError(
            f"{folder}: the text tokenizer has {tokenizer.vocab_size} ids and rows of {tokenizer.text_length}; the "
            f"text encoder has {text.vocab_size} and {text.text_length}: they belong to different models"
        )
