"""Family `openai-dvae`: the dVAE of openai/DALL-E.

Files: the folder with `encoder.pkl` and `decoder.pkl`, each a pickled module or its state_dict.
Networks: the dVAE, an image tokenizer.
Not read: one of the two files alone (an image tokenizer needs both); the project has published no decoder.

Weights of convolutions are named `w` and `b`, and blocks are numbered from 1. Sizes are read from shapes; the gain of
the residual paths is not stored and follows from the number of blocks.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from dalle.checkpoint.weights import LazyTensor, Part
from dalle.errors import CheckpointError
from dalle.interop.family import Converted, Family, Source, fit, state_dict, unwrapped
from dalle.interop.pickles import Stub, module_weights
from dalle.vq.openai_dvae import NUM_GROUPS, OpenAIDiscreteVAE, OpenAIDiscreteVAEConfig

__all__ = ["FAMILY", "dvae_part", "names_of"]

LICENCE = "code and published weights under OpenAI's modified MIT licence: say clearly that the model was used"
DEFAULT_IMAGE_SIZE = 256
CLASSES = {"encoder": "dall_e.encoder.Encoder", "decoder": "dall_e.decoder.Decoder"}
KERNEL_SIZES = {"encoder": 7, "decoder": 1}
"""Kernel size of each half's first convolution, which tells the halves' state_dicts apart."""


def recognise(source: Source) -> str | None:
    for side in CLASSES:
        for path in _halves(source, side):
            return f"{path} has the weights of {CLASSES[side]}"
    return None


def convert(source: Source) -> Converted:
    if source.path.is_file():
        raise CheckpointError(f"{source.path} is half of the dVAE: give the folder with encoder.pkl and decoder.pkl")
    weights: dict[str, LazyTensor] = {}
    for side in CLASSES:
        path = source.only(_halves(source, side), f"{side}.pkl", f"a pickled {CLASSES[side]}")
        weights |= {f"{side}.{name}": value for name, value in _weights(source, path, side).items()}
    return Converted(
        image_tokenizer=dvae_part(source.path, weights, image_size=DEFAULT_IMAGE_SIZE),
        about={"licence": LICENCE, "project": "https://github.com/openai/DALL-E"},
        derived=(f"image_size {DEFAULT_IMAGE_SIZE}, the published one's; any other works as well",),
    )


def _halves(source: Source, side: str) -> list[Path]:
    return [path for path in source.torch_files("*.pkl", "*.pt", "*.pth") if _weights(source, path, side)]


def _weights(source: Source, path: Path, side: str) -> dict[str, LazyTensor]:
    """The weights of one half, `side`; empty if the file has something else."""
    content = source.torch(path)
    if isinstance(content, Stub):
        return module_weights(content) if content.name == CLASSES[side] else {}
    first = unwrapped(content).get("blocks.input.w") if isinstance(content, dict) else None
    is_it = isinstance(first, LazyTensor) and first.shape[2:] == 2 * (KERNEL_SIZES[side],)
    return state_dict(path, content) if is_it else {}


def dvae_part(path: Path, weights: Mapping[str, LazyTensor], *, image_size: int) -> Part:
    """The image tokenizer as a part, from the weights of both modules, prefixed with `encoder.` and `decoder.`.

    Raises `CheckpointError` if they are not the weights of a dVAE.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights or len(weights[name].shape) != 4:
            raise CheckpointError(f"{path} has no {name} with 4 axes, which a dVAE has")
        return weights[name].shape

    def num_blocks(side: str) -> int:
        pattern = rf"{side}\.blocks\.group_1\.block_\d+\.res_path\.conv_1\.w"
        return sum(re.fullmatch(pattern, name) is not None for name in weights)

    config = OpenAIDiscreteVAEConfig(
        image_size=image_size,
        encoder_width=shape("encoder.blocks.input.w")[0],
        decoder_width=shape("decoder.blocks.output.conv.w")[1],
        codebook_dim=shape("decoder.blocks.input.w")[0],
        encoder_blocks_per_group=num_blocks("encoder"),
        decoder_blocks_per_group=num_blocks("decoder"),
        codebook_size=shape("encoder.blocks.output.conv.w")[0],
    )
    return fit(path, OpenAIDiscreteVAE, config, weights, names_of(config))


def names_of(config: OpenAIDiscreteVAEConfig) -> dict[str, str]:
    """Our names of a dVAE's weights -> openai/DALL-E's."""
    modules: dict[str, str] = {}
    sides = {"encoder": config.encoder_blocks_per_group, "decoder": config.decoder_blocks_per_group}
    for side, num_blocks in sides.items():
        modules[f"{side}.0"] = f"{side}.blocks.input"
        modules[f"{side}.{2 * NUM_GROUPS + 1}"] = f"{side}.blocks.output.conv"
        for group in range(NUM_GROUPS):
            for block in range(num_blocks):
                ours = f"{side}.{2 * group + 1}.{block}"
                theirs = f"{side}.blocks.group_{group + 1}.block_{block + 1}"
                modules[f"{ours}.shortcut"] = f"{theirs}.id_path"
                modules |= {f"{ours}.convs.{i}": f"{theirs}.res_path.conv_{i + 1}" for i in range(4)}
    leaves = {"weight": "w", "bias": "b"}
    return {f"{ours}.{leaf}": f"{theirs}.{leaves[leaf]}" for ours, theirs in modules.items() for leaf in leaves}


FAMILY = Family(
    name="openai-dvae",
    expects="a folder with encoder.pkl and decoder.pkl",
    recognise=recognise,
    convert=convert,
)
