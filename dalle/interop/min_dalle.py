"""Family `min-dalle`: checkpoints of kuprel/min-dalle, the PyTorch port of DALL-E mini.

Files: `detoker.pt`, or the folder with `vqgan/detoker.pt`.
Networks: the decoder of the VQGAN, which turns codes into pictures; the file has no encoder.
Not read: the Transformer in `dalle_bart_*` (an encoder-decoder; this library has decoder-only Transformers).

Group norms have PyTorch's default epsilon, 1e-5, and pixels inside the network are in [0, 1].
"""

from pathlib import Path

from dalle.interop.family import Converted, Family, Source, state_dict, unwrapped
from dalle.interop.vqgan import vqgan_part

__all__ = ["FAMILY"]

GRID_SIZE = 16
"""Codes along each side, fixed in the project's code."""


def recognise(source: Source) -> str | None:
    for path in _detokenizers(source):
        return f"{path} has an embedding, post_quant_conv and decoder.up, and no encoder"
    for path in _transformer(source):
        return f"{path} belongs to its encoder-decoder Transformer"
    return None


def convert(source: Source) -> Converted:
    path = source.only(_detokenizers(source), "vqgan/detoker.pt", "the image detokenizer")
    weights = state_dict(path, source.torch(path))
    weights["quantize.embedding.weight"] = weights.pop("embedding.weight")
    num_levels = len({name.split(".")[2] for name in weights if name.startswith("decoder.up.")})
    size = GRID_SIZE * 2 ** (num_levels - 1)
    part = vqgan_part(path, weights, image_size=size, norm_epsilon=1e-5, pixel_range="unit")
    beside = [found.name for found in _transformer(source)]
    return Converted(
        image_tokenizer=part,
        about={
            "licence": "code MIT; its card says MIT of the weights, which are converted from some without a licence",
            "project": "https://github.com/kuprel/min-dalle",
        },
        ignored=(f"the encoder-decoder Transformer: {', '.join(beside)}",) if beside else (),
        derived=(
            f"image_size {size}: the project draws {GRID_SIZE} x {GRID_SIZE} codes",
            "pixels: [0, 1] in the network, as the project draws",
        ),
    )


def _detokenizers(source: Source) -> list[Path]:
    return [
        path
        for path in source.torch_files("*.pt")
        if isinstance(content := source.torch(path), dict)
        and {"embedding.weight", "post_quant_conv.weight", "decoder.conv_in.weight"} <= {*unwrapped(content)}
    ]


def _transformer(source: Source) -> list[Path]:
    return [path for path in source.find("*.pt", "*.json", "*.txt") if path.parent.name.startswith("dalle_bart")]


FAMILY = Family(
    name="min-dalle",
    expects="detoker.pt, or a folder with vqgan/detoker.pt",
    recognise=recognise,
    convert=convert,
)
