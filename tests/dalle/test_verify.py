"""`dalle verify` and `dalle decode`: genuine and altered pictures, and pictures decoded from codes."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from dalle import DALLE, Prefix
from dalle.cli import app
from dalle.decoder.engine import Engine
from dalle.images import encode_image, load_image
from dalle.receipt import Receipt, read_receipt
from dalle.verify import picture_of_receipt
from tests.support.batches import PROMPTS, contents, manifest, prompts_file, run


@pytest.fixture
def drawn(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PNG of an installed model, which is found by its digest."""
    monkeypatch.setenv("DALLE_MODELS", str(model_folder.parent))
    (picture,) = DALLE.load(model_folder).generate("a red panda", seed=7)
    return write(tmp_path / "picture.png", picture.image, picture.receipt)


def write(path: Path, image: Image.Image, receipt: Receipt | None) -> Path:
    path.write_bytes(encode_image(image, format="png", text=receipt.to_text() if receipt is not None else None))
    return path


def dalle(*arguments: object) -> tuple[int, str]:
    """The exit code, and everything that was printed."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_a_picture_as_it_was_drawn_is_good(drawn: Path) -> None:
    assert dalle("verify", drawn) == (0, "1 good\n")
    assert dalle("verify", "--resample", drawn) == (0, "1 good\n")


def altered(path: Path, change: str) -> None:
    receipt, image = read_receipt(path), load_image(path)
    match change:
        case "a code":
            codes = [list(row) for row in receipt.codes]
            codes[1][2] = (codes[1][2] + 1) % 32
            receipt = dataclasses.replace(receipt, codes=tuple(map(tuple, codes)))
        case "a pixel":
            image.putpixel((3, 3), (255, 0, 0) if image.getpixel((3, 3)) != (255, 0, 0) else (0, 0, 0))
        case "an impossible code":
            receipt = dataclasses.replace(receipt, codes=((99,) * 4,) * 4)
        case "another size":
            image = image.resize((8, 8))
        case "prompt":
            receipt = dataclasses.replace(receipt, prompt="a green heart")
        case "model":
            receipt = dataclasses.replace(receipt, model="greater")
        case "seed":
            receipt = dataclasses.replace(receipt, seed=8)
        case "index":
            receipt = dataclasses.replace(receipt, index=1)
        case "negative prompt":
            receipt = dataclasses.replace(receipt, negative_prompt="a fish")
        case "another temperature":
            receipt = dataclasses.replace(receipt, parameters=dict(receipt.parameters) | {"temperature": 5.0})
        case "another parameter":
            receipt = dataclasses.replace(receipt, parameters=dict(receipt.parameters) | {"steps": 50})
        case "parameters":
            receipt = dataclasses.replace(receipt, parameters=dict(receipt.parameters) | {"temperature": -1})
    write(path, image, receipt)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("a code", "of its pixels are not what its codes give"),
        ("a pixel", "0.4 % of its pixels are not what its codes give"),
        ("an impossible code", "ids up to 99; those of lively are 4 x 4 below 32"),
        ("another size", "it has 8 x 8 pixels, and its codes give 16 x 16"),
        ("model", "its receipt names the model 'greater', but its digest is that of 'lively'"),
    ],
)
def test_altered_pixels_and_codes_are_seen(change: str, reason: str, drawn: Path) -> None:
    altered(drawn, change)
    code, said = dalle("verify", drawn)
    assert code == 1 and f"{drawn}: altered: " in said and reason in said and said.endswith("1 altered\n")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("prompt", "codes differ"),
        ("seed", "codes differ"),
        ("index", "codes differ"),
        ("negative prompt", "codes differ"),
        ("another temperature", "codes differ"),
        ("another parameter", "it cannot be drawn from its receipt"),
        ("parameters", "it cannot be drawn from its receipt: temperature is -1"),
    ],
)
def test_an_altered_receipt_is_seen_when_it_is_drawn_again(change: str, reason: str, drawn: Path) -> None:
    altered(drawn, change)
    assert dalle("verify", drawn)[0] == 0
    code, said = dalle("verify", "--resample", drawn)
    assert code == 1 and reason in said


@pytest.mark.parametrize(
    ("step", "places", "verdict"),
    [
        ("compiled", [5], "1 good\n"),
        ("compiled", [15], "1 good\n"),
        ("eager", [5], "differ\n1 altered\n"),
        ("compiled", [5, 9], "differ\n1 altered\n"),
    ],
)
def test_near_ties_may_differ_when_it_is_drawn_again_by_another_step(
    step: str, places: list[int], verdict: str, drawn: Path, model_folder: Path
) -> None:
    """One code of the sixteen may differ from what is drawn after the codes before it."""
    model = DALLE.load(model_folder)
    receipt = read_receipt(drawn)
    codes = [code for row in receipt.codes for code in row]
    request = model.request(receipt.prompt, model.sampling, seed=receipt.seed)
    for place in places:
        codes[place] = (codes[place] + 1) % 32
        kept = torch.tensor(codes[: place + 1] + [-1] * (15 - place))
        if place < 15:
            codes = Engine(model.decoder, num_slots=8).run([dataclasses.replace(request, kept=kept)])[0].tolist()
    grid = tuple(tuple(codes[4 * row : 4 * row + 4]) for row in range(4))
    receipt = dataclasses.replace(receipt, codes=grid, step=step)
    code, said = dalle("verify", "--resample", write(drawn, picture_of_receipt(model, receipt), receipt))
    assert said.endswith(verdict) and code == ("altered" in verdict)


def test_kept_codes_are_kept_when_it_is_drawn_again(drawn: Path, model_folder: Path) -> None:
    prefix = Prefix(image=load_image(drawn), num_rows=2)
    (picture,) = DALLE.load(model_folder).generate("a fish", seed=1, prefix=prefix)
    assert dalle("verify", "--resample", write(drawn, picture.image, picture.receipt)) == (0, "1 good\n")


@pytest.fixture(params=["transparent", "opaque"])
def clear_drawn(
    request: pytest.FixtureRequest, clear: DALLE, clear_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A PNG of a model that draws transparency, named after its background."""
    monkeypatch.setenv("DALLE_MODELS", str(clear_folder.parent))
    (picture,) = clear.generate("a red panda", seed=7, background=request.param)
    assert read_receipt(write(tmp_path / "x.png", picture.image, picture.receipt)) == picture.receipt
    return (tmp_path / "x.png").rename(tmp_path / f"{request.param}.png")


def test_a_transparent_picture_and_one_over_white_are_good(clear_drawn: Path) -> None:
    with Image.open(clear_drawn) as image:
        assert image.mode == {"transparent": "RGBA", "opaque": "RGB"}[clear_drawn.stem]
    assert dalle("verify", "--resample", clear_drawn) == (0, "1 good\n")


def test_an_altered_alpha_is_seen(clear_drawn: Path) -> None:
    receipt, image = read_receipt(clear_drawn), load_image(clear_drawn, mode="RGBA")
    alpha = image.getchannel("A")
    place = next((x, y) for x in range(16) for y in range(16) if alpha.getpixel((x, y)) == 255)
    alpha.putpixel(place, 250)
    image.putalpha(alpha)
    code, said = dalle("verify", write(clear_drawn, image, receipt))
    assert code == 1 and "altered: 0.4 % of its pixels are not what its codes give" in said


def test_a_colour_below_an_alpha_of_0_is_no_alteration(clear: DALLE, clear_folder: Path, tmp_path: Path) -> None:
    """The colour of transparent pixels is ignored, since programs that optimise PNGs change it."""
    (picture,) = clear.generate("a red panda", seed=7)
    pixels = np.array(picture.image)
    assert (pixels[..., 3] == 0).any()
    pixels[pixels[..., 3] == 0, :3] = 255
    path = write(tmp_path / "picture.png", Image.fromarray(pixels), picture.receipt)
    assert dalle("verify", "--model", clear_folder, path) == (0, "1 good\n")


def test_a_background_that_is_not_that_of_the_receipt_is_seen(clear_drawn: Path) -> None:
    receipt, image = read_receipt(clear_drawn), load_image(clear_drawn, mode="RGBA")
    other = {"transparent": "opaque", "opaque": "transparent"}[str(receipt.parameters["background"])]
    claims = dataclasses.replace(receipt, parameters=dict(receipt.parameters) | {"background": other})
    assert dalle("verify", write(clear_drawn, image, claims))[0] == 1
    flat = load_image(clear_drawn)
    code, _ = dalle("verify", write(clear_drawn, flat, receipt))
    assert code == (0 if clear_drawn.stem == "opaque" else 1), "one laid over white is not the one that was drawn"
    wrong = dataclasses.replace(receipt, parameters=dict(receipt.parameters) | {"background": "pink"})
    code, said = dalle("verify", write(clear_drawn, image, wrong))
    assert code == 1 and "background is 'pink'; it must be transparent, opaque or auto" in said


def test_an_alpha_in_a_picture_of_a_model_without_is_seen(drawn: Path) -> None:
    receipt, image = read_receipt(drawn), load_image(drawn, mode="RGBA")
    image.putalpha(254)
    code, said = dalle("verify", write(drawn, image, receipt))
    assert code == 0, "one of 255 may be rounding"
    image.putalpha(250)
    code, said = dalle("verify", write(drawn, image, receipt))
    assert code == 1 and "100.0 % of its pixels" in said
    wrong = dataclasses.replace(receipt, parameters=dict(receipt.parameters) | {"background": "transparent"})
    code, said = dalle("verify", write(drawn, load_image(drawn), wrong))
    assert code == 1 and "the model lively draws no transparency" in said


def test_another_model_and_no_receipt_are_called_so(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt, image = read_receipt(drawn), load_image(drawn)
    foreign = write(tmp_path / "foreign.png", image, dataclasses.replace(receipt, model_digest="00ff" * 16))
    bare = write(tmp_path / "bare.png", image, None)
    (tmp_path / "cut.png").write_bytes(drawn.read_bytes()[:-30])
    code, said = dalle("verify", foreign)
    assert code == 1 and "other model: it is of the model 'lively', digest 00ff00ff00ff..." in said
    assert dalle("verify", "--model", "emoji", drawn)[0] == 1
    assert dalle("verify", bare)[0] == 1
    code, said = dalle("verify", tmp_path)
    assert (code == 1 and said.splitlines()[-1] == "1 good, 1 no receipt, 1 damaged, 1 other model") or sorted(
        said.splitlines()[-1].split(", ")
    ) == ["1 damaged", "1 good", "1 no receipt", "1 other model"]
    for path in (foreign, tmp_path / "cut.png"):
        path.unlink()
    assert dalle("verify", tmp_path)[0] == 0, "a folder may have pictures of other origin, such as a contact sheet"
    code, said = dalle("verify", tmp_path / "none.png")
    assert code == 2 and "there is no" in said


def test_codes_are_decoded_to_the_bytes_of_the_batch(model_folder: Path, tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path, [*PROMPTS, "{"], "p.txt")
    assert run(model_folder, prompts, tmp_path / "pictures") == 0
    assert run(model_folder, prompts, tmp_path / "codes", plan={"layout": "codes"}) == 0
    assert not (tmp_path / "codes/pictures").exists()
    code, said = dalle("decode", tmp_path / "codes/manifest.jsonl", "--out", tmp_path / "out", "--model", model_folder)
    assert (code, said) == (0, f"7 pictures: {tmp_path}/out\n")
    expected = contents(tmp_path / "pictures")
    assert contents(tmp_path / "out") == {
        Path(record["file"]).name: expected[record["file"]] for record in manifest(tmp_path / "pictures")
    }


def test_codes_are_decoded_with_the_background_that_was_asked_for(clear_folder: Path, tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path, [{"prompt": "a"}, {"prompt": "a", "background": "opaque"}])
    assert run(clear_folder, prompts, tmp_path / "pictures") == 0
    assert run(clear_folder, prompts, tmp_path / "codes", plan={"layout": "codes"}) == 0
    line = [tmp_path / "codes/manifest.jsonl", "--model", clear_folder]
    assert dalle("decode", *line, "--out", tmp_path / "out")[0] == 0
    files = [Path(record["file"]) for record in manifest(tmp_path / "pictures")]
    expected = {file.name: (tmp_path / "pictures" / file).read_bytes() for file in files}
    assert contents(tmp_path / "out") == expected
    assert dalle("decode", *line, "--out", tmp_path / "webp", "--format", "webp")[0] == 0
    assert dalle("decode", *line, "--out", tmp_path / "jpeg", "--format", "jpeg")[0] == 0
    modes: dict[str, list[str]] = {}
    for kind in ("png", "webp", "jpeg"):
        for file in files:
            with Image.open(tmp_path / (kind if kind != "png" else "out") / f"{file.stem}.{kind}") as image:
                modes[kind] = [*modes.get(kind, []), image.mode]
    assert modes == {"png": ["RGBA", "RGB"], "webp": ["RGBA", "RGB"], "jpeg": ["RGB", "RGB"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_digest": "00ff" * 16}, "its codes are of the model 'lively'"),
        ({"codes": "uint16 4x4 AAAA"}, "line 1: the receipt is malformed: codes"),
        ({"codes": "uint16 1x1 eNpjYAAAAAIAAQ=="}, "line 1: its codes are 1 x 1"),
        ({"key": "../x"}, "it must be the name of a file"),
        ({"seed": None}, "line 1: no receipt of this library: the text chunks seed are missing"),
    ],
)
def test_lines_that_cannot_be_decoded(change: dict[str, Any], message: str, model_folder: Path, tmp_path: Path) -> None:
    assert run(model_folder, prompts_file(tmp_path, ["a"], "p.txt"), tmp_path / "b", plan={"layout": "codes"}) == 0
    (record,) = manifest(tmp_path / "b")
    (tmp_path / "m.jsonl").write_text(json.dumps(record | change))
    code, said = dalle("decode", tmp_path / "m.jsonl", "--out", tmp_path / "out", "--model", model_folder)
    assert code == 2 and message in said
    shutil.rmtree(tmp_path / "out")


def test_a_folder_without_pictures_is_not_good(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, said = dalle("verify", tmp_path / "empty")
    assert code == 2 and "there are no PNGs in" in said
    drawn.rename(tmp_path / "empty/PICTURE.PNG")
    assert dalle("verify", tmp_path / "empty") == (0, "1 good\n")


def test_a_picture_that_moves_is_altered(drawn: Path) -> None:
    """An animation is altered even if its first frame is as it was drawn, since a viewer shows the others."""
    receipt, image = read_receipt(drawn), load_image(drawn)
    text = PngInfo()
    for name, value in receipt.to_text().items():
        text.add_itxt(name, value)
    image.save(drawn, pnginfo=text, save_all=True, append_images=[Image.new("RGB", image.size)])
    code, said = dalle("verify", drawn)
    assert code == 1 and "altered: it is an animation of 2 frames" in said
