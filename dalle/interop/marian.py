"""Marian translation models (opus-mt) in transformers' layout: `config.json`, weights, `source.spm`, `vocab.json`.

The shape is that of Marian's `transformer` type (Junczys-Dowmunt et al. 2018, arXiv 1804.00344): norms behind the
additions, none behind the last block, sinusoidal positions, and one embedding for source, target and output. Models
with two vocabularies are refused. The weights may be safetensors or a file of torch.save.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dalle.checkpoint.translator import save_translator
from dalle.checkpoint.weights import LazyTensor
from dalle.errors import CheckpointError, ConfigError
from dalle.interop.family import Source, fit, state_dict
from dalle.interop.sentencepiece_files import read_pieces
from dalle.text.marian import MarianTokenizer, MarianTokenizerConfig
from dalle.transformer.masks import GridLayout
from dalle.transformer.positions import PositionEmbedding
from dalle.translate.config import EncoderDecoderConfig
from dalle.translate.encoder_decoder import EncoderDecoder
from dalle.translate.search import SearchConfig
from dalle.translate.translator import TextConfig, Translator

__all__ = ["import_marian", "is_marian", "load_marian"]

CONFIG_FILE, VOCABULARY_FILE, PIECES_FILE = "config.json", "vocab.json", "source.spm"
SEARCH_FILE, TOKENIZER_FILE = "generation_config.json", "tokenizer_config.json"
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
UNKNOWN = "<unk>"
ACTIVATIONS = {"swish": "silu", "silu": "silu", "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh"}
"""Names of activations in transformers, and here."""
FIXED = {
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "static_position_embeddings": True,
    "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
}
"""Settings that have one value in all models that are read; one that is missing has it."""
PARTS = {
    "attention_norm.": "self_attn_layer_norm.",
    "attention.qkv.": "self_attn.qkv.",
    "attention.output.": "self_attn.out_proj.",
    "memory_norm.": "encoder_attn_layer_norm.",
    "memory_attention.query.": "encoder_attn.q_proj.",
    "memory_attention.key_value.": "encoder_attn.kv.",
    "memory_attention.output.": "encoder_attn.out_proj.",
    "mlp_norm.": "final_layer_norm.",
    "mlp.input.": "fc1.",
    "mlp.output.": "fc2.",
}
"""Names of a block's parts here, and in transformers, where the layers of an attention are joined as ours are."""
EMBEDDING = "model.shared.weight"
COPIES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
"""Further names of the embedding in a file."""
HALF = 2e-3
"""Largest rounding error of sinusoids and embeddings in half precision."""
POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")


def is_marian(path: str | Path) -> bool:
    """Whether a folder has the settings of a Marian model of transformers."""
    path = Path(path) / CONFIG_FILE
    if not path.is_file():
        return False
    try:
        return Source(path).json(path).get("model_type") == "marian"
    except CheckpointError:
        return False


def import_marian(folder: str | Path, out: str | Path, *, overwrite: bool = False) -> Translator:
    """Convert a Marian model to a translator directory `out`, whose name becomes the translator's. Returns the
    translator. Raises as `load_marian` and `save_translator` do, and leaves `out` unchanged then."""
    out = Path(out)
    translator = load_marian(folder, name=out.resolve().name)
    save_translator(out, translator, overwrite=overwrite, sources=[Path(folder)])
    return translator


def load_marian(folder: str | Path, *, name: str | None = None) -> Translator:
    """Read a Marian model. No code in the files is run. name: that of the translator; by default the folder's.

    Raises `CheckpointError`, naming the file, for a model of another shape, and for weights, pieces or settings that
    are unknown, missing or contradictory.
    """
    source = Source(folder)
    config_path = source.one(CONFIG_FILE, "settings of a Marian model")
    vocabulary_path = source.one(VOCABULARY_FILE, "vocabulary of a Marian model")
    pieces_path = source.one(PIECES_FILE, "SentencePiece model of the source language")
    weights_path = _weights_file(source)
    settings = source.json(config_path)
    try:
        config = _config(settings)
        further = [source.json(path) for path in source.find(SEARCH_FILE)]
        search = _search({**settings, **(further[0] if further else {})})
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{config_path} does not describe a Marian model that is supported: {reason}") from error
    tokenizer = _tokenizer(vocabulary_path, source.json(vocabulary_path), pieces_path, config)
    languages = [source.json(path) for path in source.find(TOKENIZER_FILE)]
    return Translator(
        name=name or Path(folder).resolve().name,
        network=_network(weights_path, config, _weights(source, weights_path)),
        text_tokenizer=tokenizer,
        text=_text(languages[0] if languages else {}),
        search=search,
        about={"family": "marian", "licence": "see the model's card"},
    )


def _weights_file(source: Source) -> Path:
    for name in WEIGHTS_FILES:
        if source.find(name):
            return source.one(name, "weights of a Marian model")
    return source.one(WEIGHTS_FILES[0], f"or {WEIGHTS_FILES[1]}: weights of a Marian model")


def _config(settings: Mapping[str, Any]) -> EncoderDecoderConfig:
    if settings.get("model_type") != "marian":
        raise ValueError(f"its model_type is {settings.get('model_type')!r}, not 'marian'")
    for key, value in FIXED.items():
        if settings.get(key, value) != value:
            raise ValueError(f"its {key} is {settings[key]!r}; only {value} is supported")
    for one, other in (
        ("encoder_attention_heads", "decoder_attention_heads"),
        ("encoder_ffn_dim", "decoder_ffn_dim"),
        ("vocab_size", "decoder_vocab_size"),
    ):
        if (settings.get(other) or settings[one]) != settings[one]:
            raise ValueError(
                f"its {one} is {settings[one]!r} and its {other} {settings[other]!r}; they must be the same"
            )
    activation = settings["activation_function"]
    if activation not in ACTIVATIONS:
        raise ValueError(f"its activation_function is {activation!r}; known are {', '.join(ACTIVATIONS)}")
    length = settings["max_position_embeddings"]
    return EncoderDecoderConfig.from_dict(
        {
            "vocab_size": settings["vocab_size"],
            "pad_id": settings["pad_token_id"],
            "start_id": settings["decoder_start_token_id"],
            "end_id": settings["eos_token_id"],
            "source_length": length,
            "target_length": length,
            "width": settings["d_model"],
            "encoder_depth": settings["encoder_layers"],
            "decoder_depth": settings["decoder_layers"],
            "num_heads": settings["encoder_attention_heads"],
            "mlp": ACTIVATIONS[activation],
            "mlp_width": settings["encoder_ffn_dim"],
            "post_norm": True,
            "final_norm": False,
            "positions": "sinusoidal_halves",
            "scale_embeddings": settings["scale_embedding"],
            "head_bias": True,
        }
    )


def _search(settings: Mapping[str, Any]) -> SearchConfig:
    """The search that the files ask for: sums divided by the number of tokens, to a power."""
    return SearchConfig.from_dict(
        {
            "num_beams": settings.get("num_beams", 1),
            "normalisation": "power",
            "length_penalty": settings.get("length_penalty", 1.0),
        }
    )


def _text(settings: Mapping[str, Any]) -> TextConfig:
    source, target = (settings.get(key) or None for key in ("source_lang", "target_lang"))
    return TextConfig(
        source_languages=(str(source),) if source else (),
        target_language=str(target) if target else None,
        unicode="none",  # SentencePiece has its own table
    )


def _tokenizer(path: Path, ids: Mapping[str, Any], pieces_path: Path, config: EncoderDecoderConfig) -> MarianTokenizer:
    vocabulary = sorted(ids, key=lambda piece: str(ids[piece]).zfill(12))
    if [ids[piece] for piece in vocabulary] != list(range(config.vocab_size)):
        raise CheckpointError(
            f"{path} has {len(ids)} pieces; expected one for each of the ids 0..{config.vocab_size - 1} of the model"
        )
    if UNKNOWN not in ids:
        raise CheckpointError(f"{path} has no {UNKNOWN}, the piece that stands for all others")
    pieces = read_pieces(pieces_path)
    return MarianTokenizer(
        MarianTokenizerConfig(
            replacements=base64.b64encode(pieces.replacements).decode(),
            pieces=pieces.model.to_str(),
            vocabulary=tuple(vocabulary),
            text_length=config.source_length,
            pad_id=config.pad_id,
            end_id=config.end_id,
            unknown_id=ids[UNKNOWN],
        )
    )


def _weights(source: Source, path: Path) -> dict[str, LazyTensor]:
    return state_dict(path, source.tensors(path))


def _network(path: Path, config: EncoderDecoderConfig, weights: dict[str, LazyTensor]) -> EncoderDecoder:
    """The network with these weights: the projections of an attention are joined, and what the configuration gives is
    compared and left out."""
    for name in COPIES:
        if name in weights:
            weights.setdefault(EMBEDDING, weights[name])
            _check_same(path, name, weights.pop(name), weights[EMBEDDING].load(), f"{EMBEDDING}, whose copy it must be")
    waves = PositionEmbedding(config.positions, config.width, GridLayout(first_code=config.source_length))()
    for name in POSITIONS:
        if name in weights:
            _check_same(path, name, weights.pop(name), waves, "sinusoids of its shape")
    bias = weights.pop("final_logits_bias", None)
    weights["bias"] = LazyTensor.of(torch.zeros(config.vocab_size)) if bias is None else bias.then(torch.Tensor.flatten)
    for side, depth in (("encoder", config.encoder_depth), ("decoder", config.decoder_depth)):
        for i in range(depth):
            start = f"model.{side}.layers.{i}."
            for kind in ("weight", "bias"):
                _join(weights, f"{start}self_attn.", "qkv", ("q_proj", "k_proj", "v_proj"), kind)
                if side == "decoder":
                    _join(weights, f"{start}encoder_attn.", "kv", ("k_proj", "v_proj"), kind)
    with torch.device("meta"):
        names = {ours: _foreign(ours) for ours in EncoderDecoder(config).state_dict()}
    part = fit(path, EncoderDecoder, config, weights, names)
    network = EncoderDecoder(config)
    network.load_state_dict({ours: tensor.load().float() for ours, tensor in part.weights.items()})
    return network.eval()


def _check_same(path: Path, name: str, found: LazyTensor, expected: torch.Tensor, meaning: str) -> None:
    """Check that a weight has these numbers, within the rounding of half precision."""
    if found.shape != tuple(expected.shape) or (found.load().float() - expected.float()).abs().max() > HALF:
        raise CheckpointError(f"{path}: {name}, of shape {found.shape}, is not {meaning}")


def _join(weights: dict[str, LazyTensor], start: str, joined: str, parts: tuple[str, ...], kind: str) -> None:
    """Join layers that read the same, if all are there: `fit` names what is missing."""
    names = [f"{start}{part}.{kind}" for part in parts]
    if all(name in weights for name in names) and len({weights[name].shape[1:] for name in names}) == 1:
        weights[f"{start}{joined}.{kind}"] = LazyTensor.joined(*(weights.pop(name) for name in names))


def _foreign(name: str) -> str:
    """The name in transformers of a weight, in which the projections of an attention are joined."""
    if name.endswith("tokens.weight"):
        return EMBEDDING
    if name == "head_bias":
        return "bias"
    side, number, rest = name.split(".", 2)
    for ours, theirs in PARTS.items():
        if rest.startswith(ours):
            return f"model.{side}.layers.{number}.{theirs}{rest.removeprefix(ours)}"
    raise AssertionError(name)
