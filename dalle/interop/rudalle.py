"""Family `rudalle`: checkpoints of ai-forever/ru-dalle.

Files: `pytorch_model_v2.bin` or `pytorch_model_v3.bin` with `bpe.model` and the VQGAN beside it; or the VQGAN alone,
`vqgan.gumbelf8-sber.model.ckpt` or its variant `vqgan.gumbelf8-sber-dwt.model.ckpt`.
Networks: the Gumbel VQGAN, also with a wavelet head; the decoders Malevich and others of its versions 2 and 3.
Not read: decoders with `custom_relax`, `rudalle_relax` or `cogview_layernorm_prescale`, or without masks (other
networks with the same weights; no published model is one).

The decoder's architecture is in the project's code and not in its files. The number of heads is in a
`model_params.json` beside the weights or, for the published sizes, in `HEAD_DIMS`. Version 2 has a second <BOS> before
the row, which its masks do not count. Masks are computed here and compared with those in the file.

In the image tokenizer with a wavelet head, names have one more level, the decoded picture is twice as large as the
encoded one, and the `post_quant_conv` inside the decoder is the one that is used.
"""

from pathlib import Path
from typing import Any

from dalle.checkpoint.weights import LazyTensor, Part
from dalle.decoder.config import DecoderConfig
from dalle.decoder.row_layout import RowLayout
from dalle.errors import CheckpointError
from dalle.interop.decoders import ForeignWeights, decoder_part
from dalle.interop.family import Converted, Family, Source, state_dict, take, unwrapped
from dalle.interop.vqgan import described_vqgan, inference_weights, vqgan_part
from dalle.text.padded import PaddedTokenizer, PaddedTokenizerConfig
from dalle.transformer.masks import Pattern, attention_mask

__all__ = ["FAMILY"]

DEFAULT_IMAGE_SIZE = 256
PAD_ID, BEGIN_ID, END_ID = 0, 2, 3
CONVOLUTION_SIZE = 11
HEAD_DIMS = {768: 64, 2048: 128, 3840: 64}
"""Channels of each head of the published models, by width."""
MASK_PLACES = ("", "transformer.")
"""Prefixes of the masks' names; in older versions the model itself has them."""
MASKS: dict[str, Pattern] = {"row_mask": "local", "col_mask": "column"}
OPTIONS = {
    "cogview_layernorm_prescale": (False,),
    "custom_relax": (False,),
    "rudalle_relax": (False,),
    "use_masks": (True,),
    "mlp_activation": ("gelu_jit", "gelu"),
}
"""Arguments of the project's DalleModel that do not show in the weights, and the values that are read."""
CONVOLUTIONS: dict[str, Pattern] = {"v2": "convolution_wrapped", "v3": "convolution_centered"}
"""Pattern of the last layer, by version."""


def recognise(source: Source) -> str | None:
    for path in _decoders(source):
        return f"{path} has the weights of a ruDALL-E decoder"
    for path in _image_tokenizers(source):
        return f"{path} has the weights of a ruDALL-E VQGAN"
    return None


def convert(source: Source) -> Converted:
    decoder, text_tokenizer = None, None
    files: dict[str, Path] = {}
    # with --family rudalle the image tokenizer may have any name
    found = _image_tokenizers(source) or _gumbel(source)
    if decoders := _decoders(source):
        files["decoder"] = source.only(decoders, "pytorch_model_v*.bin", "the decoder")
        decoder = _decoder(source, files["decoder"])
        assert isinstance(decoder.config, DecoderConfig)
        vocabularies = source.nearest(lambda place: place.find("bpe.model"))
        files["text_tokenizer"] = source.only(vocabularies, "bpe.model", "the text tokenizer")
        text_tokenizer = _text_tokenizer(source, files["text_tokenizer"], decoder.config.text_length)
        found = source.nearest(_image_tokenizers)
    # both variants have the same codes; the plain one draws pictures of the size that it was trained on
    plain = [path for path in found if not _has_wavelets(source, path)]
    path = source.only(plain or found, "vqgan.gumbelf8-sber*.ckpt", "the image tokenizer")
    others = [f"{other.name}: give its path to import it instead" for other in found if other != path]
    image_tokenizer, ignored = _image_tokenizer(source, path)
    return Converted(
        image_tokenizer=image_tokenizer,
        decoder=decoder,
        text_tokenizer=text_tokenizer,
        files=files | {"image_tokenizer": path},
        about={
            "licence": "code Apache-2.0; for the published weights the authors refer to it, their cards name none",
            "project": "https://github.com/ai-forever/ru-dalle",
            "language": "ru",
        },
        ignored=(*ignored, *others),
        derived=("pixels: [-1, 1] in the network, as the project trains", "codes: the most likely, without noise"),
    )


def _decoders(source: Source) -> list[Path]:
    names = {"text_pos_embeddings.weight", "image_row_embeddings.weight", "transformer.final_layernorm.weight"}
    return [
        path
        for path in source.torch_files("*.bin", "*.pt", "*.pth")
        if isinstance(content := source.torch(path), dict) and names <= {*unwrapped(content)}
    ]


def _image_tokenizers(source: Source) -> list[Path]:
    named = [path for path in _gumbel(source) if "gumbelf8" in path.name]
    return [path for path in source.torch_files("*.ckpt") if path in named or _has_wavelets(source, path)]


def _gumbel(source: Source) -> list[Path]:
    return [path for path in source.torch_files("*.ckpt") if "quantize.proj.weight" in _weights(source, path)]


def _weights(source: Source, path: Path) -> dict[str, LazyTensor]:
    content = source.torch(path)
    try:
        return state_dict(path, content, "state_dict")
    except CheckpointError:  # an unrelated file
        return {}


def _has_wavelets(source: Source, path: Path) -> bool:
    return any(name.startswith("model.decoder.idwt.") for name in _weights(source, path))


def _image_tokenizer(source: Source, path: Path) -> tuple[Part, tuple[str, ...]]:
    weights = _weights(source, path)
    if _has_wavelets(source, path):
        inside = take(weights, "model.")
        # decoder.decoder.* and decoder.post_quant_conv.* move up one level; the wavelets' filters are constants
        decoder = {name: value for name, value in take(inside, "decoder.").items() if not name.startswith("idwt.")}
        above = ("decoder.", "post_quant_conv.")
        weights = {name: value for name, value in inside.items() if not name.startswith(above)} | decoder
    weights, ignored = inference_weights(weights)
    configs = sorted(path.parent.glob("*gumbelf8*.y*ml"))
    if not configs:
        return vqgan_part(path, weights, image_size=DEFAULT_IMAGE_SIZE), ignored
    params = (source.yaml(configs[0]).get("model") or {}).get("params") or {}
    out_channels = 12 if _has_wavelets(source, path) else 3
    described = {
        **(params.get("ddconfig") or {}),
        "embed_dim": params.get("embed_dim"),
        "n_embed": params.get("n_embed"),
        "out_ch": out_channels,  # both variants are published with the plain one's configuration
    }
    return described_vqgan(path, weights, configs[0], described, out_channels=out_channels), ignored


def _decoder(source: Source, path: Path) -> Part:
    theirs = ForeignWeights(path, state_dict(path, source.torch(path)))
    depth = theirs.count(r"transformer\.layers\.(\d+)\.")
    tables = ("text_embeddings", "image_embeddings", "text_pos_embeddings", "image_row_embeddings")
    theirs.check_width(
        "transformer.final_layernorm.weight", *(f"{name}.weight" for name in (*tables, "image_col_embeddings"))
    )
    width = theirs.shape("text_embeddings.weight")[1]
    text_length = theirs.shape("text_pos_embeddings.weight")[0] - 1
    side = theirs.shape("image_row_embeddings.weight")[0]
    layout = RowLayout(
        text_length=text_length,
        grid_height=side,
        grid_width=side,
        text_vocab_size=theirs.shape("text_embeddings.weight")[0],
        pad_id=PAD_ID,
    )
    described = _described(source, path, depth, width)
    _check_options(path, described)
    version = _version(path, theirs, described, layout)
    head_dim = width // described["num_attention_heads"] if described else HEAD_DIMS.get(width)
    if head_dim is None:
        raise CheckpointError(
            f"{path} does not say how many heads its {width} channels have: put a model_params.json beside it, "
            'with {"num_attention_heads": ...}'
        )
    first = "transformer.layers.0"
    config = DecoderConfig(
        text_vocab_size=layout.text_vocab_size,
        text_length=text_length,
        codebook_size=theirs.shape("image_embeddings.weight")[0],
        grid_height=side,
        grid_width=side,
        pad_id=PAD_ID,
        attend_padding=True,
        unique_padding=True,
        begin_ids=(BEGIN_ID,) if version == "v2" else (),
        guidance=False,
        width=width,
        depth=depth,
        num_heads=width // head_dim,
        num_kv_heads=width // head_dim,
        head_dim=head_dim,
        mlp="gelu_tanh",
        mlp_width=theirs.shape(f"{first}.mlp.dense_h_to_4h.weight")[0],
        norm="layernorm",
        qk_norm=False,
        sandwich_norm=f"{first}.before_first_addition_layernorm.weight" in theirs,
        head_norm=True,
        positions="axial",
        patterns=tuple(_pattern(i, depth, version) for i in range(depth)),
        pattern_shift=1 if version == "v2" else 0,
        convolution_size=CONVOLUTION_SIZE,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        head_bias=True,
    )
    # version 3 has a position for the first <BOS> of version 2, but does not use it
    num_positions = config.layout.first_code
    ours: dict[str, LazyTensor] = {
        "embedding.weight": theirs.take("text_embeddings.weight", "image_embeddings.weight"),
        "position_embedding.text": theirs.take("text_pos_embeddings.weight", then=lambda t: t[:num_positions]),
        "position_embedding.rows": theirs.take("image_row_embeddings.weight"),
        "position_embedding.columns": theirs.take("image_col_embeddings.weight"),
        **theirs.linear("final_norm", "transformer.final_layernorm"),
        **theirs.linear("head_norm", "to_logits.0"),
        **theirs.linear("head", "to_logits.1"),
    }
    for i in range(depth):
        here, block = f"blocks.{i}", f"transformer.layers.{i}"
        ours |= theirs.linear(f"{here}.attention_norm", f"{block}.input_layernorm")
        ours |= theirs.linear(f"{here}.attention.qkv", f"{block}.attention.query_key_value")
        ours |= theirs.linear(f"{here}.attention.output", f"{block}.attention.dense")
        ours |= theirs.linear(f"{here}.mlp_norm", f"{block}.post_attention_layernorm")
        ours |= theirs.linear(f"{here}.mlp.input", f"{block}.mlp.dense_h_to_4h")
        ours |= theirs.linear(f"{here}.mlp.output", f"{block}.mlp.dense_4h_to_h")
        if config.sandwich_norm:
            ours |= theirs.linear(f"{here}.after_attention.0", f"{block}.before_first_addition_layernorm")
            ours |= theirs.linear(f"{here}.after_mlp.0", f"{block}.before_second_addition_layernorm")
    return decoder_part(theirs, config, ours)


def _text_tokenizer(source: Source, path: Path, text_length: int) -> PaddedTokenizer:
    return PaddedTokenizer(
        PaddedTokenizerConfig(
            model=source.text(path),
            format="yttm",
            clean="lower",
            text_length=text_length,
            pad_id=PAD_ID,
            begin_id=BEGIN_ID,
            end_id=END_ID,
        )
    )


def _described(source: Source, path: Path, depth: int, width: int) -> dict[str, Any]:
    """The arguments of the project's DalleModel, and `hf_version`, from a `model_params.json` beside the weights or one
    folder up that describes a model of this size; empty if there is none."""
    for place in (path.parent / "model_params.json", path.parent.parent / "model_params.json"):
        if not place.is_file():
            continue
        content = source.json(place)
        models = [content, *(value for value in content.values() if isinstance(value, dict))]
        for model in sorted(models, key=lambda one: content.get(path.parent.name) is not one):
            values = {**model, **model.get("model_params", {})}
            size = (values.get("num_layers", depth), values.get("hidden_size", width))
            heads = values.get("num_attention_heads")
            if size == (depth, width) and type(heads) is int and heads > 0 and width % heads == 0:
                return values
    return {}


def _check_options(path: Path, described: dict[str, Any]) -> None:
    """Raise `CheckpointError` for arguments that make another network of the same weights."""
    for name, usual in OPTIONS.items():
        if described.get(name, usual[0]) not in usual:
            raise CheckpointError(f"{path} is described with {name} {described[name]!r}; only {usual[0]!r} is read")


def _version(path: Path, theirs: ForeignWeights, described: dict[str, Any], layout: RowLayout) -> str:
    """v2 or v3, from the masks in the file or, without them, from the description or the file's name."""
    stored = {
        name: theirs.constant(f"{place}{name}").bool()
        for place in MASK_PLACES
        for name in (*MASKS, "conv_mask")
        if f"{place}{name}" in theirs
    }
    for name, mask in stored.items():
        if name in MASKS and not mask.equal(attention_mask(layout, MASKS[name], CONVOLUTION_SIZE)):
            raise CheckpointError(f"{path} has a {name} that no version of the project makes; other masks are not read")
    versions = [
        version
        for version, pattern in CONVOLUTIONS.items()
        if "conv_mask" not in stored or stored["conv_mask"].equal(attention_mask(layout, pattern, CONVOLUTION_SIZE))
    ]
    said = described.get("hf_version", "v2" if "v2" in path.name else "v3")
    if not versions or said not in CONVOLUTIONS:
        raise CheckpointError(f"{path} is of version {said!r}, or its conv_mask of neither version; expected v2 or v3")
    return said if said in versions else versions[0]


def _pattern(layer: int, depth: int, version: str) -> Pattern:
    if (layer - 1) % 4 == 0:
        return "column"
    return CONVOLUTIONS[version] if layer == depth - 1 else "local"


FAMILY = Family(
    name="rudalle",
    expects="pytorch_model_v3.bin with bpe.model and vqgan.gumbelf8-sber.model.ckpt in one folder, or the latter alone",
    recognise=recognise,
    convert=convert,
)
