"""Lexicons: the longest known names of a sentence, in five languages; and lexicon and network together."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from dalle.checkpoint.translator import find_translator, load_translator
from dalle.errors import CheckpointError, ParameterError
from dalle.translate.languages import clean, folded, without_particle, words_in
from dalle.translate.lexicon import SLOTS, Lexicon, lexicon_file
from dalle.translate.sentences import Sentence, translate

FRENCH = Lexicon(
    "fr",
    {"chat": "cat", "tête de chat": "cat face", "cœur rouge": "red heart", "Suède": "Sweden", "avion": "airplane"},
    {"un": [], "dans": [], "le": [], "style": [], "mignon": ["cute"], "et": [], "dessine": ["draw"], "de": []},
    ["un", "dans", "le", "style", "et"],
)
KOREAN = Lexicon(
    "ko",
    {"고양이": "cat", "고양이 얼굴": "cat face", "사과": "apple"},
    {"그려줘": ["draw"], "빨간": ["red"], "귀여운": ["cute"], "스타일": [], "스타일의": []},
    ["빨간", "스타일"],
)
GERMAN = Lexicon(
    "de",
    {"roter Apfel": "red apple", "roten Apfel": "red apple", "Fluent 3D": "fluent 3d", "Bär": "bear"},
    {"ein": [], "im": [], "stil": [], "katze": ["cat"], "gesicht": ["face"]},
    ["ein", "im"],
)
JAPANESE = Lexicon(
    "ja",
    {"車": "car", "電車": "train", "猫": "cat", "パン": "bread", "口のない顔": "face without mouth"},
    {"の": [], "を": [], "描": ["draw"], "いて": ["draw"], "赤": ["red"], "い": ["red"], "絵文字": ["emoji"]},
    ["の", "を", "絵文字"],
)


def named(lexicon: Lexicon, text: str) -> list[str]:
    return [piece.english for piece in lexicon.pieces(clean(text)) if piece.kind == "name"]


def unknown(lexicon: Lexicon, text: str) -> list[str]:
    return [piece.english for piece in lexicon.pieces(clean(text)) if piece.kind == "unknown"]


def test_the_longest_name_wins() -> None:
    assert FRENCH.look_up("une tête de chat et un chat") == "une cat face et un cat"
    assert named(KOREAN, "고양이 얼굴") == ["cat face"] and named(KOREAN, "고양이 사과") == ["cat", "apple"]
    assert named(JAPANESE, "電車") == ["train"]


def test_case_accents_and_forms_of_unicode_do_not_matter() -> None:
    for text in ("CŒUR ROUGE", "coeur rouge", "cœur  rouge.", "Coeur-Rouge!", "c\u0153\uff55r \uff52ouge"):
        assert FRENCH.name(text) == "red heart", text
    decomposed = "Sue\u0300de"
    assert decomposed != "Suède" and FRENCH.name(decomposed) == FRENCH.name("suede") == "Sweden"
    assert GERMAN.name("baer") == GERMAN.name("BÄR") == "bear" and folded("Straße", "de") == "strasse"
    assert GERMAN.look_up("ein Panda im Fluent-3D-Stil") == "ein Panda im fluent 3d-Stil"
    assert JAPANESE.name("口のない顔。") == "face without mouth"


def test_names_end_where_words_end() -> None:
    assert named(FRENCH, "un chaton et des chats") == []
    assert unknown(FRENCH, "un chaton") == ["chaton"]


def test_korean_particles_are_no_part_of_a_name() -> None:
    for particle in ("를", "는", "가", "와", "의", "랑"):
        assert KOREAN.look_up(f"고양이{particle} 그려줘") == f"cat {particle} 그려줘"
    assert without_particle("사과를") == "사과" and without_particle("를") == "를"
    assert named(KOREAN, "빨간사과를 그려줘") == ["apple"], "a colour may be joined to the name"
    assert unknown(KOREAN, "뽀로로를 그려줘") == ["뽀로로"]
    assert [piece.kind for piece in KOREAN.pieces("fluent 3d 스타일의 고양이")] == ["same", "same", "word", "name"]


def test_japanese_names_end_where_the_script_changes_or_words_around_names_begin() -> None:
    assert named(JAPANESE, "赤い車を描いて") == ["car"] and named(JAPANESE, "猫絵文字") == ["cat"]
    assert named(JAPANESE, "猫車") == [] and named(JAPANESE, "パンダの絵") == [], "no bread in a panda"
    assert unknown(JAPANESE, "ピカチュウを描いて") == ["ピカチュウ"]


def test_german_compounds_of_known_words_are_known() -> None:
    assert GERMAN.knows(folded("Katzengesicht", "de")) and not GERMAN.knows(folded("Donaudampfschiff", "de"))
    assert GERMAN.licences("ein Katzengesicht") == [set(), {"cat", "face"}]
    assert GERMAN.look_up("einen roten Apfel") == "einen red apple"


def test_a_name_that_is_a_word_around_names_is_one_only_alone() -> None:
    spanish = Lexicon("es", {"sobre": "envelope", "gato": "cat"}, {"un": [], "fondo": []}, ["sobre", "un"])
    assert spanish.name("Sobre") == spanish.look_up("sobre") == "envelope"
    assert spanish.look_up("un gato sobre fondo blanco") == "un cat sobre fondo blanco"


def test_words_of_a_text() -> None:
    assert [word.key for word in words_in(clean("L\u2019Œuf « doré »"), "fr")] == ["l", "oeuf", "dore"]
    assert [word.key for word in words_in("3D스타일", "ko")] == ["3d", "스타일"]
    assert [word.key for word in words_in("赤いパンダ、3D", "ja")] == ["赤", "い", "パンダ", "3d"]
    assert words_in("", "fr") == []


@pytest.mark.parametrize("lexicon", [FRENCH, KOREAN, GERMAN, JAPANESE])
def test_a_lexicon_is_the_same_when_it_is_loaded(lexicon: Lexicon, tmp_path: Path) -> None:
    lexicon.save(tmp_path)
    path = tmp_path / lexicon_file(lexicon.language)
    loaded = Lexicon.load(path)
    assert (loaded.names, loaded.words, loaded.plain) == (lexicon.names, lexicon.words, lexicon.plain)
    before = path.read_bytes()
    loaded.save(tmp_path)
    assert path.read_bytes() == before
    path.write_bytes(before[:-9])
    with pytest.raises(CheckpointError, match="is not a lexicon written by this library"):
        Lexicon.load(path)


def translated(source: str, answer: str, lexicon: Lexicon = FRENCH) -> tuple[Sentence, list[str]]:
    """The sentence with a network that answers so, and what the network was asked."""
    asked: list[str] = []

    def network(sentences: Sequence[str]) -> list[str]:
        asked.extend(sentences)
        return [answer] * len(sentences)

    (found,) = translate([source], lexicon, network)
    return found, asked


def test_a_known_name_needs_no_network() -> None:
    found, asked = translated("Tête de chat", "a dog")
    assert (found.english, found.by, found.unknown, asked) == ("cat face", "name", (), [])


def test_the_network_gets_slots_and_the_lexicon_fills_them() -> None:
    cat, style = SLOTS[:2]
    found, asked = translated("un chat mignon dans le style zorglub", f"a cute {cat} in {style} style")
    assert asked == [f"un {cat} mignon dans le style {style}"]
    assert (found.english, found.by) == ("a cute cat in zorglub style", "network")
    assert found.unknown == ("zorglub",), "it is kept, and reported"


def test_articles_fit_what_fills_the_slot() -> None:
    assert translated("dessine un avion", f"draw a {SLOTS[0]}")[0].english == "draw an airplane"
    assert translated("dessine un chat", f"draw an {SLOTS[0]}")[0].english == "draw a cat"


@pytest.mark.parametrize(
    "answer",
    [
        "a cute cat",
        f"a cute {SLOTS[0]} and {SLOTS[0]}",
        f"a {SLOTS[1]}",
        f"a cute {SLOTS[0]} with a hat",
        f"a sad {SLOTS[0]}",
        f"a {SLOTS[0]}",
        f"a cute cute {SLOTS[0]}",
        "",
    ],
)
def test_what_the_network_invents_or_loses_is_not_accepted(answer: str) -> None:
    found, _ = translated("un chat mignon", answer)
    assert (found.english, found.by) == ("cute cat", "look-up")
    assert found.unknown == ()


def test_a_sentence_of_too_many_slots_is_translated_part_by_part() -> None:
    found, asked = translated(", ".join(["chat", "avion"] * 5), "a dog")
    assert found.by == "parts" and asked == [] and found.english == ", ".join(["cat", "airplane"] * 5)


def test_the_shipped_translator() -> None:
    folder = find_translator("emoji")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6 and (folder / "NOTICE").exists()
    translator = load_translator(folder)
    for language, source, english in (
        ("ko", "빨간 판다, fluent 3d 스타일", "red panda, fluent 3d style"),
        ("fr", "un panda roux dans le style fluent 3d", "a red panda in the fluent 3d style"),
        ("de", "ein roter Panda im Fluent-3D-Stil", "a red panda in fluent 3d style"),
        ("es", "un panda rojo, estilo fluent 3d", "a red panda, fluent 3d style"),
        ("ja", "赤いパンダ、fluent 3dスタイル", "red panda, fluent 3d style"),
        ("fr", "cœur rouge", "red heart"),
    ):
        (found,) = translator.translate_with_lexicon([source], language)
        assert (found.english, found.unknown) == (english, ())
    (found,) = translator.translate_with_lexicon(["un gloubiboulga bleu"], "fr")
    assert (found.english, found.unknown) == ("a blue gloubiboulga", ("gloubiboulga",))
    with pytest.raises(ParameterError, match="language is 'it'; emoji has lexicons of: fr, ko, de, es, ja"):
        translator.translate_with_lexicon(["gatto"], "it")
