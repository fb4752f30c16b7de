"""Explanations of pictures: words and their places, maps, alternatives, the page and the command."""

import base64
import dataclasses
import json
import re
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dalle import DALLE, Prefix, SamplingParams
from dalle.cli import app
from dalle.decoder.replay import replay
from dalle.errors import ParameterError
from dalle.explain import maps as maps_module
from dalle.explain.chosen import read_numbers
from dalle.explain.explanation import Explanation, explain
from dalle.explain.maps import AttentionMaps
from dalle.explain.page import html_page, json_object, quantized
from dalle.images import encode_image
from dalle.receipt import Receipt, read_receipt
from dalle.text.bpe import TextTokenizer
from dalle.text.classes import ClassTokenizer
from dalle.text.pieces import pieces_of, words_of
from tests.dalle.test_padded import padded

PROMPT = "a red, panda"


@pytest.fixture(scope="module")
def receipt(model: DALLE) -> Receipt:
    return next(model.generate(PROMPT, SamplingParams(guidance_scale=3.0, top_k=16), seed=7)).receipt


@pytest.fixture(scope="module")
def explained(model: DALLE, receipt: Receipt) -> Explanation:
    return explain(model, receipt)


# words


def test_words_are_cut_at_spaces_and_punctuation(text_tokenizer: TextTokenizer) -> None:
    tokens = text_tokenizer.tokenize("a red, panda")
    pieces = pieces_of(text_tokenizer, tokens)
    assert words_of(pieces) == ["a", "red", ",", "panda"]
    assert "".join(piece.text for piece in pieces) == "a red, panda"
    ids = text_tokenizer.fit(tokens)
    assert [int(ids[piece.place]) for piece in pieces] == tokens == [piece.id for piece in pieces]


def test_a_character_of_several_tokens_is_one_word(text_tokenizer: TextTokenizer) -> None:
    tokens = text_tokenizer.tokenize("a \N{RED APPLE}")
    pieces = pieces_of(text_tokenizer, tokens)
    assert len(tokens) >= 4 and words_of(pieces) == ["a", "\N{RED APPLE}"]
    assert [piece.text for piece in pieces if piece.text.strip()] == ["a", "\N{RED APPLE}"]


def test_tokens_that_do_not_fit_are_left_out(text_tokenizer: TextTokenizer) -> None:
    tokens = text_tokenizer.tokenize("red panda " * 12)
    pieces = pieces_of(text_tokenizer, tokens)
    assert [piece.place for piece in pieces] == [*range(text_tokenizer.max_tokens)]


def test_words_of_other_projects() -> None:
    yttm = padded()
    pieces = pieces_of(yttm, yttm.tokenize("abc a"))
    assert words_of(pieces) == ["abc", "a"]
    assert [(piece.place, piece.word) for piece in pieces] == [(1, 0), (2, 1), (3, 1)]
    assert [piece.place for piece in pieces_of(ClassTokenizer(10), [7])] == [0]
    assert words_of(pieces_of(ClassTokenizer(10), [7])) == ["7"] and pieces_of(yttm, []) == []


# maps


def test_maps_are_the_weights_of_the_replay(model: DALLE, receipt: Receipt, explained: Explanation) -> None:
    request = model.request(PROMPT, SamplingParams(), seed=0)
    seen: list[torch.Tensor] = []
    codes = torch.tensor([*chain.from_iterable(receipt.codes)])
    replay(model.decoder, request.text_ids, codes, on_layer=lambda layer, weights: seen.append(weights))
    text, earlier = explained.attention.text, explained.attention.patches
    assert text.shape == (2, 4, 16, len(explained.columns)) and earlier.shape == (2, 4, 120)
    assert torch.allclose(text.sum(-1)[..., 0], torch.ones(2, 4)), "the first patch attends to text alone"
    first = model.decoder.layout.first_code
    for layer in range(2):
        assert torch.allclose(earlier[layer, :, 3:6], seen[layer][:, 3, first : first + 3])
        tokens = [place for place, one in enumerate(request.text_ids.tolist()) if one != 0]
        assert torch.allclose(text[layer], seen[layer][:, :, tokens]), "all but padding, in the order of the row"
    whole = text.sum(-1) + torch.stack(
        [earlier[..., i * (i - 1) // 2 : i * (i + 1) // 2].sum(-1) for i in range(16)], -1
    )
    assert (whole - 1).abs().max() < 1e-5
    assert [column.role for column in explained.columns[-2:]] == ["token", "end"]
    assert explained.words == ["a", "red", ",", "panda"]


def test_layers_and_heads_can_be_chosen(model: DALLE, receipt: Receipt, explained: Explanation) -> None:
    some = explain(model, receipt, layers=[2], heads=[3, 1])
    assert (some.layers, some.heads) == ([2], [1, 3])
    assert torch.equal(some.attention.text, explained.attention.text[1:, [0, 2]])
    assert torch.equal(some.attention.patches, explained.attention.patches[1:, [0, 2]])
    for chosen, message in (
        ({"layers": [3]}, "layer 3 is not there: the model has the layers 1..2"),
        ({"heads": [0]}, "head 0"),
    ):
        with pytest.raises(ParameterError, match=re.escape(message)):
            explain(model, receipt, **chosen)


@pytest.mark.parametrize(("limit", "shape"), [(8 * 48, (2, 4)), (8 * 48 - 1, (2, 1)), (2 * 48 - 1, (1, 1))])
def test_maps_that_are_too_large_are_averaged(
    monkeypatch: pytest.MonkeyPatch, limit: int, shape: tuple[int, int]
) -> None:
    monkeypatch.setattr(maps_module, "MAX_NUMBERS", limit)
    weights = torch.rand(2, 4, 16, 5 + 15)
    columns = torch.eye(5)[:, :3]
    maps = AttentionMaps([0, 1], [0, 1, 2, 3], columns, 16)
    for layer in range(2):
        maps.add(layer, weights[layer])
    assert maps.text.shape == (*shape, 16, 3)
    expected = weights[..., :3]
    expected = expected if shape[1] == 4 else expected.mean(1, keepdim=True)
    expected = expected if shape[0] == 2 else expected.mean(0, keepdim=True)
    assert torch.allclose(maps.text, expected)
    assert torch.allclose(maps.patches.mean((0, 1))[0], weights[:, :, 1, 5].mean())


# probabilities


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_alternatives_are_the_distribution_that_was_drawn_from(model: DALLE, scale: float) -> None:
    params = SamplingParams(guidance_scale=scale, temperature=0.7, top_k=3, guidance_schedule="linear")
    receipt = next(model.generate(PROMPT, params, seed=3)).receipt
    found = explain(model, receipt).alternatives
    assert found.agrees.all(), "probabilities and noise give the codes again"
    assert found.codes.shape == (16, 5)
    assert (found.probabilities[:, :3].sum(-1) - 1).abs().max() < 1e-5
    assert found.probabilities[:, 3:].eq(0).all(), "top_k excludes them"
    assert (found.probabilities.diff(dim=1) <= 0).all()
    drawn = torch.tensor([*chain.from_iterable(receipt.codes)])
    place = (found.codes == drawn[:, None]).float().argmax(1)
    assert torch.equal(found.probabilities.gather(1, place[:, None])[:, 0], found.drawn)


def test_another_seed_does_not_give_the_codes(model: DALLE, receipt: Receipt) -> None:
    assert not explain(model, dataclasses.replace(receipt, seed=8)).alternatives.agrees.all()


@torch.inference_mode()
def test_influence_is_what_is_lost_without_a_word(model: DALLE, receipt: Receipt, explained: Explanation) -> None:
    text = model.text_tokenizer
    assert text is not None and explained.influence is not None
    codes = torch.tensor([*chain.from_iterable(receipt.codes)])
    tokens = [piece.id for piece in pieces_of(text, text.tokenize(PROMPT)) if piece.word != 1]

    def likelihood(ids: torch.Tensor) -> torch.Tensor:
        return model.logits(ids, codes)[0].log_softmax(-1).gather(1, codes[:, None])[:, 0]

    expected = likelihood(text.encode(PROMPT)) - likelihood(text.fit(tokens))
    assert explained.influence.shape == (16, 4) and (explained.influence[:, 1] - expected).abs().max() < 1e-5


def test_pictures_of_alternatives(model: DALLE, receipt: Receipt, explained: Explanation) -> None:
    """A patch of the sheet is as in the picture where the drawn code is the likeliest one, and nearly as in a picture
    with that code alone where it is another one."""
    assert explained.sheet.size == (5 * 16, 16) and explained.image.size == (16, 16)
    sheet, picture = np.asarray(explained.sheet), np.asarray(explained.image)
    codes = [*chain.from_iterable(receipt.codes)]
    same = [i for i in range(16) if explained.alternatives.codes[i, 0] == codes[i]]
    assert same
    for i in same:
        y, x = i // 4 * 4, i % 4 * 4
        assert np.array_equal(sheet[y : y + 4, x : x + 4], picture[y : y + 4, x : x + 4])
    other = torch.tensor(codes)
    other[5] = explained.alternatives.codes[5, 2]  # a grid of four by four: nothing else is replaced with it
    alone = np.asarray(model.decode(other.view(4, 4)))
    assert np.array_equal(sheet[4:8, 32 + 4 : 32 + 8], alone[4:8, 4:8])


def test_a_picture_without_a_prompt_and_one_with_given_codes(model: DALLE, receipt: Receipt, tmp_path: Path) -> None:
    bare = explain(model, dataclasses.replace(receipt, prompt=""))
    assert bare.words == [] and bare.influence is None and [one.role for one in bare.columns] == ["end"]
    assert html_page(bare) and json_object(bare)["influence"] is None
    image = next(model.generate(PROMPT, seed=1)).image
    kept = next(model.generate(PROMPT, seed=2, prefix=Prefix(image=image, num_rows=2))).receipt
    assert explain(model, kept).kept == [True] * 8 + [False] * 8


def test_receipts_of_other_models_are_refused(model: DALLE, receipt: Receipt) -> None:
    with pytest.raises(ParameterError, match="the picture is of the model 'lively', digest 00"):
        explain(model, dataclasses.replace(receipt, model_digest="00"))
    with pytest.raises(ParameterError, match="its codes are 1 x 2 ids"):
        explain(model, dataclasses.replace(receipt, codes=((1, 2),)))


# page and command


def test_bytes_keep_small_weights() -> None:
    weights = torch.cat([torch.logspace(-5, 0, 1000), torch.zeros(1)])
    read = (np.frombuffer(quantized(weights), np.uint8) / 255) ** 2
    assert (np.abs(read - weights.numpy()) <= np.sqrt(weights.numpy()) / 255 + 1e-5).all() and read[-1] == 0


def test_a_page_needs_nothing_else(model: DALLE, receipt: Receipt, explained: Explanation) -> None:
    page = html_page(dataclasses.replace(explained, receipt=dataclasses.replace(receipt, prompt="</script><b>&")))
    assert page.count("</script>") == 2 and "<title>Why this picture? &lt;/script&gt;&lt;b&gt;&amp;</title>" in page
    assert not re.findall(r"https?:|<link|@import|url\(|src=", page), "nothing is loaded"
    assert "default-src 'none'; img-src data:; script-src 'sha256-" in page
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert match is not None
    data = json.loads(match[1])
    assert data["prompt"] == "</script><b>&" and data["grid"] == [4, 4] and data["agreeing"] == 16
    text = np.frombuffer(base64.b64decode(data["text"]["values"]), np.uint8).reshape(2, 4, 16, -1)
    assert np.abs((text / 255.0) ** 2 - explained.attention.text.numpy()).max() < 1 / 255
    assert len(base64.b64decode(data["patches"]["values"])) == 2 * 4 * 120
    assert len(page) < 60_000


def test_numbers_of_a_picture(explained: Explanation) -> None:
    found = json.loads(json.dumps(json_object(explained)))
    assert (found["object"], found["grid"], found["layers"], found["heads"]) == (
        "picture.explanation",
        [4, 4],
        [1, 2],
        [1, 2, 3, 4],
    )
    for place, patch in enumerate(found["patches"]):
        assert len(patch["attention_to_earlier_patches"]) == place
        whole = sum(column["attention"][place] for column in found["text"]) + sum(patch["attention_to_earlier_patches"])
        assert abs(whole - 1) < 1e-3
        assert patch["drawn_again"] and not patch["kept"] and 0 < patch["probability"] <= 1
    assert len(found["influence"]) == len(found["words"]) == 4


def test_numbers_as_people_type_them() -> None:
    assert read_numbers("layers", "1-3, 8,2") == [1, 2, 3, 8, 2]
    for wrong in ("", "a", "3-1", "1,,2", "-3", "99999"):
        with pytest.raises(ParameterError, match=r"layers is .*it must be numbers and ranges"):
            read_numbers("layers", wrong)


def command(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["explain", *(str(argument) for argument in arguments)])
    return done.exit_code, done.output


def test_the_command(model_folder: Path, model: DALLE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DALLE_MODELS", str(model_folder.parent))
    monkeypatch.chdir(tmp_path)
    (picture,) = model.generate("a red panda", seed=7)
    Path("panda.png").write_bytes(encode_image(picture.image, format="png", text=picture.receipt.to_text()))
    Path("bare.png").write_bytes(encode_image(picture.image, format="png"))
    code, output = command("panda.png")
    assert code == 0 and re.fullmatch(r"seed 7: panda.html, \d+ kB\n", output), output
    from_file = Path("panda.html").read_text()
    code, output = command("a", "red", "panda", "--seed", 7, "--model", model_folder, "--out", "drawn.html")
    assert code == 0 and Path("drawn.html").read_text() == from_file, output
    code, output = command("panda.png", "--json", "--layers", "2", "--heads", "1-2")
    assert code == 0 and (json.loads(output)["layers"], json.loads(output)["heads"]) == ([2], [1, 2])
    for arguments, message in (
        (("panda.png", "--json", "--out", "x.html"), "give one of them"),
        (("panda.png", "--seed", 7), "panda.png has the seed that it was drawn with"),
        (("none.png",), "none.png"),
        (("bare.png",), "a picture is explained from the receipt that `dalle` and the service write into its PNG"),
        (("panda.png", "--layers", "9"), "layer 9 is not there"),
        (("two words", "more"), "put the prompt into quotes"),
        (("panda.png", "--out", "./panda.png"), "--out panda.png is the picture itself: give the page another name"),
        (("panda.png", "--out", "none/x.html"), "the page cannot be written: there is no folder none; give --out"),
        (("panda.png", "--out", tmp_path), f"the page cannot be written: {tmp_path} is a folder; give --out"),
        ((tmp_path,), f"{tmp_path} is a folder, and one picture is explained: give its PNG file, or a prompt"),
        (("red " * 100, "--model", model_folder), "the limit is"),
    ):
        code, output = command(*arguments)
        assert code == 2 and message in output, output
    with monkeypatch.context() as patch:
        patch.setattr(DALLE, "generate", None)  # layers that are not there are refused before anything is drawn
        code, output = command("a", "red", "panda", "--layers", "9", "--model", model_folder)
        assert code == 2 and "layer 9 is not there" in output, output
    assert read_receipt("panda.png") == picture.receipt
    monkeypatch.setenv("DALLE_MODELS", str(tmp_path / "none"))
    code, output = command("panda.png")
    assert code == 2 and "which is not installed: see --model" in output, output
