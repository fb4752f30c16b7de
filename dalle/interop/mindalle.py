"""Family `mindalle`: checkpoints of kakaobrain/minDALL-E.

Files: the folder that its `from_pretrained` reads: `config.yaml`, `stage1_last.ckpt`, `stage2_last.ckpt`, `tokenizer/`.
Networks: stage 1, a VQGAN (taming-transformers' VQModel with `hparams` for `ddconfig`); stage 2, a decoder of captions;
the 16k BPE.
Not read: the ImageGPT of its transfer example, `type: igpt` (another network, which was never published).

In stage 2, text and codes have separate embeddings, positions and heads, which are concatenated here; queries, keys and
values are three layers. Padding is attended to like any token. The model was not trained without captions, so that
there is no guidance.
"""

from pathlib import Path
from typing import Any

from tokenizers.implementations.char_level_bpe import CharBPETokenizer

from dalle.checkpoint.weights import LazyTensor, Part
from dalle.decoder.config import DecoderConfig
from dalle.errors import CheckpointError
from dalle.interop.decoders import ForeignWeights, decoder_part, grid_side
from dalle.interop.family import Converted, Family, Source, agree, state_dict
from dalle.interop.vqgan import described_vqgan, inference_weights
from dalle.text.padded import PaddedTokenizer, PaddedTokenizerConfig

__all__ = ["FAMILY"]

CONFIG_FILE = "config.yaml"
STAGE_1_FILE = "stage1_last.ckpt"
STAGE_2_FILE = "stage2_last.ckpt"
VOCABULARY_FILE = "bpe-16k-vocab.json"
TYPE = "transformer1d"
"""Type of stage 2 that is read; the other, igpt, draws without captions and was never published."""
LICENCE = "code Apache-2.0; the published weights of stage 2 are CC-BY-NC-SA 4.0: not for commercial use"

DEFAULT_HEADS = 24
DEFAULT_RESOLUTION = 256
"""Default of the project's configuration, like `DEFAULT_HEADS`, for a file that has none."""


def recognise(source: Source) -> str | None:
    for path in _configs(source):
        stages = {"stage1", "stage2"} & {*_content(source, path)}
        if len(stages) == 2 or (stages and path.name == CONFIG_FILE):
            return f"{path} has {' and '.join(sorted(stages))}"
    return None


def _configs(source: Source) -> list[Path]:
    """The configuration that the project reads or, without one, files that may be another of its configurations."""
    return source.find(CONFIG_FILE) or source.find("*.yaml", "*.yml")


def _content(source: Source, path: Path) -> dict[str, Any]:
    try:
        return source.yaml(path)
    except CheckpointError:  # an unrelated YAML file
        if path.name == CONFIG_FILE:
            raise
        return {}


def convert(source: Source) -> Converted:
    for path in _configs(source):
        stage = _content(source, path).get("stage2")
        if isinstance(stage, dict) and stage.get("type", TYPE) != TYPE:
            raise CheckpointError(
                f"{path} has a stage2 of type {stage['type']}, which is not read; expected {TYPE}, for captions"
            )
    config_path = source.one(CONFIG_FILE, "the configuration of both stages")
    stages = source.yaml(config_path)
    # the project fills in defaults for what the file leaves out, even for a whole stage
    image_tokenizer, ignored = _image_tokenizer(source, stages.get("stage1") or {})
    whole = stages.get("stage2") or source.find(STAGE_2_FILE)
    text_tokenizer = _text_tokenizer(source, config_path) if whole else None
    return Converted(
        image_tokenizer=image_tokenizer,
        text_tokenizer=text_tokenizer,
        decoder=_decoder(source, config_path, text_tokenizer.config.pad_id) if text_tokenizer is not None else None,
        about={"licence": LICENCE, "project": "https://github.com/kakaobrain/minDALL-E"},
        files={
            "image_tokenizer": source.one(STAGE_1_FILE, "stage 1, the image tokenizer"),
            **({"text_tokenizer": source.one(VOCABULARY_FILE, "the vocabulary")} if whole else {}),
            **({"decoder": source.one(STAGE_2_FILE, "stage 2, the decoder")} if whole else {}),
        },
        ignored=ignored,
        derived=("pixels: [-1, 1], as the project trains",),
    )


def _image_tokenizer(source: Source, stage: Any) -> tuple[Part, tuple[str, ...]]:
    config_path = source.one(CONFIG_FILE, "the configuration of both stages")
    if not isinstance(stage, dict) or not isinstance(stage.get("hparams", {}), dict):
        raise CheckpointError(f"{config_path} has no stage1 with hparams")
    path = source.one(STAGE_1_FILE, "stage 1, the image tokenizer")
    described = {"resolution": DEFAULT_RESOLUTION, **stage.get("hparams", {})}
    described |= {"embed_dim": stage.get("embed_dim"), "n_embed": stage.get("n_embed")}
    weights, ignored = inference_weights(state_dict(path, source.torch(path), "state_dict"))
    if "tok_emb_txt.weight" in weights:
        raise CheckpointError(f"{path} has the weights of stage 2, the decoder; expected those of stage 1")
    return described_vqgan(path, weights, config_path, described), ignored


def _decoder(source: Source, config_path: Path, pad_id: int) -> Part:
    path = source.one(STAGE_2_FILE, "stage 2, the decoder")
    stage: dict[str, Any] = source.yaml(config_path).get("stage2") or {}
    params: dict[str, Any] = stage.get("hparams") or {}
    theirs = ForeignWeights(path, state_dict(path, source.torch(path), "state_dict"))
    if "post_quant_conv.weight" in theirs:
        raise CheckpointError(f"{path} has the weights of stage 1, the image tokenizer; expected those of stage 2")
    tables = ("tok_emb_txt", "tok_emb_img", "pos_emb_txt", "pos_emb_img", "head_txt", "head_img")
    theirs.check_width("ln_f.weight", *(f"{name}.weight" for name in tables))
    depth = theirs.count(r"blocks\.(\d+)\.")
    text_length, width = theirs.shape("pos_emb_txt.weight")
    num_heads = params.get("n_heads", DEFAULT_HEADS)
    if type(num_heads) is not int or num_heads < 1 or width % num_heads:
        raise CheckpointError(f"{config_path} says n_heads {num_heads!r}; expected a divisor of {width}, the width")
    side = grid_side(path, theirs.shape("pos_emb_img.weight")[0])
    text_head = "head_txt.weight" in theirs
    facts = {
        "embed_dim": (params.get("embed_dim"), width),
        "n_layers": (params.get("n_layers"), depth),
        "ctx_len_txt": (params.get("ctx_len_txt"), text_length),
        "ctx_len_img": (params.get("ctx_len_img"), side**2),
        "vocab_size_txt": (stage.get("vocab_size_txt"), theirs.shape("tok_emb_txt.weight")[0]),
        "vocab_size_img": (stage.get("vocab_size_img"), theirs.shape("tok_emb_img.weight")[0]),
        "attn_bias": (params.get("attn_bias"), "blocks.0.attn.query.bias" in theirs),
        "mlp_bias": (params.get("mlp_bias"), "blocks.0.mlp.0.bias" in theirs),
    }
    agree(config_path, facts, path)
    config = DecoderConfig(
        text_vocab_size=theirs.shape("tok_emb_txt.weight")[0],
        text_length=text_length,
        codebook_size=theirs.shape("tok_emb_img.weight")[0],
        grid_height=side,
        grid_width=side,
        pad_id=pad_id,
        attend_padding=True,
        guidance=False,
        width=width,
        depth=depth,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=width // num_heads,
        mlp="gelu_sigmoid" if params.get("gelu_use_approx") else "gelu",
        mlp_width=theirs.shape("blocks.0.mlp.0.weight")[0],
        norm="layernorm",
        qk_norm=False,
        positions="learned",
        qkv_bias="blocks.0.attn.query.bias" in theirs,
        output_bias="blocks.0.attn.proj.bias" in theirs,
        mlp_bias="blocks.0.mlp.0.bias" in theirs,
        text_head=text_head,
    )
    ours: dict[str, LazyTensor] = {
        "embedding.weight": theirs.take("tok_emb_txt.weight", "tok_emb_img.weight"),
        "position_embedding.table": theirs.take("pos_emb_txt.weight", "pos_emb_img.weight"),
        "head.weight": theirs.take(*(["head_txt.weight"] if text_head else []), "head_img.weight"),
        **theirs.linear("final_norm", "ln_f"),
    }
    for i in range(depth):
        here, block = f"blocks.{i}", f"blocks.{i}"
        ours |= theirs.linear(f"{here}.attention_norm", f"{block}.ln1")
        ours |= theirs.linear(f"{here}.attention.qkv", *(f"{block}.attn.{part}" for part in ("query", "key", "value")))
        ours |= theirs.linear(f"{here}.attention.output", f"{block}.attn.proj")
        ours |= theirs.linear(f"{here}.mlp_norm", f"{block}.ln2")
        ours |= theirs.linear(f"{here}.mlp.input", f"{block}.mlp.0")
        ours |= theirs.linear(f"{here}.mlp.output", f"{block}.mlp.2")
    return decoder_part(theirs, config, ours)


def _text_tokenizer(source: Source, config_path: Path) -> PaddedTokenizer:
    """The text tokenizer, built as in the project's `build_tokenizer`."""
    described = source.yaml(config_path).get("dataset") or {}
    if described.get("tokenizer_type", "CharBPE") != "CharBPE":
        raise CheckpointError(
            f"{config_path} has a tokenizer of type {described['tokenizer_type']!r}; expected CharBPE"
        )
    vocab_path = source.one(VOCABULARY_FILE, "the text tokenizer's vocabulary")
    merges_path = source.one("bpe-16k-merges.txt", "the text tokenizer's merges")
    lines = [line.removesuffix("\r") for line in source.text(merges_path).split("\n")]
    merges = [line for line in lines if line and not line.startswith("#version")]
    try:
        bpe = CharBPETokenizer(
            source.json(vocab_path),
            [(left, right) for left, right in (line.split(" ") for line in merges)],
            unk_token="[UNK]",
            lowercase=True,
        )
        bpe.add_special_tokens(["[PAD]"])
    except Exception as error:  # the package raises bare Exception
        raise CheckpointError(f"{merges_path} does not fit {vocab_path}: {error}") from error
    vocabulary = source.json(vocab_path)
    last = max((token for token in vocabulary if not token.startswith("[")), key=vocabulary.__getitem__)
    if len(last.removesuffix("</w>")) > 1 and last not in {line.replace(" ", "") for line in merges}:
        raise CheckpointError(f"{merges_path} has no merge for {last!r}, the last of {vocab_path}: is it complete?")
    pad_id = bpe.token_to_id("[PAD]")
    assert pad_id is not None
    return PaddedTokenizer(
        PaddedTokenizerConfig(
            model=bpe.to_str(),
            format="tokenizers",
            text_length=described.get("context_length", 64),
            pad_id=pad_id,
        )
    )


FAMILY = Family(
    name="mindalle",
    expects="a folder with config.yaml, stage1_last.ckpt, stage2_last.ckpt and tokenizer/",
    recognise=recognise,
    convert=convert,
)
