"""The picture sets of the emoji data: manifest, captions, sampling weights, and names."""

from collections import Counter

import pytest

from training.emoji.names import clip_art_text, codepoints_of, plain_codepoints, slug
from training.emoji.sets import (
    SETS_BY_NAME,
    SKIN_TONES,
    base_of,
    captions,
    load_manifest,
    weight,
)


def test_manifest_has_the_documented_splits() -> None:
    entries = load_manifest()
    assert [entry.key for entry in entries] == [f"{number:06d}" for number in range(20868)]
    assert len({entry.id for entry in entries}) == len(entries)
    assert Counter(entry.shard for entry in entries) == {
        "train-000": 5000,
        "train-001": 5000,
        "train-002": 5000,
        "train-003": 4526,
        "val_combo": 404,
        "val_family": 213,
        "val_modifier": 190,
        "val_concept_comp": 93,
        "val_concept_new": 197,
        "val_skin": 122,
        "val_misc": 123,
    }
    places = {entry.id: entry.shard for entry in entries}
    assert places["fluent-emoji-flat/paw-prints"] == "val_combo"
    assert places["noto-v1/dragon"] == "train-000"
    assert {entry.picture_set.name for entry in entries} == set(SETS_BY_NAME)


def test_one_skin_tone_of_five_for_each_concept_and_set() -> None:
    tones: dict[str, list[str]] = {}
    for entry in load_manifest():
        codepoints = plain_codepoints(entry.name)
        if entry.picture_set.name == "fluent-3d" and base_of(codepoints) != codepoints:
            tones.setdefault(base_of(codepoints), []).append(codepoints)
    assert len(tones) > 250
    assert all(len(variants) == 1 for variants in tones.values())
    chosen = Counter(tone for (variant,) in tones.values() for tone in SKIN_TONES if tone in variant)
    assert set(chosen) == set(SKIN_TONES) and min(chosen.values()) > 30


def test_base_is_the_concept_without_skin_tones() -> None:
    assert base_of("1f468-1f3fd-200d-2696") == "1f468-200d-2696"
    assert base_of("1f9d1-1f3fb-200d-1f91d-200d-1f9d1-1f3ff") == "1f9d1-200d-1f91d-200d-1f9d1"
    assert base_of("1f34a") == "1f34a"
    assert base_of("1f3fe") == "1f3fe"


@pytest.mark.parametrize(
    ("set_name", "name", "expected"),
    [
        (
            "noto",
            "man: beard",
            ["man, beard, noto style emoji", "a noto emoji of man, beard", "man, beard in noto style", "man, beard"],
        ),
        (
            "flag",
            "flag: Peru",
            [
                "flag of Peru, square flag style",
                "a square flag icon of flag of Peru",
                "flag of Peru in square flag style",
                "flag of Peru",
            ],
        ),
        ("icon-park", "camera", ["camera, line icon style", "camera line icon", "camera in line icon style", "camera"]),
        ("openclipart", "tea: a cup", ["tea: a cup, clip art", "clip art of tea: a cup", "tea: a cup"]),
    ],
)
def test_captions_are_templates_of_the_set(set_name: str, name: str, expected: list[str]) -> None:
    assert captions(SETS_BY_NAME[set_name], name) == expected


def test_captions_are_typed_as_people_type() -> None:
    noto = SETS_BY_NAME["noto"]
    assert captions(noto, "keycap: 10")[-1] == "keycap 10"
    assert captions(noto, "Japanese \u201chere\u201d button")[-1] == 'Japanese "here" button'
    assert captions(noto, "eight o\u2019clock")[-1] == "eight o'clock"


@pytest.mark.parametrize(
    ("set_name", "name", "codepoints", "group", "expected"),
    [
        ("noto", "tangerine", "1f34a", "food & drink", 1.0),
        ("noto", "flag: Peru", "1f1f5-1f1ea", "flags", 0.3),
        ("noto", "keycap: 1", "0031-20e3", "symbols", 0.5),
        ("noto", "raising hands: dark skin tone", "1f64c-1f3ff", "people & body", 0.5),
        ("noto", "kiss: dark skin tone", "1f48f-1f3ff", "people & body", 0.3),
        ("noto", "kiss mark", "1f48b", "smileys & emotion", 1.0),
        ("noto", "family: man, boy", "1f468-200d-1f466", "people & body", 0.3),
        ("noto", "family: adult, child", "1f9d1-200d-1f9d2", "people & body", 1.0),
        ("noto", "meteor", None, None, 1.0),
        ("flag", "flag: Peru", "1f1f5-1f1ea", "flags", 0.2),
        ("icon-park", "camera", None, None, 0.3),
        ("openclipart", "camera", None, None, 0.5),
    ],
)
def test_weight_is_low_for_what_is_many(
    set_name: str, name: str, codepoints: str | None, group: str | None, expected: float
) -> None:
    assert weight(SETS_BY_NAME[set_name], name=name, codepoints=codepoints, group=group) == expected


def test_names_become_slugs_and_characters_code_points() -> None:
    assert slug("Japanese \u201cno vacancy\u201d button") == "japanese-no-vacancy-button"
    assert slug("flag: Côte d\u2019Ivoire") == "flag-cote-divoire"
    assert slug("Bosnia & Herzegovina") == "bosnia-and-herzegovina"
    assert codepoints_of("©️") == "00a9"
    assert codepoints_of("🏴‍☠️") == "1f3f4-200d-2620"
    assert plain_codepoints("39-fe0f-20e3") == "0039-20e3"


def test_clip_art_is_called_by_its_title_or_its_file() -> None:
    svg = (
        "<dc:title>{}</dc:title><rdf:li>Hash</rdf:li><rdf:li>fruit</rdf:li><rdf:li/><rdf:li />"
        "<rdf:li>signs_and_symbols</rdf:li>"
    )
    keywords = ["fruit", "signs and symbols"]
    assert clip_art_text(svg.format("Rondelle d&apos;orange 2"), "food/x_01.svg") == ("rondelle d'orange", keywords)
    assert clip_art_text(svg.format("Homes Clipart"), "homes/red_home_03.svg") == ("red home", keywords)
    assert clip_art_text("<svg/>", "homes/home15.svg") == ("home", [])
