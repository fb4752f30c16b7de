"""LlamaGen (FoundationVision): `vq_ds*.pt`, the image tokenizer.

Special: the decoder's levels are in the order in which they run, the middle is a list, attention is at the coarsest
level alone. Sizes are options of the project's programs, not in the file: they are read off the shapes. That codes are
compared at unit length is the project's default, and taken for granted.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dalle.interop.family import Converted, Family, Source, state_dict
from dalle.interop.vqgan import vqgan_part
from dalle.weights import LazyTensor, Part

__all__ = ["FAMILY"]

MIDDLE = ("block_1", "attn_1", "block_2")
DEFAULT_IMAGE_SIZE = 256
KEYS = ("model", "ema", "state_dict")
"""Where weights are, the first of them that is there, as the project's own programs look."""


def recognise(source: Source) -> str | None:
    for path in _image_tokenizers(source):
        return f"{path} has encoder.conv_blocks and a codebook"
    return None


def convert(source: Source) -> Converted:
    paths = _image_tokenizers(source)
    path = source.only(paths, "vq_ds*.pt", "the image tokenizer")
    return Converted(
        image_tokenizer=_image_tokenizer(path, source.torch(path), image_size=DEFAULT_IMAGE_SIZE),
        about={"licence": "code and published weights MIT", "project": "https://github.com/FoundationVision/LlamaGen"},
        ignored=("quantize.codebook_used, a counter of training",),
        derived=(
            f"image_size {DEFAULT_IMAGE_SIZE}, the project's default; any other works as well",
            "codes are compared at unit length, the project's default",
            "pixels: [-1, 1], as the project trains",
        ),
    )


def _image_tokenizers(source: Source) -> list[Path]:
    """Files with the weights of an image tokenizer of this project."""
    return [
        path
        for path in source.find("*.pt", "*.pth")
        if "encoder.conv_blocks.0.res.0.conv1.weight" in _names(source, path)
    ]


def _names(source: Source, path: Path) -> Mapping[str, Any]:
    content = source.torch(path)
    found = next((content[key] for key in KEYS if isinstance(content, dict) and key in content), None)
    return found if isinstance(found, dict) else {}


def _image_tokenizer(path: Path, content: Any, *, image_size: int) -> Part:
    weights = state_dict(path, content, *KEYS)
    weights.pop("quantize.codebook_used", None)
    return vqgan_part(path, _to_taming(weights), image_size=image_size, normalize_codes=True)


def _to_taming(weights: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Under taming-transformers' names."""
    levels = [int(match[1]) for name in weights if (match := re.match(r"decoder\.conv_blocks\.(\d+)\.", name))]
    last = max(levels, default=0)

    def rename(name: str) -> str:
        name = re.sub(r"^encoder\.conv_blocks\.", "encoder.down.", name)
        name = re.sub(r"^decoder\.conv_blocks\.(\d+)", lambda match: f"decoder.up.{last - int(match[1])}", name)
        name = re.sub(r"\.mid\.([012])\.", lambda match: f".mid.{MIDDLE[int(match[1])]}.", name)
        return re.sub(r"(\.(?:down|up)\.\d+)\.res\.", r"\1.block.", name)

    return {rename(name): value for name, value in weights.items()}


FAMILY = Family(
    name="llamagen",
    expects="vq_ds16_c2i.pt or the like, or a folder with it",
    recognise=recognise,
    convert=convert,
)
