"""`ModelConfig`: the content of a model directory's `config.json`, parsed and validated once.

The file is a JSON object with these keys, in this order:

    format, format_version   "dalle" and FORMAT_VERSION
    name, about, sampling    the model's name, free text by key, and its sampling parameters
    image_tokenizer          configuration of the image tokenizer, with its "kind" (see `dalle.vq.kinds`) unless it is a
                             VQGAN
    decoder                  configuration of the decoder; absent in a directory of stage 1
    text_tokenizer           kind of the text tokenizer (see `dalle.text.kinds`); absent if the model has none
    digests                  SHA-256 of every other file of the directory but the vocabulary, by file name

Format version 1 lacks `text_tokenizer`: the text tokenizer of a decoder was always this library's own.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from dalle.config import require
from dalle.decoder.config import DecoderConfig
from dalle.decoder.sampling import SamplingParams
from dalle.errors import CheckpointError, ConfigError, ParameterError
from dalle.text.bpe import TextTokenizer
from dalle.vq.kinds import DEFAULT_KIND, KINDS, AnyImageTokenizerConfig, kind_of

__all__ = ["CONFIG_FILE", "FORMAT", "ModelConfig"]

CONFIG_FILE = "config.json"
FORMAT = "dalle"
FORMAT_VERSION = 2
"""Version 2 added image and text tokenizers of other kinds, and decoders without a text tokenizer."""
REQUIRED = {"name": str, "about": dict, "sampling": dict, "image_tokenizer": dict, "digests": dict}
"""Keys that every `config.json` has, and the type of their values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The configuration of a whole model. Older format versions are read into the same fields."""

    name: str
    about: Mapping[str, str]
    """Free text by key: licence, data, training."""
    sampling: SamplingParams
    """Sampling parameters that a request without its own gets."""
    image_tokenizer: AnyImageTokenizerConfig
    decoder: DecoderConfig | None = None
    """None for a directory of stage 1."""
    text_tokenizer: str | None = None
    """Kind of the text tokenizer; None if the model has none."""
    digests: Mapping[str, str]
    """SHA-256 of every other file of the directory, in hexadecimal, by file name."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Parse and validate the `config.json` of a model directory. No other file is opened.

        Raises `CheckpointError`, naming the file, if it is missing, damaged, foreign, of a newer format, or has a value
        outside its limits.
        """
        path = folder / CONFIG_FILE
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder; a model directory has {CONFIG_FILE} and *.safetensors")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{folder} has no {CONFIG_FILE}: it is not a model directory") from None
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        version = _checked_version(path, values)
        _check_keys(path, values)
        try:
            text_tokenizer = values.get("text_tokenizer")
            if version == 1 and "decoder" in values and text_tokenizer is None:
                text_tokenizer = TextTokenizer.kind
            return cls(
                name=values["name"],
                about=_texts("about", values["about"]),
                sampling=SamplingParams.from_dict(values["sampling"]),
                image_tokenizer=_image_tokenizer(values["image_tokenizer"]),
                decoder=DecoderConfig.from_dict(values["decoder"]) if "decoder" in values else None,
                text_tokenizer=text_tokenizer,
                digests=_texts("digests", values["digests"]),
            )
        except (ConfigError, ParameterError, OverflowError) as error:  # the last for an integer beyond any float
            raise CheckpointError(f"{path}: {error}") from error

    def to_json(self) -> str:
        """The text of `config.json`, in the newest format version."""
        kind = kind_of(self.image_tokenizer)
        values = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "about": dict(self.about),
            "sampling": self.sampling.to_dict(),
            "image_tokenizer": ({} if kind == DEFAULT_KIND else {"kind": kind}) | self.image_tokenizer.to_dict(),
            **({} if self.decoder is None else {"decoder": self.decoder.to_dict()}),
            **({} if self.text_tokenizer is None else {"text_tokenizer": self.text_tokenizer}),
            "digests": dict(self.digests),
        }
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _checked_version(path: Path, values: Any) -> int:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f'{path} is not the configuration of a model directory: it lacks "format": "{FORMAT}"')
    version = values.get("format_version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path} has format version {version}; it must be an integer from 1 up")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}; this release reads up to {FORMAT_VERSION}: upgrade to read it"
        )
    return version


def _check_keys(path: Path, values: Mapping[str, Any]) -> None:
    optional = {"text_tokenizer": str} if "text_tokenizer" in values else {}
    for key, kind in (REQUIRED | optional).items():
        if not isinstance(values.get(key), kind):
            raise CheckpointError(f"{path}: {key!r} is missing, or is not {'text' if kind is str else 'an object'}")
    unknown = set(values) - {"format", "format_version", "decoder", "text_tokenizer", *REQUIRED}
    if unknown:
        raise CheckpointError(f"{path} has unknown keys: {', '.join(sorted(unknown))}")


def _texts(key: str, values: Mapping[str, Any]) -> dict[str, str]:
    for name, value in values.items():
        require(isinstance(value, str), f"{key} has {value!r} for {name!r}; it must be text")
    return dict(values)


def _image_tokenizer(values: Mapping[str, Any]) -> AnyImageTokenizerConfig:
    kind = values.get("kind", DEFAULT_KIND)
    require(
        isinstance(kind, str) and kind in KINDS,
        f"image_tokenizer is of the kind {kind!r}; known are {', '.join(KINDS)}",
    )
    config_class, _ = KINDS[kind]
    return config_class.from_dict({key: value for key, value in values.items() if key != "kind"})
