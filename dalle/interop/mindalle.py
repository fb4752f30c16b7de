"""minDALL-E (kakaobrain): the folder that its `from_pretrained` reads, `config.yaml`, two stages and a tokenizer.

Stage 1, the image tokenizer, is taming-transformers' VQModel with `hparams` for `ddconfig`.
"""

from typing import Any

from dalle.errors import CheckpointError
from dalle.interop.family import Converted, Family, Source, state_dict
from dalle.interop.vqgan import described_vqgan
from dalle.weights import Part

__all__ = ["FAMILY"]

CONFIG_FILE = "config.yaml"
STAGE_1_FILE = "stage1_last.ckpt"
LICENCE = "code Apache-2.0; the published weights are CC-BY-NC-SA 4.0: not for commercial use"


def recognise(source: Source) -> str | None:
    for path in source.find(CONFIG_FILE):
        if {"stage1", "stage2"} <= {*source.yaml(path)}:
            return f"{path} has stage1 and stage2"
    return None


def convert(source: Source) -> Converted:
    config_path = source.one(CONFIG_FILE, "the configuration of both stages")
    return Converted(
        image_tokenizer=_image_tokenizer(source, source.yaml(config_path).get("stage1")),
        about={"licence": LICENCE, "project": "https://github.com/kakaobrain/minDALL-E"},
        derived=("pixels: [-1, 1], as the project trains",),
    )


def _image_tokenizer(source: Source, stage: Any) -> Part:
    config_path = source.one(CONFIG_FILE, "the configuration of both stages")
    if not isinstance(stage, dict) or not isinstance(stage.get("hparams"), dict):
        raise CheckpointError(f"{config_path} has no stage1 with hparams")
    path = source.one(STAGE_1_FILE, "stage 1, the image tokenizer")
    described = {**stage["hparams"], "embed_dim": stage.get("embed_dim"), "n_embed": stage.get("n_embed")}
    return described_vqgan(path, state_dict(path, source.torch(path), "state_dict"), config_path, described)


FAMILY = Family(
    name="mindalle",
    expects="a folder with config.yaml, stage1_last.ckpt, stage2_last.ckpt and tokenizer/",
    recognise=recognise,
    convert=convert,
)
