"""Family `llamagen`: checkpoints of FoundationVision/LlamaGen.

Files: `c2i_*.pt` or `t2i_*.pt` with `vq_ds*.pt` beside it, or `vq_ds*.pt` alone; safetensors too. A JSON file with the
arguments of the project's `ModelArgs` beside the weights gives the values that the weights do not have.
Networks: the VQGAN; class-conditional decoders (c2i) and decoders of T5's features (t2i).
Not read: image tokenizers whose `encoder_ch_mult` and `decoder_ch_mult` differ (both sides have one list of widths
here, and none of the project's programs makes others); the sampling option `--no-left-padding` (features are always
moved to the end of the row, as in training).

In the decoders, a class label is a text of one id, and the last id stands for no class; a caption is T5's features, and
no caption is learned features. Queries and keys of text are zero, so that text has no rotary position. The number of
heads is in the JSON file or, for the published sizes, in `NUM_HEADS`; the size of the picture is in the JSON file, in
the training program's arguments or in the file's name.

In the image tokenizer, the decoder's levels are in the order in which they run, the middle is a list, and attention is
at the coarsest level only. Sizes are read from shapes. Codes are compared at unit length, the project's default, unless
the JSON file says otherwise.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoint.weights import LazyTensor, Part
from dalle.decoder.config import DecoderConfig
from dalle.decoder.sampling import SamplingParams
from dalle.errors import CheckpointError
from dalle.interop.decoders import ForeignWeights, decoder_part, grid_side
from dalle.interop.family import Converted, Family, Source, agree, state_dict, unwrapped
from dalle.interop.pickles import Stub
from dalle.interop.vqgan import inference_weights, vqgan_part
from dalle.text.classes import ClassTokenizer
from dalle.vq.vqgan import ImageTokenizerConfig

__all__ = ["FAMILY"]

FILES = ("*.pt", "*.pth", "*.ckpt", "*.bin", "*.safetensors")
MIDDLE = ("block_1", "attn_1", "block_2")
DEFAULT_IMAGE_SIZE = 256
DEFAULT_NUM_LEVELS = 5
"""Levels of an image tokenizer with 16 pixels per code, the default of all the project's programs."""
MAX_SIDE = 128
"""Largest number of codes along each side; masks grow with its fourth power."""
KEYS = ("model", "ema", "module", "state_dict")
"""Keys of a file that may hold the weights; the first that is there counts, as in the project's programs."""
NUM_HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 2560: 40, 3200: 32, 4096: 32}
"""Number of heads of the project's models, by width."""
SAMPLING = {
    "c2i": SamplingParams(guidance_scale=4.0, top_k=2000),
    "t2i": SamplingParams(guidance_scale=7.5, top_k=1000),
}
"""Default sampling parameters of the project's programs."""


def recognise(source: Source) -> str | None:
    for path in _decoders(source):
        return f"{path} has tok_embeddings and cls_embedding"
    for path in _image_tokenizers(source):
        return f"{path} has encoder.conv_blocks and a codebook"
    return None


def convert(source: Source) -> Converted:
    decoders = _decoders(source)
    found = source.nearest(_image_tokenizers) if decoders else _image_tokenizers(source)
    if decoders:
        found = _fitting(source, source.only(decoders, "c2i_*.pt or t2i_*.pt", "the decoder"), found)
    path = source.only(found, "vq_ds*.pt", "the image tokenizer")
    image_tokenizer, ignored, derived = _image_tokenizer(source, path)
    assert isinstance(image_tokenizer.config, ImageTokenizerConfig)
    size = f"image_size {image_tokenizer.config.image_size}; any other works as well"
    decoder, text_tokenizer, sampling = None, None, None
    files = {"image_tokenizer": path}
    heads: tuple[str, ...] = ()
    if decoders:
        (path,) = decoders
        files["decoder"] = path
        decoder, heads = _decoder(source, path, image_tokenizer.config.factor)
        assert isinstance(decoder.config, DecoderConfig)
        kind = "c2i" if decoder.config.feature_width is None else "t2i"
        text_tokenizer = ClassTokenizer(decoder.config.text_vocab_size - 1) if kind == "c2i" else None
        sampling = SAMPLING[kind] if decoder.config.guidance else None
        side = decoder.config.grid_height
        config = dataclasses.replace(image_tokenizer.config, image_size=side * image_tokenizer.config.factor)
        image_tokenizer = dataclasses.replace(image_tokenizer, config=config)
        size = f"image_size {config.image_size}, of {side} codes a side"
        ignored = (*ignored, *_training_state(path, source.tensors(path)))
    return Converted(
        image_tokenizer=image_tokenizer,
        decoder=decoder,
        text_tokenizer=text_tokenizer,
        sampling=sampling,
        files=files,
        about={"licence": "code and published weights MIT", "project": "https://github.com/FoundationVision/LlamaGen"},
        ignored=ignored,
        derived=(size, derived, *heads, "pixels: [-1, 1], as the project trains"),
    )


def _training_state(path: Path, content: Any) -> tuple[str, ...]:
    """A description of what a file of the training programs has besides the weights, such as moving averages."""
    chosen = next((key for key in KEYS if isinstance(content, dict) and key in content), None)
    rest = sorted({*map(str, content)} - {chosen}) if chosen is not None else []
    return (f"state of training in {path.name}: {', '.join(rest)}",) if rest else ()


def _fitting(source: Source, decoder: Path, found: list[Path]) -> list[Path]:
    """Choose the image tokenizers that fit a decoder among several in a folder of downloads: by the number of codes,
    then by the name (vq_ds16_t2i.pt for t2i), then by the project's default of pixels per code."""
    names = _names(source, decoder)
    kind = "t2i" if "cls_embedding.uncond_embedding" in names else "c2i"
    num_codes = names["tok_embeddings.weight"].shape[0]

    def depth(path: Path) -> int:
        return len({name.split(".")[2] for name in _names(source, path) if name.startswith("encoder.conv_blocks.")})

    for fits in (
        lambda path: _names(source, path)["quantize.embedding.weight"].shape[0] == num_codes,
        lambda path: kind in path.stem,
        lambda path: depth(path) == DEFAULT_NUM_LEVELS,
    ):
        if len(found) > 1:
            found = [path for path in found if fits(path)] or found
    return found


def _decoders(source: Source) -> list[Path]:
    """Files with the weights of one of LlamaGen's decoders."""
    return [
        path
        for path in source.torch_files(*FILES)
        if "tok_embeddings.weight" in (names := _names(source, path))
        and any(name.startswith("cls_embedding.") for name in names)
    ]


def _image_tokenizers(source: Source) -> list[Path]:
    """Files with the weights of one of LlamaGen's image tokenizers."""
    first = "encoder.conv_blocks.0.res.0.conv1.weight"
    return [path for path in source.torch_files(*FILES) if first in _names(source, path)]


def _names(source: Source, path: Path) -> Mapping[str, Any]:
    content = source.tensors(path)
    found = next((content[key] for key in KEYS if isinstance(content, dict) and key in content), content)
    return unwrapped(found) if isinstance(found, dict) else {}


def _image_tokenizer(source: Source, path: Path) -> tuple[Part, tuple[str, ...], str]:
    """The image tokenizer, descriptions of what was ignored, and a description of how codes are compared."""
    content = source.tensors(path)
    keys = KEYS if any(key in content for key in KEYS) else ()
    weights, ignored = inference_weights(state_dict(path, content, *keys))
    described, place = _described_tokenizer(source, path, weights)
    unit_length = described.get("codebook_l2_norm", True)
    size = described.get("image_size", DEFAULT_IMAGE_SIZE)
    part = vqgan_part(path, _to_taming(path, weights), image_size=size, normalize_codes=unit_length)
    compared = "at unit length" if unit_length else "as they are"
    reason = "the project's default" if place is None else f"as {place.name} says"
    return part, (*ignored, *_training_state(path, content)), f"codes are compared {compared}, {reason}"


def _described_tokenizer(
    source: Source, path: Path, weights: Mapping[str, LazyTensor]
) -> tuple[dict[str, Any], Path | None]:
    """The image tokenizer's ModelArgs, from a JSON file beside the weights whose codebook has the same size, and the
    path of that file."""
    codebook = weights["quantize.embedding.weight"].shape if "quantize.embedding.weight" in weights else ()
    for place, content in _beside_in_json(source, path):
        if (content.get("codebook_size"), content.get("codebook_embed_dim")) == codebook:
            if type(content.get("codebook_l2_norm", True)) is not bool:
                raise CheckpointError(
                    f"{place} says codebook_l2_norm {content['codebook_l2_norm']!r}; expected a boolean"
                )
            return content, place
    return {}, None


def _beside_in_json(source: Source, path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """JSON files beside the weights, first those whose names begin with the same three characters."""
    for place in sorted(path.parent.glob("*.json"), key=lambda place: not path.name.startswith(place.name[:3])):
        with contextlib.suppress(CheckpointError):  # an unrelated JSON file
            yield place, source.json(place)


def _to_taming(path: Path, weights: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The weights under taming-transformers' names. Raises `CheckpointError` if encoder and decoder differ in
    widths."""
    widths = {
        side: {
            int(match[1]): value.shape[0]
            for name, value in weights.items()
            if (match := re.fullmatch(rf"{side}\.conv_blocks\.(\d+)\.res\.0\.conv1\.weight", name))
        }
        for side in ("encoder", "decoder")
    }
    last = max(widths["decoder"], default=0)
    there, back = ([found[level] for level in sorted(found)] for found in widths.values())
    if there != back[::-1]:
        raise CheckpointError(
            f"{path} was made with encoder_ch_mult other than decoder_ch_mult: its encoder has levels of {there} "
            f"channels, its decoder of {back}; expected the same in reverse order"
        )

    def rename(name: str) -> str:
        name = re.sub(r"^encoder\.conv_blocks\.", "encoder.down.", name)
        name = re.sub(r"^decoder\.conv_blocks\.(\d+)", lambda match: f"decoder.up.{last - int(match[1])}", name)
        name = re.sub(r"\.mid\.([012])\.", lambda match: f".mid.{MIDDLE[int(match[1])]}.", name)
        return re.sub(r"(\.(?:down|up)\.\d+)\.res\.", r"\1.block.", name)

    return {rename(name): value for name, value in weights.items()}


def _decoder(source: Source, path: Path, factor: int) -> tuple[Part, tuple[str, ...]]:
    """The decoder, and descriptions of what was inferred."""
    content = source.tensors(path)
    keys = KEYS if any(key in content for key in KEYS) else ()
    theirs = ForeignWeights(path, state_dict(path, content, *keys))
    depth = theirs.count(r"layers\.(\d+)\.")
    theirs.check_width("norm.weight", "tok_embeddings.weight", "output.weight", "cls_embedding.embedding_table.weight")
    codebook_size, width = theirs.shape("tok_embeddings.weight")
    by_caption = "cls_embedding.uncond_embedding" in theirs
    described, place = _described(source, path, "t2i" if by_caption else "c2i", depth, width)
    num_heads = described.get("n_head", NUM_HEADS.get(width))
    heads = () if "n_head" in described else (f"heads: {num_heads}, as in the project's models with {width} channels",)
    if type(num_heads) is not int or num_heads < 1 or width % num_heads:
        raise CheckpointError(
            f"{path} does not say how many heads its {width} channels have, which is not a published size: put a JSON "
            'file with the arguments of its ModelArgs beside it, {"n_head": ..., "block_size": ...}'
        )
    head_dim = width // num_heads
    side = _grid_side(path, described, factor)
    null, num_conditions = (
        ("cls_embedding.uncond_embedding", theirs.shape("cls_embedding.uncond_embedding")[0])
        if by_caption
        else ("cls_embedding.embedding_table.weight", theirs.shape("cls_embedding.embedding_table.weight")[0])
    )
    num_classes = described.get("num_classes", num_conditions - 1)
    # a model that was trained without dropping captions or classes has no unconditional branch to guide with
    if by_caption:
        text_length = described.get("cls_token_num", num_conditions)
        guidance = text_length == num_conditions
    else:
        text_length, guidance = 1, num_classes != num_conditions
    config = DecoderConfig(
        text_vocab_size=2 if by_caption else num_conditions + (not guidance),
        text_length=text_length,
        codebook_size=codebook_size,
        grid_height=side,
        grid_width=side,
        feature_width=theirs.shape(null)[1] if by_caption else None,
        guidance=guidance,
        attend_padding=not by_caption,
        width=width,
        depth=depth,
        num_heads=num_heads,
        num_kv_heads=(theirs.shape("layers.0.attention.wqkv.weight")[0] // head_dim - num_heads) // 2,
        head_dim=head_dim,
        mlp="swiglu",
        mlp_width=theirs.shape("layers.0.feed_forward.w1.weight")[0],
        norm="rmsnorm",
        norm_epsilon=described.get("norm_eps", 1e-5),
        qk_norm=False,
        positions="rotary_2d_image",
        rotary_base=float(described.get("rope_base", 10000)),
        text_head=False,
    )
    facts = {
        "vocab_size": (described.get("vocab_size"), codebook_size),
        "n_kv_head": (described.get("n_kv_head"), config.num_kv_heads),
        "caption_dim": (described.get("caption_dim") if by_caption else None, config.feature_width),
        "num_classes": (None if by_caption else num_classes, num_conditions - guidance),
        "cls_token_num": (described.get("cls_token_num"), text_length),
    }
    agree(place, facts, path)
    codes = theirs.take("tok_embeddings.weight")
    ours = {"head.weight": theirs.take("output.weight"), "final_norm.weight": theirs.take("norm.weight")}
    if by_caption:

        def fitted(features: Tensor) -> Tensor:
            rows = features.new_zeros(text_length, features.shape[1])
            rows[:num_conditions] = features[:text_length]
            return rows

        ours["features.null"] = theirs.take(null, then=None if guidance else fitted)
        ours |= theirs.linear("features.input", "cls_embedding.cap_proj.fc1")
        ours |= theirs.linear("features.output", "cls_embedding.cap_proj.fc2")
        text = LazyTensor.of(torch.zeros(2, width, dtype=codes.dtype))
    else:
        text = theirs.take(null)
        if text.shape[1:] != codes.shape[1:]:
            raise CheckpointError(f"{path}: {null} has shape {text.shape}; expected rows of {width}")
        if not guidance:
            text = LazyTensor.joined(text, LazyTensor.of(torch.zeros(1, width, dtype=text.dtype)))
    ours["embedding.weight"] = LazyTensor.joined(text, codes)
    for i in range(depth):
        here, block = f"blocks.{i}", f"layers.{i}"
        ours |= theirs.linear(f"{here}.attention_norm", f"{block}.attention_norm")
        ours |= theirs.linear(f"{here}.attention.qkv", f"{block}.attention.wqkv")
        ours |= theirs.linear(f"{here}.attention.output", f"{block}.attention.wo")
        ours |= theirs.linear(f"{here}.mlp_norm", f"{block}.ffn_norm")
        ours |= theirs.linear(f"{here}.mlp.input", f"{block}.feed_forward.w1", f"{block}.feed_forward.w3")
        ours |= theirs.linear(f"{here}.mlp.output", f"{block}.feed_forward.w2")
    theirs.ignore(r"freqs_cis|causal_mask|layers\.\d+\.attention\.kv_cache\..*")
    return decoder_part(theirs, config, ours), heads


def _described(source: Source, path: Path, kind: str, depth: int, width: int) -> tuple[dict[str, Any], Path]:
    """The decoder's ModelArgs and the path that they come from: the training program's arguments in the file of the
    weights, overridden by a JSON file beside it that describes a model of this size; empty if there are none."""
    described = _arguments(source.tensors(path))
    for place, content in _beside_in_json(source, path):
        size = (content.get("model_type", kind), content.get("n_layer", depth), content.get("dim", width))
        if size == (kind, depth, width) and {"n_head", "block_size"} & {*content}:
            return described | content, place
    return described, path


def _arguments(content: Any) -> dict[str, Any]:
    """Sizes of the network from the training program's arguments, under their names in ModelArgs."""
    arguments = content.get("args") if isinstance(content, dict) else None
    fields = arguments.fields if isinstance(arguments, Stub) else {}
    known = {name: fields[name] for name in ("num_classes", "cls_token_num") if type(fields.get(name)) is int}
    size, factor = fields.get("image_size"), fields.get("downsample_size")
    if type(size) is int and type(factor) is int and factor > 0:
        known["block_size"] = (size // factor) ** 2
    return known


def _grid_side(path: Path, described: Mapping[str, Any], factor: int) -> int:
    if type(described.get("block_size")) is int:
        side = grid_side(path, described["block_size"])
    else:
        said = [int(number) for number in re.findall(r"\d+", path.stem) if number[0] != "0"]  # not a step, 0050000
        usual = (number for number in reversed(said) if 128 <= number <= MAX_SIDE * factor and number % factor == 0)
        side = next(usual, DEFAULT_IMAGE_SIZE) // factor
    if side > MAX_SIDE:  # no weight confirms it
        raise CheckpointError(f"{path} is said to draw {side} x {side} codes; the limit is {MAX_SIDE} x {MAX_SIDE}")
    return side


FAMILY = Family(
    name="llamagen",
    expects="c2i_*.pt or t2i_*.pt with vq_ds*.pt in one folder, or the latter alone",
    recognise=recognise,
    convert=convert,
)
