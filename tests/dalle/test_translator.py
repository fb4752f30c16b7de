"""The translator: its directory, sentences and their translations, mistakes, and what each word looked at."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dalle.checkpoint.translator import find_translator, load_translator, save_translator
from dalle.errors import CheckpointError, LongPromptError, PromptError
from dalle.files import CannotWriteError
from dalle.translate.alignment import align, alignment_weights
from dalle.translate.search import SearchConfig, search
from dalle.translate.translator import TextConfig, Translator
from tests.support.translators import SENTENCES, network_of, translator_of


@pytest.fixture
def translator() -> Translator:
    return translator_of()


@pytest.fixture
def folder(translator: Translator, tmp_path: Path) -> Path:
    save_translator(tmp_path / "small", translator)
    return tmp_path / "small"


def test_a_directory_holds_the_whole_translator(translator: Translator, folder: Path) -> None:
    loaded = load_translator(folder)
    assert (loaded.name, loaded.text, loaded.search) == ("small", translator.text, translator.search)
    assert loaded.about == {"licence": "none"} and len(loaded.digest) == 64
    assert loaded.network.config == translator.network.config and not loaded.network.training
    for name, weight in translator.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], weight)
    assert loaded.network.embed_source.tokens is loaded.network.embed_target.tokens
    assert loaded.translate(SENTENCES[:3]) == translator.translate(SENTENCES[:3])
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.json", "tokenizer.json", "translator.safetensors"),
    ]


def test_weights_may_be_stored_in_half_precision(translator: Translator, folder: Path, tmp_path: Path) -> None:
    save_translator(tmp_path / "half", translator, dtype=torch.float16)
    sizes = [(path / "translator.safetensors").stat().st_size for path in (folder, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = load_translator(tmp_path / "half").network.embed_source.tokens.weight
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, translator.network.embed_source.tokens.weight.half().float())


def test_a_directory_is_found_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DALLE_MODELS", str(tmp_path))
    folder.rename(tmp_path / "other")
    (tmp_path / "translate").mkdir()
    (tmp_path / "other").rename(tmp_path / "translate" / "mine")
    assert find_translator("mine") == tmp_path / "translate" / "mine"
    assert find_translator(tmp_path) == tmp_path
    with pytest.raises(
        CheckpointError, match=r"there is no translator 'other': neither a directory nor one of: .*mine"
    ):
        find_translator("other")


def test_a_damaged_or_foreign_directory_is_refused(
    translator: Translator, folder: Path, tmp_path: Path, model_folder: Path
) -> None:
    with pytest.raises(CheckpointError, match='lacks "format": "dalle-translator"'):
        load_translator(model_folder)
    with pytest.raises(CheckpointError, match=r"has no config\.json: it is not a directory of format dalle-translator"):
        load_translator(tmp_path)
    path = folder / "config.json"
    values = json.loads(path.read_text())
    for change, message in (
        ({"format_version": 2}, "has format version 2; this release reads 1 to 1"),
        ({"search": {"num_beams": 0}}, "num_beams is 0; it must be at least 1"),
        ({"text": {"language": "fr"}}, "TextConfig has no key 'language'"),
        ({"text": None}, "'text' is missing, or is not an object"),
        ({"further": 1}, "has unknown keys: further"),
        ({"network": values["network"] | {"encoder_depth": 3}}, r"encoder\.2\.\S+ has shape None, expected"),
        ({"network": values["network"] | {"width": 32}}, "has shape .* expected"),
        ({"network": values["network"] | {"source_length": 23}}, "rows of 40; the network has .* sources of 23"),
        ({"network": values["network"] | {"vocab_size": 999}}, "the network has 999 .* they belong to different"),
    ):
        path.write_text(json.dumps(values | change))
        with pytest.raises(CheckpointError, match=message):
            load_translator(folder)
    path.write_text(json.dumps(values))
    weights = folder / "translator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="is damaged or not of this model"):
        load_translator(folder)
    with pytest.raises(CannotWriteError, match="holds a model directory already; --overwrite replaces it"):
        save_translator(folder, translator)
    save_translator(folder, translator, overwrite=True)
    assert load_translator(folder).name == "small"


def test_a_translation_has_a_report(translator: Translator) -> None:
    (found,) = translator.translate(["  LE  panda\troux \uff4dange "])
    assert found.source == "LE panda roux mange", "full-width letters are plain ones, blanks single spaces"
    assert list(found.source_ids) == [*translator.text_tokenizer.tokenize(found.source), 1]
    assert found.text == translator.text_tokenizer.decode(list(found.ids))
    (expected,) = search(translator.network, torch.tensor([found.source_ids]), translator.search)
    assert found.ids == expected.ids and found.score == expected.score
    assert found.finished == expected.finished and found.unknown == ()
    assert 0 < found.confidence <= 1
    (greedy,) = translator.translate(["le panda"], SearchConfig(num_beams=1))
    assert greedy.score == SearchConfig(num_beams=1).normalised(
        greedy.log_probability, len(greedy.ids) + greedy.finished
    )


def test_translations_are_in_the_order_of_their_sentences(translator: Translator) -> None:
    sentences = [*SENTENCES, "panda", *SENTENCES[:2]] * 6
    together = translator.translate(sentences)
    assert [one.source for one in together] == sentences
    for sentence in {*sentences}:
        (alone,) = translator.translate([sentence])
        assert {one.ids for one in together if one.source == sentence} == {alone.ids}
    assert translator.translate([]) == []


def test_mistakes_in_a_sentence(translator: Translator) -> None:
    for sentence in ("", "  \n\u3000"):
        with pytest.raises(PromptError, match="the sentence to translate is empty"):
            translator.translate(["panda", sentence])
    with pytest.raises(LongPromptError, match=r"has 4\d tokens; the limit is 39: give it in parts"):
        translator.translate(["\u2603" * 15])
    with pytest.raises(PromptError, match="is not Unicode text: lone surrogate"):
        translator.translate(["a\ud800"])
    exact = "\u2603" * 12
    assert len(translator.encode(exact)) <= 40


def test_the_unicode_form_is_a_choice() -> None:
    assert TextConfig(unicode="nfkc").normalised("ｱ\u3000①") == "ア 1"
    assert TextConfig(unicode="none").normalised(" ｱ\u3000① ") == "ｱ ①"


@torch.inference_mode()
def test_weights_of_an_alignment_are_the_plain_ones() -> None:
    """One head of one layer, computed from the layers one by one."""
    network = network_of(decoder_depth=1, num_heads=1, post_norm=True, positions="none")
    source, target = torch.tensor([4, 5, 6, 1]), torch.tensor([7, 8, 1])
    weights = alignment_weights(network, source, target)
    assert weights.shape == (1, 1, 3, 4)
    hidden, _ = network.encode(source[None])
    block: Any = network.decoder[0]
    x = network.embed_target(torch.tensor([[0, 7, 8]]))
    causal = torch.ones(3, 3, dtype=torch.bool).tril()
    x = block.attention_norm(x + block.attention(x, causal, None, None))
    keys = block.memory_attention.key_value(hidden[0])[:, :16]
    expected = (block.memory_attention.query(x[0]) @ keys.T / 4).softmax(-1)
    assert (weights[0, 0] - expected).abs().max() < 1e-6
    assert not any(one._forward_pre_hooks for one in network.modules())


def test_words_look_at_words(translator: Translator) -> None:
    tokenizer, network = translator.text_tokenizer, translator.network
    ids = tokenizer.tokenize("a red panda eats")
    source_ids = [*tokenizer.tokenize("le panda roux, 빨간"), 1]
    tokens = align(network, tokenizer, source_ids, ids, words=False)
    assert "".join(tokens.source) == "le panda roux, 빨간[end]" and "".join(tokens.target) == "a red panda eats[end]"
    assert tokens.weights.shape == (2, 4, len(ids) + 1, len(source_ids))
    assert (tokens.weights.sum(-1) - 1).abs().max() < 1e-5
    words = align(network, tokenizer, source_ids, ids, words=True)
    assert words.source == ("le", "panda", "roux", ",", "빨간", "[end]")
    assert words.target == ("a", "red", "panda", "eats", "[end]")
    assert words.weights.shape == (2, 4, 5, 6)
    assert (words.weights.sum(-1) - 1).abs().max() < 1e-5
    assert torch.allclose(words.weights[:, :, -1, -1], tokens.weights[:, :, -1, -1])
    (found,) = translator.translate(["le panda"])
    assert translator.align(found).weights.shape[:2] == (2, 4)
