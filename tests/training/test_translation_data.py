"""The translator's data, offline: names of real packages, phrases composed from them, and what is held out."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from dalle.errors import DataError
from dalle.files import CannotWriteError
from dalle.translate.languages import LANGUAGES, clean, folded
from dalle.translate.lexicon import SLOTS, Lexicon, lexicon_file
from tests.support.translation import unpacked_packages
from training.emoji.names import Annotation
from training.emoji.packages import Packages, fetch_npm
from training.translation.grammar import NounPhrase, phrase_fields
from training.translation.keywords import paired_words
from training.translation.lexicons import unambiguous
from training.translation.lines import SPLITS, Concepts, read_lines
from training.translation.notice import notice
from training.translation.sources import Concept, is_held_out, load_concepts
from training.translation.tones import tone_ways
from training.translation.words import Adjective, WordKind, templates_of, words_of
from training.translation_data import LEXICONS, SEEN_LEXICONS, TranslationDataOptions, build, write_data

NUM_PHRASES, NUM_VAL = 250, 30


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    return unpacked_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def built(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("translation")
    write_data(packages, TranslationDataOptions(out=out, phrases=NUM_PHRASES, val=NUM_VAL))
    return out


@pytest.fixture(scope="module")
def splits(built: Path) -> dict[str, list[dict[str, Any]]]:
    return {split: read_lines(built / f"{split}.jsonl") for split in SPLITS}


def test_the_same_options_give_the_same_bytes(built: Path, packages: Packages, tmp_path: Path) -> None:
    write_data(packages, TranslationDataOptions(out=tmp_path, phrases=NUM_PHRASES, val=NUM_VAL))
    files = [path.relative_to(built) for path in sorted(built.rglob("*")) if path.is_file()]
    assert len(files) == 4 + 2 + 2 * 6
    for file in files:
        assert (built / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_no_training_line_has_a_concept_that_is_held_out(
    packages: Packages, splits: dict[str, list[dict[str, Any]]]
) -> None:
    concepts = load_concepts(packages)
    held_out = [one for one in concepts if is_held_out(one.key)]
    assert 0.02 < len(held_out) / len(concepts) < 0.25, "the extract has more of them than the whole"
    keys = {one.key for one in held_out}
    for split in ("train", "val_seen", "val_phrases"):
        assert not keys & {line["concept"] for line in splits[split]}, split
    assert {line["concept"] for line in splits["val_concepts"]} <= keys
    for language in LANGUAGES:
        names = {folded(name, language) for one in held_out for name in one.names.get(language, ())}
        trained = {folded(clean(line["source"]), language) for line in splits["train"] if line["language"] == language}
        assert names and not names & trained
        assert any(line["language"] == language for line in splits["val_concepts"])


def test_the_same_concepts_are_held_out_whatever_else_there_is(packages: Packages) -> None:
    keys = {one.key for one in load_concepts(packages)}
    assert {key for key in keys if is_held_out(key)} == {key for key in sorted(keys)[::-1] if is_held_out(key)}
    share = sum(is_held_out(f"key {number}") for number in range(20_000)) / 20_000
    assert share == pytest.approx(0.05, abs=0.005)


def test_splits_share_no_source(splits: dict[str, list[dict[str, Any]]]) -> None:
    for language in LANGUAGES:
        sources = [
            {line["source"].lower() for line in splits[split] if line["language"] == language} for split in SPLITS
        ]
        for number, some in enumerate(sources):
            assert some
            assert not any(some & others for others in sources[number + 1 :])


def test_slots_are_the_same_in_both_languages_and_only_in_training(splits: dict[str, list[dict[str, Any]]]) -> None:
    masked = [line for line in splits["train"] if line["masked"]]
    assert 0.3 < len(masked) / (len(LANGUAGES) * NUM_PHRASES) < 0.6
    for line in masked:
        found = [[one for one in line[side] if one in SLOTS] for side in ("source", "target")]
        assert sorted(found[1]) == sorted(found[0]), line
        assert found[0] == list(SLOTS[: len(found[0])]), "they are numbered in the order of the source"
    for split in SPLITS[1:]:
        assert not any(one in SLOTS for line in splits[split] for one in line["source"] + line["target"])


def test_every_language_has_the_same_kinds_of_words_and_phrases() -> None:
    kinds: tuple[WordKind, ...] = ("colour", "adjective", "number", "tail", "style", "noun")
    for kind in kinds:
        english = [{word.english for word in words_of(language, kind)} for language in LANGUAGES]
        assert english.count(english[0]) == len(LANGUAGES), kind
    for language in LANGUAGES:
        templates = templates_of(language)
        held_out = {one.other for one in templates if one.held_out}
        assert len(held_out) == 6 and not held_out & {one.other for one in templates if not one.held_out}


@pytest.mark.parametrize(
    ("language", "english", "name", "adjective", "field", "expected"),
    [
        ("fr", "panda", "panda", Adjective("red", "roux|rousse"), "un", "un panda roux"),
        ("fr", "apple", "pomme", Adjective("green", "vert|verte"), "du", "d'une pomme verte"),
        ("fr", "house", "maison", Adjective("small", "<petit|<petite"), "le", "la petite maison"),
        ("fr", "elephant", "éléphant", None, "de", "d'éléphant"),
        ("fr", "bird", "oiseau", None, "le", "l'oiseau"),
        ("es", "hand", "mano", Adjective("white", "blanco|blanca"), "un", "una mano blanca"),
        ("es", "planet", "planeta", Adjective("big", "<gran|<gran"), "el", "el gran planeta"),
        ("de", "panda", "Panda", Adjective("red", "rot"), "ein", "ein roter Panda"),
        ("de", "apple", "Apfel", Adjective("red", "rot"), "einen", "einen roten Apfel"),
        ("de", "cat", "Katze", Adjective("small", "klein"), "einem", "einer kleinen Katze"),
        ("de", "house", "Haus", Adjective("purple", "=lila"), "ein", "ein lila Haus"),
        ("de", "red apple", "roter Apfel", None, "einem", "einem roten Apfel"),
        ("de", "man with beard", "Mann mit Bart", Adjective("old", "alt"), "der", "der alte Mann mit Bart"),
        ("ko", "panda", "판다", Adjective("red", "빨간"), "obj", "빨간 판다를"),
        ("ko", "bear", "곰", None, "obj", "곰을"),
        ("ja", "panda", "パンダ", Adjective("red", "赤い"), "n", "赤いパンダ"),
    ],
)
def test_noun_phrases(
    language: str, english: str, name: str, adjective: Adjective | None, field: str, expected: str
) -> None:
    phrase = NounPhrase(language, english, name, [adjective] if adjective else [])
    _, found = phrase_fields(phrase, random.Random(1))
    assert found[field] == expected


def test_skin_tones_are_written_in_several_ways() -> None:
    ways = tone_ways("de", "Frau: helle Hautfarbe", "woman, light skin tone")
    assert ("Frau mit heller Hautfarbe", "woman with light skin tone") in ways
    assert ("Frau: helle Hautfarbe", "woman, light skin tone") in ways
    assert ("검은색 피부의 여자", "woman with dark skin tone") in tone_ways(
        "ko", "여자: 검은색 피부", "woman, dark skin tone"
    )
    two = "Kuss: Frau, Mann, helle Hautfarbe"
    assert [source for source, _ in tone_ways("de", two, "kiss, woman, man, light skin tone")] == [
        two,
        "Kuss, Frau, Mann, helle Hautfarbe",
    ]


def test_a_name_belongs_to_one_concept(packages: Packages) -> None:
    lion = Concept("noun:lion", "word", "lion", {"fr": ["lion"]})
    leo = Concept("264c", "thing", "Leo", {"fr": ["lion", "signe du lion"]})
    assert [one.names["fr"] for one in unambiguous("fr", [leo, lion])] == [["signe du lion"], ["lion"]]


def test_words_are_paired_by_the_emoji_they_occur_with() -> None:
    def annotation(name: str, *keywords: str) -> Annotation:
        return Annotation(name, keywords)

    english = {
        "1f34e": annotation("red apple", "apple", "fruit", "red"),
        "1f34f": annotation("green apple", "apple", "fruit", "green"),
        "1f34a": annotation("tangerine", "fruit", "orange"),
    }
    french = {
        "1f34e": annotation("pomme rouge", "pomme", "fruit", "rouge"),
        "1f34f": annotation("pomme verte", "pomme", "fruit", "vert"),
        "1f34a": annotation("mandarine", "agrume", "fruit"),
    }
    assert not any(is_held_out(key) for key in english)
    assert paired_words(english, french) == {"pomme": "apple"}


def test_lexicons_ship_all_names_and_measure_without_those_held_out(built: Path, packages: Packages) -> None:
    whole, seen = (Lexicon.load(built / folder / lexicon_file("fr")) for folder in (LEXICONS, SEEN_LEXICONS))
    held_out = Concepts.of_packages(packages).held_out
    names = {name for one in held_out if one.kind == "thing" for name in one.names["fr"]}
    assert names and all(whole.name(name) for name in names) and not any(seen.name(name) for name in names)
    for language in LANGUAGES:
        assert (built / LEXICONS / lexicon_file(language)).stat().st_size < 100_000


def test_the_notice_has_all_licences(built: Path, packages: Packages, tmp_path: Path) -> None:
    text = (built / "NOTICE").read_text(encoding="utf-8")
    assert text.count("licence:      Unicode-3.0") == 3 and text.count("licence:      MIT") == 2
    assert "UNICODE LICENSE V3" in text and "Mozilla" in text and "widdix" in text
    assert (built / LEXICONS / "NOTICE").read_text(encoding="utf-8") == text
    other = tmp_path / "package"
    shutil.copytree(packages.folders["emojibase-data"], other)
    said = json.loads((other / "package.json").read_text())
    (other / "package.json").write_text(json.dumps(said | {"license": "GPL-3.0"}))
    with pytest.raises(DataError, match=r"emojibase-data .* states the licence 'GPL-3\.0', not 'MIT'"):
        notice(Packages({**packages.folders, "emojibase-data": other}))


def test_packages_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "emojibase-data-1.0.0.tgz").write_bytes(b"another file")
    with pytest.raises(DataError, match=r"has the digest sha512-\S+, not sha512-right: delete it and try again"):
        fetch_npm({"emojibase-data": "1.0.0"}, tmp_path, {"emojibase-data": "sha512-right"})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm is not installed"):
        build(TranslationDataOptions(out=tmp_path / "out"))


def test_wrong_settings_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="phrases is 0; it must be at least 1"):
        TranslationDataOptions(phrases=0)
    (tmp_path / "train.jsonl").write_text("mine")
    with pytest.raises(CannotWriteError, match=r"holds train\.jsonl, which would be replaced"):
        build(TranslationDataOptions(out=tmp_path))
    with pytest.raises(DataError, match=r"train\.jsonl cannot be read"):
        read_lines(tmp_path / "train.jsonl")
