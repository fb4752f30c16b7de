"""Marian models against transformers: text ids, logits, greedy and beam search, and what is refused."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from torch import Tensor

from dalle.checkpoint.translator import load_translator
from dalle.errors import CheckpointError
from dalle.interop.marian import load_marian
from dalle.text.marian import MarianTokenizer
from dalle.translate.encoder_decoder import EncoderDecoder
from dalle.translate.search import SearchConfig, beam_search, greedy_search
from dalle.translate.translator import Translator
from tests.support.golden import distance
from tests.support.interop_command import run
from tests.support.translators import ENGLISH, SENTENCES, marian_tokenizer, write_marian

CHARACTERS = (
    "abc ABC éèüñçß 가나각힣 あパプガ 漢字 \u3000\u00a0\t\u2581\uff0e\uff0c\uff01\uff46\uff55\uff37①½ﬁ㍍ｶﾞ<s>/🐼👩"
    "\u200d🎨❤️\u0301\u0308\u0327\u200b\u200d\ufeff\u1100\u1161\u11a8\u0e49"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_marian(tmp_path_factory.mktemp("marian") / "opus-mt-fr-en")


@pytest.fixture(scope="module")
def translator(folder: Path) -> Translator:
    return load_marian(folder)


@pytest.fixture(scope="module")
def peer(folder: Path) -> Any:
    model: Any = transformers.MarianMTModel.from_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module")
def sources(translator: Translator) -> Tensor:
    """Sources of several lengths, so that there is padding."""
    return translator.pad([translator.encode(sentence) for sentence in SENTENCES])


def test_text_ids_are_those_of_transformers(folder: Path, translator: Translator) -> None:
    theirs, tokenizer = marian_tokenizer(folder), translator.text_tokenizer
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
    assert isinstance(tokenizer, MarianTokenizer)
    chance, num_unknown = random.Random(0), 0
    texts = [*SENTENCES, *ENGLISH, ">>eng<< le panda", ">>eng<<le panda", "a>>eng<<", ">>xyz<< panda", ">>eng", ""]
    texts += ["e\u0301toile", "\u1112\u1161\u11ab국", "ｶﾞ", "  le   panda  ", "\u2581le", "漢字 ☃ le", "a\u0308\u0301"]
    texts += [chance.choice(SENTENCES)[chance.randint(0, 5) :] + " " + chance.choice(ENGLISH) for _ in range(60)]
    texts += ["".join(chance.choices(CHARACTERS, k=chance.randint(1, 14))) for _ in range(600)]
    texts += [
        "".join(
            chr(chance.choice([chance.randint(1, 0x36F), chance.randint(0x3040, 0xD7A3), 32, 97])) for _ in range(9)
        )
        for _ in range(600)
    ]
    for text in texts:
        if any(special in text for special in ("</s>", "<unk>", "<pad>")):
            continue
        ids = tokenizer.tokenize(text)
        assert [*ids, 0] == theirs(text)["input_ids"], ascii(text)
        num_unknown += tokenizer.config.unknown_id in ids
        if not text.startswith(">>"):
            pieces = processor.encode(text, out_type=str)
            assert len(tokenizer.unknown(text)) <= sum(piece not in theirs.encoder for piece in pieces)
    assert num_unknown > 300, "unknown characters are among them"


def test_no_text_is_tokenized_to_a_special_token(translator: Translator) -> None:
    tokenizer = translator.text_tokenizer
    assert isinstance(tokenizer, MarianTokenizer)
    ids = tokenizer.tokenize("</s> le <pad> panda <unk> >>eng<<")
    assert tokenizer.config.end_id not in ids and tokenizer.config.pad_id not in ids


def test_texts_of_ids_are_those_of_transformers(folder: Path, translator: Translator) -> None:
    theirs, chance = marian_tokenizer(folder), random.Random(1)
    for _ in range(300):
        ids = [chance.randrange(translator.network.config.vocab_size) for _ in range(chance.randint(0, 12))]
        assert translator.text_tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_unknown_parts_of_a_sentence_are_reported(translator: Translator) -> None:
    (found,) = translator.translate(["le panda 漢字 ☃"])
    assert found.unknown == ("漢字", "☃")


def test_logits_are_those_of_transformers(translator: Translator, peer: Any, sources: Tensor) -> None:
    targets = torch.randint(2, 60, (len(sources), 9))
    inputs = torch.cat([torch.full((len(sources), 1), translator.network.config.start_id), targets[:, :-1]], dim=1)
    mask = sources != translator.network.config.pad_id
    assert not mask.all()
    with torch.no_grad():
        expected = peer(input_ids=sources, attention_mask=mask.long(), decoder_input_ids=inputs).logits
        assert distance(translator.network(sources, targets), expected) < 1e-5
    assert expected.std() > 1


@pytest.mark.parametrize("act", ["relu", "gelu"])
@pytest.mark.parametrize("scale", [False, True])
def test_logits_of_other_shapes(act: str, scale: bool, tmp_path: Path) -> None:
    changes = {"activation_function": act, "scale_embedding": scale, "d_model": 24, "decoder_layers": 1}
    folder = write_marian(tmp_path / "model", **changes)
    ours = load_marian(folder).network
    peer: Any = transformers.MarianMTModel.from_pretrained(folder)
    peer.eval()
    sources, targets = torch.randint(2, 60, (2, 7)), torch.randint(2, 60, (2, 5))
    inputs = torch.cat([torch.full((2, 1), ours.config.start_id), targets[:, :-1]], dim=1)
    with torch.no_grad():
        assert distance(ours(sources, targets), peer(input_ids=sources, decoder_input_ids=inputs).logits) < 1e-5


@pytest.mark.parametrize(("num_beams", "power"), [(1, 1.0), (2, 0.6), (2, 1.0), (5, 0.6), (5, 1.0)])
def test_search_finds_what_transformers_find(translator: Translator, peer: Any, num_beams: int, power: float) -> None:
    network, limit, compared = translator.network, 8, set[tuple[int, ...]]()
    sources = torch.randint(2, network.config.vocab_size - 1, (40, 9))
    sources[:20, 6:] = torch.tensor([network.config.end_id, *[network.config.pad_id] * 2])
    for bias in (2.5, 3.0, 3.5, 4.0, 4.5, 5.0):  # random networks rarely end by themselves
        ends = torch.zeros(network.config.vocab_size)
        ends[network.config.end_id] = bias
        compared |= _compared(network, peer, sources, limit, num_beams, power, ends)
    assert len(compared) >= 2, compared


@torch.no_grad()
def _compared(
    network: EncoderDecoder, peer: Any, sources: Tensor, limit: int, num_beams: int, power: float, ends: Tensor
) -> set[tuple[int, ...]]:
    """Compares the searches with `ends` added to the logits, and returns the translations that are the same."""
    pad_id, end_id, head_bias = network.config.pad_id, network.config.end_id, network.head_bias
    assert head_bias is not None
    config = SearchConfig(num_beams=num_beams, normalisation="power", length_penalty=power)
    head_bias.add_(ends)
    peer.final_logits_bias += ends
    found = (greedy_search if num_beams == 1 else beam_search)(network, sources, [limit] * len(sources), config)
    beams = {"length_penalty": power, "early_stopping": "never"} if num_beams > 1 else {}
    expected = peer.generate(
        input_ids=sources,
        attention_mask=(sources != pad_id).long(),
        num_beams=num_beams,
        max_length=limit + 1,
        bad_words_ids=[[pad_id]],
        forced_eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
        **beams,
    )
    head_bias.sub_(ends)
    peer.final_logits_bias -= ends
    same = set[tuple[int, ...]]()
    for number, (one, ids) in enumerate(zip(found, expected.sequences[:, 1:].tolist(), strict=True)):
        theirs = tuple(token for token in ids if token != pad_id)
        has_end = theirs[-1] == end_id
        if num_beams > 1 and not has_end:
            assert len(theirs) == limit, "there, a translation that was cut counts; here, only if none has an end"
            continue
        assert one.ids == (theirs[:-1] if has_end else theirs) and one.finished == has_end
        if num_beams > 1:
            assert one.score == pytest.approx(float(expected.sequences_scores[number]), abs=1e-5)
        same.add(one.ids)
    return same


def test_a_folder_is_imported_as_a_translator(folder: Path, translator: Translator, tmp_path: Path) -> None:
    out = tmp_path / "fr-en"
    expected = f"marian: {out}, a translator directory, from fr into en\n"
    assert run("import", folder, "--out", out) == (0, expected)
    loaded = load_translator(out)
    assert loaded.name == "fr-en" and len(loaded.digest) == 64
    assert loaded.text.source_languages == ("fr",) and loaded.search.num_beams == 4
    assert loaded.text_tokenizer.content == translator.text_tokenizer.content
    assert loaded.translate(list(SENTENCES)) == translator.translate(list(SENTENCES))
    code, text = run("import", folder, "--out", out)
    assert code == 2 and "--overwrite replaces it" in text
    assert run("import", folder, "--out", out, "--overwrite", "--family", "marian") == (0, expected)


def test_weights_may_be_a_file_of_torch_save(folder: Path, tmp_path: Path, sources: Tensor, peer: Any) -> None:
    """Older files have the copies of the embedding and the positions too, and half precision."""
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    (old / "model.safetensors").unlink()
    weights = {name: tensor.half() for name, tensor in peer.state_dict().items()}
    assert {"lm_head.weight", "model.encoder.embed_positions.weight"} <= {*weights}
    torch.save(weights, old / "pytorch_model.bin")
    read, targets = load_marian(old).network, torch.randint(2, 60, (len(sources), 5))
    with torch.no_grad():
        assert distance(read(sources, targets), load_marian(folder).network(sources, targets)) < 0.2
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    torch.save(weights, old / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight, of shape .* is not model\.shared\.weight, whose copy"):
        load_marian(old)
    weights["lm_head.weight"] = weights["model.shared.weight"]
    weights["model.decoder.embed_positions.weight"] = weights["model.decoder.embed_positions.weight"].flip(1)
    torch.save(weights, old / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"embed_positions\.weight, of shape .* is not sinusoids of its shape"):
        load_marian(old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalize_before": True}, "its normalize_before is True; only False is supported"),
        ({"share_encoder_decoder_embeddings": False}, "its share_encoder_decoder_embeddings is False; only True"),
        ({"decoder_ffn_dim": 64}, "its encoder_ffn_dim is 48 and its decoder_ffn_dim 64; they must be the same"),
        ({"activation_function": "tanh"}, "its activation_function is 'tanh'; known are swish, silu, relu, gelu"),
        ({"encoder_attention_heads": 5, "decoder_attention_heads": 5}, "width is 32; it must be a multiple of 5"),
        ({"d_model": None}, "width must be int, not None"),
        ({"eos_token_id": 100000}, "end_id 100000 is not in the vocabulary"),
        ({"num_beams": 0}, "num_beams is 0; it must be at least 1"),
        ({"encoder_layers": 3}, r"lacks model\.encoder\.layers\.2\.self_attn_layer_norm\.weight"),
        ({"decoder_layers": 1}, r"has model\.decoder\.layers\.1\.\S+, which no EncoderDecoder has a place for"),
        ({"d_model": 16}, r"model\.shared\.weight has shape \(\d+, 32\); the others imply \(\d+, 16\)"),
        ({"vocab_size": 50, "decoder_vocab_size": 50, "pad_token_id": 49}, r"vocab\.json has \d+ pieces; expected one"),
    ],
)
def test_a_model_of_another_shape_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    settings = json.loads((other / "config.json").read_text())
    (other / "generation_config.json").unlink()
    settings |= {"num_beams": 4, "decoder_start_token_id": change.get("pad_token_id", settings["pad_token_id"])}
    (other / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(CheckpointError, match=message):
        load_marian(other)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("source.spm", None, r"has no source\.spm \(SentencePiece model of the source language\)"),
        ("vocab.json", None, r"has no vocab\.json"),
        ("model.safetensors", None, r"has no model\.safetensors \(or pytorch_model\.bin: weights of a Marian model\)"),
        ("source.spm", b"\xff\xff\xff", "source.spm is not a SentencePiece model, or an incomplete one"),
        ("source.spm", b"", "source.spm is not a SentencePiece model: it has no pieces"),
        ("vocab.json", b"[]", "is not a mapping of names to values"),
        ("config.json", b'{"model_type": "bart"}', "its model_type is 'bart', not 'marian'"),
        ("config.json", b'{"model_type": "marian"}', "does not describe a Marian model that is supported: it has no"),
    ],
)
def test_a_damaged_folder_is_refused(
    folder: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / name).unlink()
    if content is not None:
        (other / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_marian(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "bpe"}, "has a SentencePiece model that is not unigram"),
        ({"user_defined_symbols": ["<extra>"]}, "has user-defined pieces such as '<extra>'"),
        ({"byte_fallback": True}, "has pieces for bytes such as '<0x00>'"),
        ({"treat_whitespace_as_suffix": True}, "does not mark spaces in front of its pieces"),
    ],
)
def test_other_models_of_sentencepiece_are_refused(
    folder: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    prefix = str(other / "trained")
    sizes = {"vocab_size": 400, "hard_vocab_limit": options.get("model_type") == "bpe", "minloglevel": 2}
    if options.get("model_type") == "bpe":
        sizes["vocab_size"] = 120
    train: Any = sentencepiece.SentencePieceTrainer.train
    train(sentence_iterator=iter(SENTENCES * 3), model_prefix=prefix, **sizes, **options)
    shutil.move(f"{prefix}.model", other / "source.spm")
    with pytest.raises(CheckpointError, match=message):
        load_marian(other)
