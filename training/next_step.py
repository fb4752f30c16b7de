"""What to run next: each program of training ends with the command of the step after it, its paths filled in.

folder -> bpe -> vq -> codes -> decoder -> release -> dalle generate
clip -> retrieval
classify -> report
translation_data -> translate -> translation_report
"""

import shlex
from collections.abc import Iterable
from pathlib import Path

from training import decoder_presets, vq_presets
from training.classify_config import ClassifyConfig
from training.clip_config import ClipTrainingConfig
from training.decoder_config import DecoderTrainingConfig
from training.pairs.shards import PairShards, find_shards
from training.translate_config import TranslateConfig
from training.vq_config import VQTrainingConfig

__all__ = [
    "after_bpe",
    "after_classify",
    "after_clip",
    "after_codes",
    "after_decoder",
    "after_folder",
    "after_release",
    "after_translate",
    "after_translation_data",
    "after_vq",
]

TOKENIZER = "runs/bpe/tokenizer.json"
EMOJI_TOKENIZER, CODES, EMOJI_SHARDS = "runs/vq-emoji/model", "runs/codes", "data/emoji/"
TRANSLATION_DATA = "data/translation"
"""Defaults of the programs, which a command need not name."""


def _said(*commands: Iterable[object]) -> str:
    return "\n".join(f"next: {shlex.join(map(str, words))}" for words in commands)


def _program(name: str, *words: object) -> list[object]:
    return ["python", "-m", f"training.{name}", *words]


def _preset(folder: str, presets: Iterable[str]) -> str:
    """The preset that a run folder is named for, as `runs/vq-base` is for `base`; `emoji` for others."""
    name = Path(folder).name.rpartition("-")[2]
    return name if name in presets else "emoji"


def after_folder(out: Path) -> str:
    """After `training.folder`: the text tokenizer."""
    return _said(_program("bpe", out / "train-*.tar"))


def after_bpe(shards: tuple[str, ...]) -> str:
    """After `training.bpe`: stage 1, with three channels if no picture has transparent pixels."""
    paths = find_shards(shards)
    val = sorted({*paths[0].parent.glob("val*.tar")} - {*paths})
    channels = [] if PairShards(paths).has_transparency() else ["--model.channels", 3]
    given = ["--train-shards", *shards, "--val-shards", *(val or shards)]
    return _said(_program("vq", "emoji", *given, *channels))


def after_vq(config: VQTrainingConfig) -> str:
    """After `training.vq`: the token shards of training and validation."""
    model = Path(config.run) / "model"
    which = [] if str(model) == EMOJI_TOKENIZER else ["--image-tokenizer", model]
    if config.only_decoder:
        return _said(_program("release", "RUN-OF-STAGE-2/model", "--image-tokenizer", model, "--out", "my-model"))
    return _said(
        *(
            _program("codes", *shards, *which, "--out", f"{_codes_of(config)}/{split}")
            for split, shards in (("train", config.train_shards), ("val", config.val_shards))
        )
    )


def _codes_of(config: VQTrainingConfig) -> str:
    preset = _preset(config.run, vq_presets.PRESETS)
    return CODES if preset == "emoji" else f"{CODES}-{preset}"


def after_codes(
    out: Path,
    image_tokenizer: Path,
    text_tokenizer: Path,
    model: str | None = None,
    text_encoder: Path | None = None,
) -> str:
    """After `training.codes`: stage 2, which fine-tunes the model if there is one; or the same for the other split
    while that lacks."""
    other = out.with_name({"train": "val", "val": "train"}.get(out.name, out.name))
    if not any(other.glob("*.safetensors")):
        return f"next: the same for the pairs of {other.name}, with --out {shlex.quote(str(other))}"
    train, val = (out, other) if out.name != "val" else (other, out)
    preset = _preset(str(image_tokenizer.parent), decoder_presets.PRESETS)
    start: list[object] = [preset, "--image-tokenizer", image_tokenizer, "--text-tokenizer", text_tokenizer]
    if model is not None:
        encoder = [] if text_encoder is None else ["--text-encoder", text_encoder]
        start = ["finetune", "--start-from", model, *encoder]
    shards = ["--train-shards", train / "*.safetensors", "--val-shards", val / "*.safetensors"]
    return _said(_program("decoder", *start, *shards))


def after_decoder(config: DecoderTrainingConfig) -> str:
    """After `training.decoder`: a picture, and the release."""
    model = Path(config.run) / "model"
    return _said(
        ["dalle", "generate", "A PROMPT", "--model", model],
        _program("release", model, "--out", "my-model"),
    )


def after_clip(config: ClipTrainingConfig) -> str:
    """After `training.clip`: its measurement."""
    shards = (*config.train_shards, *config.val_shards)
    which = [] if all(one.startswith(EMOJI_SHARDS) for one in shards) else ["--shards", *shards]
    return _said(_program("retrieval", Path(config.run) / "model", *which))


def after_classify(config: ClassifyConfig) -> str:
    """After `training.classify`: the page of the run, with its curves and confusion."""
    return _said(_program("report", config.run))


def after_translation_data(out: Path) -> str:
    """After `training.translation_data`: the translator."""
    which = [] if str(out) == TRANSLATION_DATA else ["--data", out]
    return _said(_program("translate", "emoji", *which))


def after_translate(config: TranslateConfig) -> str:
    """After `training.translate`: its measurement."""
    which = [] if config.data == TRANSLATION_DATA else ["--data", config.data]
    return _said(_program("translation_report", Path(config.run) / "model", *which))


def after_release(out: Path) -> str:
    """After `training.release`: a picture."""
    return _said(["dalle", "generate", "A PROMPT", "--model", out])
