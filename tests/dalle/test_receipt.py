import base64
import dataclasses
import random
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dalle.errors import ImageError, ParameterError
from dalle.images import encode_image
from dalle.receipt import MAX_CHUNK_CHARACTERS, Receipt, describe, kept_mask, read_kept_mask, read_receipt

RECEIPT = Receipt(
    prompt="a red panda 판다 👩‍👩‍👧‍👦\nin the rain",
    negative_prompt=None,
    seed=2**63 - 1,
    index=3,
    parameters={"temperature": 0.9, "top_k": 100, "guidance_schedule": "cosine", "kept": None},
    model="emoji-small",
    model_digest="0123abcd" * 8,
    codes=((0, 1, 1023), (5, 6, 65535)),
    version="0.1.0",
)


def _write(path: Path, text: dict[str, str]) -> Path:
    path.write_bytes(encode_image(Image.new("RGB", (4, 4)), format="png", text=text))
    return path


def _round_trip(receipt: Receipt, path: Path) -> Receipt:
    return read_receipt(_write(path / "picture.png", receipt.to_text()))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"negative_prompt": ""},
        {"negative_prompt": "blurry, 흐린"},
        {"prompt": ""},
        {"prompt": "판다 🐼 a\r\nb\t\0" * 1000},
        {"parameters": {}},
        {"parameters": {"이름": "값\n", "on": True}},
        {"codes": ((7,),)},
        {"codes": ((0, 65536), (2**32 - 1, 1))},
        {"codes": tuple(tuple(range(row, row + 64)) for row in range(64))},
        {"version": "0+unknown"},
    ],
)
def test_a_picture_gives_its_receipt_back(changes: dict[str, Any], tmp_path: Path) -> None:
    receipt = dataclasses.replace(RECEIPT, **changes)
    assert _round_trip(receipt, tmp_path) == receipt


@given(
    prompt=st.text(),
    seed=st.integers(0, 2**63 - 1),
    codes=st.integers(1, 5).flatmap(
        lambda width: st.lists(st.tuples(*[st.integers(0, 2**32 - 1)] * width), min_size=1, max_size=5)
    ),
    parameters=st.dictionaries(
        st.text(),
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    ),
)
def test_text_round_trip(prompt: str, seed: int, codes: Any, parameters: Any) -> None:
    receipt = dataclasses.replace(RECEIPT, prompt=prompt, seed=seed, codes=tuple(codes), parameters=parameters)
    assert Receipt.from_text(receipt.to_text()) == receipt


def test_chunks_are_readable_but_for_the_codes() -> None:
    text = RECEIPT.to_text()
    assert text.pop("codes").startswith("uint16 2x3 ")
    assert text == {
        "prompt": RECEIPT.prompt,
        "seed": "9223372036854775807",
        "index": "3",
        "parameters": '{"temperature": 0.9, "top_k": 100, "guidance_schedule": "cosine", "kept": null}',
        "model": "emoji-small",
        "model_digest": RECEIPT.model_digest,
        "software": "dalle 0.1.0",
    }


def test_strings_are_plain(tmp_path: Path) -> None:
    """A receipt has plain strings, although Pillow reads text chunks as a subclass of str."""
    receipt = _round_trip(dataclasses.replace(RECEIPT, negative_prompt="x"), tmp_path)
    values = (receipt.prompt, receipt.negative_prompt, receipt.model, receipt.model_digest, receipt.version)
    assert {type(value) for value in values} == {str}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"index": -1}, "index is -1"),
        ({"model_digest": "XYZ"}, "model_digest is 'XYZ'"),
        ({"model_digest": ""}, "model_digest"),
        ({"codes": ()}, r"rows of \[\] ids"),
        ({"codes": ((),)}, r"rows of \[0\] ids"),
        ({"codes": ((1, 2), (3,))}, r"rows of \[1, 2\] ids"),
        ({"codes": ((-1, 2),)}, r"ids in -1\.\.2"),
        ({"codes": ((1, 2**32),)}, r"ids in 1\.\.4294967296"),
        ({"codes": ((0,) * 1025,) * 1024}, "has 1049600 ids; the limit is 1048576"),
        ({"parameters": {"top_p": float("nan")}}, "parameter 'top_p'"),
        ({"parameters": {"sizes": [1]}}, "parameter 'sizes'"),
    ],
)
def test_values_outside_their_range_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ParameterError, match=reason):
        dataclasses.replace(RECEIPT, **changes)


def _codes(shape: str, content: bytes) -> str:
    return f"uint16 {shape} {base64.b64encode(content).decode()}"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("seed", "__import__('os')", 'seed is "__import__'),
        ("seed", "-1", "seed is '-1'"),
        ("seed", "٣", "seed is '٣'"),
        ("seed", "9" * 20, "seed is 99999999999999999999"),
        ("index", "1.5", "index is '1.5'"),
        ("index", "1" * 5000, "index is '1111"),
        ("parameters", "{", "parameters is not JSON"),
        ("parameters", "[1]", "parameters is list"),
        ("parameters", "[" * 100_000, "parameters is not JSON"),
        ("parameters", '{"a": ' + "9" * 5000 + "}", "parameters is not JSON"),
        ("parameters", '{"top_p": NaN}', "parameter 'top_p'"),
        ("parameters", '{"top_p": 1e999}', "parameter 'top_p'"),
        ("parameters", '{"top_p": {}}', "parameter 'top_p'"),
        ("model_digest", "0123ABCD", "model_digest"),
        ("codes", "", "codes is not of the form"),
        ("codes", "uint8 1x1 AAAA", "codes is not of the form"),
        ("codes", "uint16 0x1 AAAA", "codes is not of the form"),
        ("codes", "uint16 9999999x9999999 AAAA", "codes says 9999999 x 9999999; the limit is 1048576 ids"),
        ("codes", "uint16 2x3 AAAAA", "codes cannot be unpacked"),
        ("codes", _codes("2x3", b"not zlib"), "codes cannot be unpacked"),
        ("codes", _codes("2x3", zlib.compress(bytes(11))), "does not unpack to 12 bytes"),
        ("codes", _codes("2x3", zlib.compress(bytes(13))), "does not unpack to 12 bytes"),
        ("codes", _codes("2x3", zlib.compress(bytes(12))[:-1]), "does not unpack to 12 bytes"),
        ("codes", _codes("2x3", zlib.compress(bytes(12)) + b"more"), "does not unpack to 12 bytes"),
        ("software", "Paint 3.1", "software is 'Paint 3.1'"),
        ("prompt", "x" * (MAX_CHUNK_CHARACTERS + 1), "'prompt' has more than"),
        ("negative_prompt", "x" * (MAX_CHUNK_CHARACTERS + 1), "'negative_prompt' has more than"),
    ],
)
def test_malformed_chunk_is_one_error_that_names_it(key: str, value: str, reason: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "hostile.png", RECEIPT.to_text() | {key: value})
    with pytest.raises(ImageError, match=reason) as caught:
        read_receipt(path)
    assert "hostile.png" in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_bomb_in_the_codes_is_not_unpacked() -> None:
    text = RECEIPT.to_text() | {"codes": _codes("2x3", zlib.compress(bytes(64 * 2**20), 9))}
    tracemalloc.start()
    with pytest.raises(ImageError, match="does not unpack to 12 bytes"):
        Receipt.from_text(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_bomb_in_a_compressed_chunk_is_refused(tmp_path: Path) -> None:
    info, path = PngInfo(), tmp_path / "bomb.png"
    info.add_itxt("prompt", "x" * 32 * 2**20, zip=True)
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    with pytest.raises(ImageError, match=r"bomb\.png has texts or a colour profile of more than 1048576 bytes"):
        read_receipt(path)


def test_chunks_after_the_pixels_are_read(tmp_path: Path) -> None:
    """Programs that edit metadata move text chunks behind the pixels."""
    path = _write(tmp_path / "edited.png", RECEIPT.to_text())
    content = path.read_bytes()
    first, pixels, end = content.index(b"iTXt") - 4, content.index(b"IDAT") - 4, content.index(b"IEND") - 4
    path.write_bytes(content[:first] + content[pixels:end] + content[first:pixels] + content[end:])
    assert read_receipt(path) == RECEIPT


def test_png_without_a_receipt_is_refused_naming_what_is_missing(tmp_path: Path) -> None:
    everything = "prompt, seed, index, parameters, model, model_digest, codes, software"
    with pytest.raises(ImageError, match=rf"plain\.png: no receipt of this library: the text chunks {everything} are"):
        read_receipt(_write(tmp_path / "plain.png", {}))
    foreign = {"prompt": "of another program", "parameters": "Steps: 20"}
    with pytest.raises(ImageError, match="chunks seed, index, model, model_digest, codes, software are missing"):
        read_receipt(_write(tmp_path / "foreign.png", foreign))


def test_what_is_not_a_whole_png_is_refused(tmp_path: Path) -> None:
    jpeg, cut = tmp_path / "a.jpg", _write(tmp_path / "cut.png", RECEIPT.to_text())
    jpeg.write_bytes(encode_image(Image.new("RGB", (4, 4)), format="jpeg"))
    cut.write_bytes(cut.read_bytes()[:-30])
    with pytest.raises(ImageError, match=r"a\.jpg is damaged, or not a PNG"):
        read_receipt(jpeg)
    with pytest.raises(ImageError, match=r"cut\.png is damaged"):
        read_receipt(cut)
    with pytest.raises(ImageError, match=r"none\.png cannot be read"):
        read_receipt(tmp_path / "none.png")


def test_description() -> None:
    receipt = dataclasses.replace(RECEIPT, prompt="a red panda", negative_prompt="rain", seed=7)
    assert describe(receipt).splitlines() == [
        "prompt               a red panda",
        "negative prompt      rain",
        "seed                 7",
        "index                3",
        "  temperature        0.9",
        "  top_k              100",
        '  guidance_schedule  "cosine"',
        "  kept               null",
        "model                emoji-small",
        f"model digest         {RECEIPT.model_digest}",
        "codes                2 x 3, ids 0..65535",
        "software             dalle 0.1.0",
    ]


def test_description_cannot_steer_the_terminal_or_forge_a_field() -> None:
    hostile = "\x1b[2Jcleared\r\x9b1m\u202eback\u2028\nseed 1\n👩‍👩‍👧‍👦"
    receipt = dataclasses.replace(RECEIPT, prompt=hostile, model=hostile, parameters={hostile: hostile})
    shown = describe(receipt)
    assert not {"\x1b", "\r", "\x9b", "\u202e", "\u2028"} & set(shown)
    assert r"\u001b[2Jcleared\u000d\u009b1m\u202eback\u2028" in shown
    assert "👩‍👩‍👧‍👦" in shown
    assert [line for line in shown.split("\n") if line.startswith("seed")] == [f"{'seed':26}{RECEIPT.seed}"]


def test_a_mask_of_kept_codes_reads_back() -> None:
    assert kept_mask([5, 0, -1, 7, -1, 3]) == "d4"
    chance = random.Random(0)
    for num_codes in (1, 4, 15, 64, 1023):
        kept = [chance.choice([-1, chance.randrange(4096)]) for _ in range(num_codes)]
        assert read_kept_mask(kept_mask(kept), num_codes) == tuple(code >= 0 for code in kept)
    for mask in ("d", "d44", "dG", "D4", ""):
        with pytest.raises(ImageError, match="kept is"):
            read_kept_mask(mask, 6)
