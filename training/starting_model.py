"""The model that fine-tuning starts from: any model directory with a decoder, of whatever project.

Its tokenizers come with it. Token shards are written with them (`python -m training.codes --model`), stage 2 trains its
decoder further (`start_from`), and what is exported has the same tokenizers, sampling parameters and notes.
"""

import dataclasses
from pathlib import Path

from dalle.checkpoint import Checkpoint, load_checkpoint, load_facts, load_image_tokenizer
from dalle.checkpoint.model_config import ModelConfig
from dalle.decoder.config import DecoderConfig
from dalle.errors import ConfigError, DataError
from dalle.hub.pull import model_folder
from dalle.text.bpe import TextTokenizer
from dalle.text.t5 import t5_tokenizer
from dalle.text.tokenizer import PromptTokenizer
from dalle.vq.kinds import AnyImageTokenizer
from training.decoder_config import DecoderTrainingConfig
from training.token_shards import TokenShards, codes_digest

__all__ = [
    "about_start",
    "check_grid",
    "load_stage_1",
    "load_start",
    "load_text",
    "start_tokenizers",
    "tokenizers_of",
]


def start_tokenizers(
    model: str | Path, text_encoder: str | Path | None = None
) -> tuple[AnyImageTokenizer, PromptTokenizer, tuple[int, int]]:
    """The tokenizers of a model to fine-tune, given by name or path, and height and width in pixels of the pictures
    that give its codes. The decoder's weights are not read.

    text_encoder: the folder of a T5, for a model that follows its features: the text tokenizer is that of the T5.
    Raises `DataError` for a model that cannot be fine-tuned: one without decoder, or without a text tokenizer; and
    `CheckpointError` for one that is missing or damaged.
    """
    decoder, text = _decoder_and_text(model, text_encoder)
    image = load_image_tokenizer(model_folder(model))
    return image, text, (decoder.grid_height * image.config.factor, decoder.grid_width * image.config.factor)


def load_start(config: DecoderTrainingConfig) -> Checkpoint | None:
    """The model that a run starts from, on the CPU, with the text tokenizer of its captions; None if there is none.
    Raises errors as `start_tokenizers` and `load_checkpoint` do."""
    if config.start_from is None:
        return None
    _, text = _decoder_and_text(config.start_from, config.text_encoder)
    return dataclasses.replace(load_checkpoint(model_folder(config.start_from)), text_tokenizer=text)


def _decoder_and_text(model: str | Path, text_encoder: str | Path | None) -> tuple[DecoderConfig, PromptTokenizer]:
    folder = model_folder(model)
    config = ModelConfig.read(folder)
    if (decoder := config.decoder) is None:
        raise DataError(f"{model} has no decoder to start from: give a model that draws")
    if decoder.feature_width is not None:
        if text_encoder is None:
            raise DataError(f"{model} follows the features of a text encoder: give its folder with --text-encoder")
        return decoder, t5_tokenizer(text_encoder, text_length=decoder.text_length)
    if text_encoder is not None:
        raise DataError(f"{model} does not follow features: it has no use for the text encoder {text_encoder}")
    if config.text_tokenizer is None:
        raise DataError(
            f"{model} has no text tokenizer to encode captions: import it again with its text tokenizer beside it"
        )
    return decoder, load_facts(folder).text_tokenizer


def load_stage_1(folder: str | Path) -> AnyImageTokenizer:
    """The image tokenizer in a model directory of stage 1. Raises `DataError` for a folder that does not exist, and
    errors as `load_image_tokenizer` does."""
    if not Path(folder).exists():
        raise DataError(f"{folder} does not exist; give the `model` folder of your run of stage 1 as --image-tokenizer")
    return load_image_tokenizer(folder)


def load_text(path: str | Path) -> TextTokenizer:
    """The text tokenizer in a file. Raises `DataError` for a file that does not exist, and errors as
    `TextTokenizer.load` does."""
    if not Path(path).exists():
        raise DataError(f"{path} does not exist; give what `python -m training.bpe` has written as --text-tokenizer")
    return TextTokenizer.load(path)


def tokenizers_of(config: DecoderTrainingConfig, start: Checkpoint | None) -> tuple[AnyImageTokenizer, PromptTokenizer]:
    """The image tokenizer and the text tokenizer of a run: those that its configuration names, else those of the model
    that it starts from.

    Raises `ConfigError` if there are neither, and `DataError` if the named ones are not those of the model.
    """
    if start is None and (config.image_tokenizer is None or config.text_tokenizer is None):
        raise ConfigError("there is no model to fine-tune: name one with --start-from")
    image = None if config.image_tokenizer is None else load_stage_1(config.image_tokenizer)
    text = None if config.text_tokenizer is None else load_text(config.text_tokenizer)
    if start is None:
        assert image is not None and text is not None
        return image, text
    assert start.text_tokenizer is not None
    if image is not None and codes_digest(image) != codes_digest(start.image_tokenizer):
        raise DataError(
            f"{config.start_from} has other codes than {config.image_tokenizer}: training cannot start from it"
        )
    if text is not None and text.digest != start.text_tokenizer.digest:
        raise DataError(f"{config.start_from} has another text tokenizer than {config.text_tokenizer}")
    return image or start.image_tokenizer, text or start.text_tokenizer


def check_grid(start: Checkpoint, rows: TokenShards) -> None:
    """Raise `DataError` if the token shards hold pictures of another size than the model draws."""
    assert start.decoder is not None
    layout, (height, width) = start.decoder.layout, rows.codes.shape[2:]
    if (layout.grid_height, layout.grid_width) != (height, width):
        raise DataError(
            f"{start.name} draws {layout.grid_height} x {layout.grid_width} codes; the token shards have "
            f"{height} x {width}: write them again with python -m training.codes --model"
        )


def about_start(start: Checkpoint | None) -> dict[str, str]:
    """Notes of the model that a run starts from, licence included, which what is exported has too."""
    return {} if start is None else {**start.about, "started_from": start.name}
