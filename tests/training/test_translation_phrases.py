"""Phrases of the translator's data: numbers, relations between things, negations, and what lexicons know of them."""

import random
import string

import pytest

from dalle.translate.languages import LANGUAGES
from dalle.translate.lexicon import SLOTS, Lexicon
from tests.support.translation import unpacked_packages
from training.translation.compose import Composer
from training.translation.counters import number_forms
from training.translation.grammar import NounPhrase, phrase_fields, takes_number
from training.translation.lexicons import build_lexicon
from training.translation.lines import Concepts
from training.translation.modifiers import Modifiers
from training.translation.plurals import dative_plural, plural_adjective, plural_name
from training.translation.words import Adjective, templates_of, words_of

TWO = {"fr": "deux", "de": "=zwei", "es": "dos", "ko": "두", "ja": "2"}


@pytest.fixture(scope="module")
def concepts(tmp_path_factory: pytest.TempPathFactory) -> Concepts:
    return Concepts.of_packages(unpacked_packages(tmp_path_factory.mktemp("packages")))


@pytest.fixture(scope="module")
def lexicons(concepts: Concepts) -> dict[str, Lexicon]:
    return {language: build_lexicon(language, concepts.all) for language in LANGUAGES}


@pytest.mark.parametrize(
    ("language", "english", "name", "adjective", "field", "expected"),
    [
        ("fr", "apple", "pomme", Adjective("green", "vert|verte"), "un", "deux pommes vertes"),
        ("fr", "horse", "cheval", Adjective("small", "<petit|<petite"), "le", "les deux petits chevaux"),
        ("fr", "bird", "oiseau", Adjective("crying", "qui pleure|qui pleure"), "du", "de deux oiseaux qui pleurent"),
        ("de", "apple", "Apfel", Adjective("red", "rot"), "ein", "zwei rote Äpfel"),
        ("de", "apple", "Apfel", Adjective("red", "rot"), "einem", "zwei roten Äpfeln"),
        ("de", "cat", "Katze", Adjective("small", "klein"), "der", "die zwei kleinen Katzen"),
        ("es", "cat", "gato", Adjective("black", "negro|negra"), "un", "dos gatos negros"),
        ("es", "lion", "león", Adjective("happy", "feliz|feliz"), "el", "los dos leones felices"),
    ],
)
def test_numbers_have_plurals_that_agree(
    language: str, english: str, name: str, adjective: Adjective, field: str, expected: str
) -> None:
    phrase = NounPhrase(language, english, name, [adjective], number=Adjective("two", TWO[language]))
    ours, others = phrase_fields(phrase, random.Random(0))
    assert others[field] == expected
    assert ours["a"] == ours["n"] == f"two {adjective.english} {english}s"
    assert ours["the"] == f"the two {adjective.english} {english}s"


@pytest.mark.parametrize(
    ("language", "english", "name", "field", "expected"),
    [
        ("ko", "cat", "고양이", "n", {"고양이 두 마리", "고양이 두마리", "두 마리의 고양이", "두마리의 고양이"}),
        (
            "ko",
            "apple",
            "사과",
            "obj",
            {"사과 두 개를", "사과 두개를", "두 개의 사과를", "두개의 사과를", "사과를 두 개", "사과를 두개"},
        ),
        (
            "ko",
            "woman",
            "여자",
            "obj",
            {"여자 두 명을", "여자 두명을", "두 명의 여자를", "두명의 여자를", "여자를 두 명", "여자를 두명"},
        ),
        ("ja", "cat", "猫", "n", {"2匹の猫", "猫2匹", "2頭の猫", "猫2頭"}),
        (
            "ja",
            "apple",
            "りんご",
            "obj",
            {"2つのりんごを", "りんご2つを", "りんごを2つ", "2個のりんごを", "りんご2個を", "りんごを2個"},
        ),
    ],
)
def test_korean_and_japanese_numbers_have_counters(
    language: str, english: str, name: str, field: str, expected: set[str]
) -> None:
    phrase = NounPhrase(language, english, name, number=Adjective("two", TWO[language]))
    found = {phrase_fields(phrase, random.Random(seed))[1][field] for seed in range(200)}
    assert found == expected
    masked = NounPhrase(language, english, name, number=Adjective("two", TWO[language]), slot=SLOTS[0])
    assert phrase_fields(masked, random.Random(0))[0]["n"] == f"two {SLOTS[0]}"


def test_plurals() -> None:
    french = {"cheval": "chevaux", "souris": "souris", "gâteau": "gâteaux", "œil": "yeux", "hibou": "hiboux"}
    german = {"Katze": "Katzen", "Hund": "Hunde", "Löwe": "Löwen", "Mädchen": "Mädchen", "Regenbogen": None}
    spanish = {"gato": "gatos", "flor": "flores", "pez": "peces", "camión": "camiones", "árbol": "árboles"}
    for language, nouns in (("fr", french), ("de", german), ("es", spanish)):
        assert {noun: plural_name(language, noun) for noun in nouns} == nouns
    assert [dative_plural(one) for one in ("Äpfel", "Katzen", "Autos")] == ["Äpfeln", "Katzen", "Autos"]
    french = {"rouge": "rouges", "orange": "orange", "noir et blanc": "noirs et blancs", "qui dort": "qui dorment"}
    spanish = {"azul": "azules", "verde claro": "verde claro", "gran": "grandes", "que canta": "que cantan"}
    for language, forms in (("fr", french), ("es", spanish)):
        assert {form: plural_adjective(language, form) for form in forms} == forms
    assert not takes_number("de", "rainbow", "Regenbogen") and not takes_number("fr", "bread", "pain")


@pytest.mark.parametrize(
    ("language", "english", "name", "relation", "expected"),
    [
        ("fr", "bird", "oiseau", "next to {a}", {"à côté d'un oiseau"}),
        ("de", "apple", "Apfel", "eating {a}", {", {rel} einen Apfel isst"}),
        ("de", "lion", "Löwe", "without {a}", {"ohne Löwen"}),
        ("de", "forest", "Wald", "in {the}", {"im Wald"}),
        ("es", "fish", "pez", "eating {a}", {"comiendo un pez", "que come un pez"}),
        ("ko", "house", "집", "without {a}", {"집 없는", "집이 없는"}),
        ("ko", "horse", "말", "riding {a}", {"말을 탄", "말을 타고 있는"}),
        ("ja", "tree", "木", "under {a}", {"木の下の", "木の下にいる"}),
    ],
)
def test_relations_to_a_second_thing(language: str, english: str, name: str, relation: str, expected: set[str]) -> None:
    _, fields = phrase_fields(NounPhrase(language, english, name), random.Random(0))
    ways = [one.other for one in words_of(language, "relation") if one.english == relation]
    assert {way.format(**fields, rel="{rel}") for way in ways} == expected


def test_tails_stand_where_each_language_has_them() -> None:
    def said(language: str, name: str, *tails: tuple[str, str], apart: Adjective | None = None) -> tuple[str, str]:
        ours, others = phrase_fields(NounPhrase(language, "cat", name, tails=tails, apart=apart), random.Random(0))
        return ours["a"], others[{"fr": "un", "de": "ein"}.get(language, "n")]

    eating, snow = ("eating an apple", ", {rel} einen Apfel isst"), ("in the snow", "im Schnee")
    assert said("de", "Katze", eating) == ("a cat eating an apple", "eine Katze, die einen Apfel isst")
    assert said("de", "Katze", snow) == ("a cat in the snow", "eine Katze im Schnee")
    under, hat = ("under a tree", "나무 아래의"), ("with a red hat", "빨간 모자를 쓴")
    assert said("ko", "고양이", hat, under) == (
        "a cat with a red hat under a tree",
        "나무 아래의 빨간 모자를 쓴 고양이",
    )
    assert said("fr", "chat", apart=Adjective("black", "noir|noire")) == ("a black cat", "un chat, noir")


def test_colours_in_pairs_stand_in_the_order_of_both_languages() -> None:
    expected = {"fr": " et ", "es": " y ", "de": "-", "ko": "과 ", "ja": "と"}
    for language, joint in expected.items():
        modifiers = Modifiers(language)
        drawn = [one for seed in range(300) for one in modifiers.adjectives(random.Random(seed))]
        pairs = [one for one in drawn if " and " in one.english and one.english != "black and white"]
        assert pairs
        for pair in pairs:
            first, second = pair.english.split(" and ")
            assert first != second and joint in pair.other
            said = [one.other.split("|")[0] for one in words_of(language, "colour") if one.english == first]
            assert any(pair.other.startswith(one.removesuffix("の")) for one in said)


def test_all_templates_are_filled_with_all_kinds_of_things() -> None:
    names = {"fr": "pomme", "de": "Apfel", "es": "manzana", "ko": "사과", "ja": "りんご"}
    for language in LANGUAGES:
        for number in (None, Adjective("two", TWO[language])):
            ours, others = phrase_fields(
                NounPhrase(language, "apple", names[language], number=number), random.Random(1)
            )
            fields = {f"{key}{thing}": value for thing in ("", 2, 3) for key, value in others.items()}
            english = {f"{key}{thing}": value for thing in ("", 2, 3) for key, value in ours.items()}
            style = {"style": "noto", "Style": "Noto", "country": "Peru", "de_country": "de Peru"}
            for template in templates_of(language):
                things = template.num_things
                assert template.english.format(**english, **style).count("apple") == things, template
                assert "{" not in template.other.format(**fields, **style)
                told = [field for _, field, _, _ in string.Formatter().parse(template.other) if field]
                count = sum("style" not in one.lower() and "country" not in one for one in told)
                assert count == things, template


def test_every_language_holds_out_phrases_of_several_things() -> None:
    for language in LANGUAGES:
        held_out = [one for one in templates_of(language) if one.held_out]
        assert sorted(one.num_things for one in held_out) == [1, 1, 1, 2, 2, 3], language
        assert not any("show me" in one.english and one.num_things == 1 for one in held_out)


def test_phrases_of_one_thing_are_most(concepts: Concepts) -> None:
    for language in LANGUAGES:
        composer = Composer(language, concepts.seen)
        lines = [composer.phrase("train", number) for number in range(600)]
        assert lines == [composer.phrase("train", number) for number in range(600)]
        several = [
            " and ",
            ", no ",
            " holding ",
            " eating ",
            " riding ",
            " next to ",
            " under ",
            " without ",
            " behind ",
        ]
        share = sum(any(one in line.target for one in several) for line in lines) / len(lines)
        assert 0.15 < share < 0.5, language
        numbers = {one.english for one in words_of(language, "number")}
        counted = [line for line in lines if numbers & set(line.target.split())]
        assert 0.03 < len(counted) / len(lines) < 0.25, language


def test_lexicons_know_plurals_and_counters(lexicons: dict[str, Lexicon]) -> None:
    for language, name, english in (
        ("fr", "pommes", "apples"),
        ("fr", "chevaux", "horses"),
        ("de", "Äpfel", "apples"),
        ("de", "Äpfeln", "apples"),
        ("de", "Löwen", "lion"),
        ("es", "leones", "lions"),
        ("es", "peces", "fish"),
        ("ja", "赤ちゃん", "baby"),
    ):
        assert lexicons[language].name(name) == english
    for language, text, names in (
        ("ko", "사과 3개를 그려줘", ["apple"]),
        ("ko", "사과 12개", ["apple"]),
        ("ko", "개 두 마리", ["dog"]),
        ("ja", "りんごを3個描いて", ["apple"]),
        ("ja", "猫二匹", ["cat"]),
        ("ja", "木の下の熊", ["tree", "bear"]),
        ("fr", "deux chevaux noirs", ["horses"]),
        ("es", "tres gatos negros", ["cats"]),
        ("de", "drei rote Äpfel", ["apples"]),
    ):
        pieces = lexicons[language].pieces(text)
        assert [piece.english for piece in pieces if piece.kind == "name"] == names, text
        assert not any(piece.kind in ("unknown", "same") for piece in pieces), text


@pytest.mark.parametrize(
    ("language", "text", "english"),
    [
        ("fr", "une maison sans chat", "without"),
        ("fr", "pas de chien", "no"),
        ("fr", "un chat sous un arbre", "under"),
        ("de", "kein Hund", "no"),
        ("de", "ein Hund vor einem Haus", "front"),
        ("es", "ninguna casa", "no"),
        ("es", "dos perros", "two"),
        ("ko", "고양이가 없는 집", "without"),
        ("ko", "뛰어가는 강아지", "running"),
        ("ko", "사과 세 개", "three"),
        ("ja", "剣を持った海賊", "holding"),
        ("ja", "3つのりんご", "three"),
        ("ja", "泣いている赤ちゃん", "crying"),
    ],
)
def test_words_of_phrases_license_their_english(
    lexicons: dict[str, Lexicon], language: str, text: str, english: str
) -> None:
    assert any(english in found for found in lexicons[language].licences(text))


@pytest.mark.parametrize("language", ["ko", "ja"])
def test_number_forms_are_no_names(lexicons: dict[str, Lexicon], language: str) -> None:
    for form, english in number_forms(language):
        pieces = lexicons[language].pieces(form)
        assert {piece.kind for piece in pieces} == {"word"}, form
        assert any(english in found for found in lexicons[language].licences(form)), form


def test_shipped_lexicons_have_the_nouns_that_no_line_has(concepts: Concepts) -> None:
    keys = {one.key for one in concepts.left_out}
    assert keys and not keys & {one.key for one in (*concepts.seen, *concepts.held_out)}
    assert {one.key for one in concepts.all} >= keys
