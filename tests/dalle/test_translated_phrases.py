"""Prompts as people type them, with the shipped translator: clauses, mixtures of languages, English names, and tags."""

from pathlib import Path

import pytest

from dalle import DALLE
from dalle.cli.prompts import gather_prompts
from dalle.errors import LongPromptError, ParameterError, PromptError
from dalle.translate.clauses import attributes_stay, negations_stay, parts_of
from dalle.translate.languages import as_translate
from dalle.translate.lexicon import SLOTS, Lexicon
from dalle.translate.prompts import PromptTranslator

FIRST, SECOND = SLOTS[:2]


@pytest.fixture(scope="module")
def step() -> PromptTranslator:
    return DALLE.load().prompt_translator()


@pytest.fixture(scope="module")
def french(step: PromptTranslator) -> Lexicon:
    return step.translator.lexicons["fr"]


ENGLISH = """Los Angeles|la la land|El Niño|La Croix can|fort|café|jalapeño taco|poncho llama|noir detective|piñata
crème brûlée|kindergarten|rottweiler|souvenir|fiesta|Rio de Janeiro|fiancé|naïve|déjà vu|Beyoncé|São Paulo|Zürich
grand piano|a grand piano|São Paulo skyline|Zürich skyline|Das Boot|Der Spiegel cover
Citroën|Pokémon|über|El Salvador|Côte d'Azur|art nouveau|dachshund
a café in Paris|the con man with a hat|a den of a lion"""


@pytest.mark.parametrize("prompt", ENGLISH.replace("\n", "|").split("|"))
def test_english_names_and_loanwords_stay_as_they_are(step: PromptTranslator, prompt: str) -> None:
    found = step(prompt)
    assert (found.prompt, found.translation, found.warning) == (prompt, None, None)


@pytest.mark.parametrize(
    ("language", "prompts"),
    [
        (
            "fr",
            "chat noir|noir chat|la maison|un café|le chat|château|éléphant|café noir|un chat à Los Angeles",
        ),
        ("es", "café con leche|gato|árbol|la piñata|una fiesta|el niño|un gato en Los Angeles"),
        ("de", "ein Hund|Löwe|ein Kindergarten|der Rottweiler|Bär|ein roter Hund in Zürich"),
    ],
)
def test_prompts_in_other_languages_are_still_found(step: PromptTranslator, language: str, prompts: str) -> None:
    assert [one for one in prompts.split("|") if step.language_of(one) != language] == []


@pytest.mark.parametrize(
    ("prompt", "language", "english"),
    [
        ("red panda and 고양이", "ko", "red panda and cat"),
        ("un chat with a hat", "fr", "a cat with a hat"),
        ("고양이 with a hat", "ko", "cat with a hat"),
        ("a cute 猫 and a dog", "ja", "a cute cat and a dog"),
        ("ein Hund and a cat", "de", "a dog and a cat"),
        ("un gato with a red hat", "es", "a cat with a red hat"),
        ("cute 고양이", "ko", "cute cat"),
    ],
)
def test_english_stays_in_place_in_a_mixture(step: PromptTranslator, prompt: str, language: str, english: str) -> None:
    found = step(prompt)
    assert found.translation is not None
    assert (found.prompt, found.translation.language, found.warning) == (english, language, None)


@pytest.mark.parametrize(
    ("language", "prompt", "english"),
    [
        ("fr", "un chat noir, un chien blanc", "a black cat, a white dog"),
        ("es", "un gato triste con un sombrero rojo", "a sad cat with a red hat"),
        ("es", "un perro rojo con un sombrero azul", "a red dog with a blue hat"),
        ("fr", "un chat sur un chien", "a cat on a dog"),
        ("fr", '"un chat noir"', '"a black cat"'),
        ("fr", "un chat (noir)", "a cat (black)"),
        ("ko", "고양이가 없는 집", "house without a cat"),
        ("ja", "帽子なしの猫", "cat without a hat"),
        ("fr", "un chat sans chapeau", "a cat without hat"),
        ("de", "eine Katze ohne Hut", "a cat without hat"),
        ("de", "kein Hund", "no dog"),
        ("ko", "사과 3개", "three apples"),
        ("ja", "りんご3個", "three apples"),
    ],
)
def test_clauses_negations_marks_and_numbers(step: PromptTranslator, language: str, prompt: str, english: str) -> None:
    (found,) = step.translator.translate_with_lexicon([prompt], language)
    assert (found.english, found.unknown) == (english, ())


def test_emoji_stay_and_short_words_are_no_abbreviations(step: PromptTranslator) -> None:
    assert str(step("un chat 🐱 noir", translate="fr").prompt).count("🐱") == 1
    kept = step("un chat noir", translate="de")
    assert "Nations" not in str(kept.prompt) and kept.warning is not None
    assert step("die UN", translate="de").prompt == "United Nations"


def test_an_attribute_that_leaves_its_clause_is_not_accepted(french: Lexicon) -> None:
    source = f"un {FIRST}, un {SECOND} blanc"
    assert attributes_stay(source, f"a {FIRST}, a white {SECOND}", french)
    assert not attributes_stay(source, f"a white {FIRST}, a {SECOND}", french)
    assert negations_stay(f"un {FIRST} sans {SECOND}", f"a {FIRST} without {SECOND}", "fr")
    assert not negations_stay(f"un {FIRST} sans {SECOND}", f"a {SECOND} without {FIRST}", "fr")
    assert not negations_stay(f"un {FIRST} sans {SECOND}", f"a {FIRST} {SECOND}", "fr")
    said = [part.text for part in parts_of("un chat noir, un chien blanc", french)]
    assert said == ["un chat noir", ", ", "un chien blanc"]


@pytest.mark.parametrize("tag", ["FR", "fr-FR", "fr_FR", "fr-CA", "fr_FR.UTF-8", " fr "])
def test_tags_of_languages_are_taken_by_their_language(step: PromptTranslator, tag: str) -> None:
    assert as_translate(tag) == "fr" and step("un gato", translate=tag).translation is not None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("French", "translate is 'French'; write fr"),
        ("jp", "translate is 'jp'; write ja"),
        ("Español", "translate is 'Español'; write es"),
        ("english", "translate is 'english'; write en"),
        ("it", "translate is 'it'; it must be auto, off, fr \\(French\\)"),
        ("auto-FR", "translate is 'auto-FR'; it must be"),
        (3, "translate is 3; it must be a text"),
    ],
)
def test_other_values_are_refused_with_what_to_write(value: object, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        as_translate(value)


@pytest.mark.parametrize("prompt", [3, ["un chat"]])
def test_what_is_no_text_is_a_mistake_of_the_caller(step: PromptTranslator, prompt: object) -> None:
    with pytest.raises(PromptError, match="it must be one text"):
        step(prompt)  # type: ignore[arg-type]


def test_prompts_of_a_file_know_their_line(tmp_path: Path) -> None:
    path = tmp_path / "ideas.txt"
    path.write_text("a cat\n\n красная панда\n", encoding="utf-8")
    given = gather_prompts([], ["a dog"], str(path))
    assert given.texts == ["a dog", "a cat", "красная панда"]
    error = given.located("красная панда", LongPromptError("it is too long"))
    assert isinstance(error, LongPromptError) and str(error) == f"line 3 of {path}: it is too long"
    assert str(given.located("a dog", PromptError("no"))) == "no"


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("un chat noir et blanc", ["cat"]),
        ("un chat noir et un chien blanc", ["black cat", "dog"]),
        ("un chat noir et chien", ["black cat", "dog"]),
    ],
)
def test_an_attribute_that_is_joined_to_another_is_no_part_of_a_name(
    french: Lexicon, prompt: str, names: list[str]
) -> None:
    assert [piece.english for piece in french.pieces(prompt) if piece.kind == "name"] == names


@pytest.mark.parametrize(
    ("prompt", "english"),
    [
        ("빨간 개 두 마리 그리고 고양이", "two red dogs and cat"),
        ("빨간 개와 고양이 세 마리", "red dog and three cats"),
        ("빨간 개와 고양이", "red dog and cat"),
    ],
)
def test_names_behind_a_number_are_plural(step: PromptTranslator, prompt: str, english: str) -> None:
    """Korean nouns have no plural, so the lexicon has none."""
    (found,) = step.translator.translate_with_lexicon([prompt], "ko")
    assert (found.english, found.unknown) == (english, ())


@pytest.mark.parametrize(
    ("language", "prompt", "english"),
    [
        ("fr", "un chat noir et blanc", "a black and white cat"),
        ("fr", "deux pommes vertes", "two green apples"),
        ("fr", "montre-moi un lapin blanc", "show me a white rabbit"),
        ("es", "una casa sin ventanas", "a house without windows"),
        ("de", "ein Affe, der eine Banane isst", "a monkey eating a banana"),
        ("de", "drei rote Äpfel", "three red apples"),
        ("ko", "빨간 모자를 쓴 고양이", "cat with a red hat"),
        ("ko", "나무 위의 새", "bird on a tree"),
        ("ja", "泣いている赤ちゃん", "crying baby"),
        ("ja", "バナナを食べる猿", "monkey eating a banana"),
    ],
)
def test_numbers_relations_and_pairs_of_colours(
    step: PromptTranslator, language: str, prompt: str, english: str
) -> None:
    (found,) = step.translator.translate_with_lexicon([prompt], language)
    assert (found.english, found.unknown, found.by) == (english, (), "network")


def test_a_place_that_the_network_loses_is_kept_and_reported(step: PromptTranslator) -> None:
    """The network says `tree two cats`."""
    (found,) = step.translator.translate_with_lexicon(["나무 아래 고양이 두 마리"], "ko")
    assert "아래" in found.unknown and "아래" in found.english


@pytest.mark.parametrize(
    ("prompt", "language", "english"),
    [
        ("un chat noir, 4k, masterpiece", "fr", "a black cat, 4k, masterpiece"),
        ("(un chat:1.3), noir", "fr", "(a cat:1.3), black"),
        ("猫、8k", "ja", "cat, 8k"),
        ('"검은 고양이"', "ko", '"black cat"'),
        ("「黒い猫」", "ja", '"black cat"'),
        ("犬ではなく猫", "ja", "cat not dog"),
        ("개 말고 고양이", "ko", "cat not dog"),
        ("une femme aux cheveux rouges", "fr", "a woman with red hair"),
        ("a red panda und ein Hund", "de", "a red panda and a dog"),
        ("un canapé rouge", "fr", "a red sofa"),
        ("の", "ja", "の"),
    ],
)
def test_measures_marks_negations_and_clauses_of_two_languages(
    step: PromptTranslator, prompt: str, language: str, english: str
) -> None:
    found = step(prompt)
    assert found.translation is not None
    assert (found.translation.language, found.prompt) == (language, english)


def test_a_spanish_monkey_is_no_attribute(step: PromptTranslator) -> None:
    """`mono` means cute as well."""
    pieces = step.translator.lexicons["es"].pieces("un mono en bicicleta")
    assert [piece.english for piece in pieces if piece.kind == "name"] == ["monkey", "bicycle"]
