"""The language of a prompt: English, one of those that are translated, or none of them.

1. The script decides for Korean (Hangul) and Japanese (kana). Chinese characters alone are Japanese if the Japanese
   lexicon knows all of them: Chinese is not translated, and most of its sentences have characters or words that
   Japanese lacks. A text mostly in another script, such as Cyrillic, is refused.
2. Latin letters: the language that knows most of the words, by the lexicons, whose English is a lexicon of English too.
   English goes first: a text of which it knows as many words as any other language is English.
3. A text of English words only (`dalle.translate.english`) is English, unless another language has all of them too, as
   French has `noir chat`. English names and phrases, such as `El Paso`, count for no language.
4. If words are unknown, or languages know the same number, py3langid is asked, which compares byte sequences with
   those of 19 languages (Lui and Baldwin, "langid.py", ACL 2012). It is believed where it is sure. Else a text of
   which no language knows more than half, and that has no accents, is English, and stays as it is.

All of it is deterministic and needs no network. Few words of one language are words of another: names of things are
safe, and where they are not (`chat`), the prompt stays as it is, and a language can be given.
"""

import functools
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from dalle.errors import PromptError
from dalle.translate.clauses import Part
from dalle.translate.english import WORD, is_borrowed, is_english_word, without_english_names
from dalle.translate.grammar import FUNCTION_WORDS, STYLE
from dalle.translate.languages import LANGUAGES, clean, folded, script_of, words_in
from dalle.translate.lexicon import Lexicon
from dalle.translate.mixed import SMALL, WordKind, mixture_of, of_two_scripts

__all__ = ["ENGLISH", "FOREIGN", "LanguageDetector"]

ENGLISH = "en"
LATIN = ("fr", "de", "es")
"""The languages that are written in Latin letters."""
MOST = 0.75
"""Share of known words from which a text is of one of the lexicons' languages in any case."""
SURE = 0.7
"""Probability from which py3langid is believed."""
FOREIGN = frozenset(
    "le la les un une des du de et avec dans el los las una y con en der das den dem ein eine einen mit und im".split()
)
"""Function words that are in English names at most, such as `El Salvador`."""
OTHERS = {
    **{"ca": "Catalan", "cs": "Czech", "da": "Danish", "fi": "Finnish", "hu": "Hungarian", "id": "Indonesian"},
    **{"it": "Italian", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian"},
    **{"sv": "Swedish", "tr": "Turkish", "vi": "Vietnamese"},
}
"""Languages in Latin letters that are told from those that are translated, with their English names."""


class LanguageDetector:
    """Finds the languages of prompts by the lexicons of a translator."""

    def __init__(self, lexicons: Mapping[str, Lexicon]) -> None:
        self._lexicons = lexicons
        english: set[str] = {*FUNCTION_WORDS}
        for lexicon in lexicons.values():
            for text in lexicon.names.values():
                english.update(WORD.findall(text.lower()))
            for texts in lexicon.words.values():
                english.update(word for text in texts for word in WORD.findall(text.lower()))
        self._english = frozenset(english)

    def language_of(self, text: str) -> str:
        """The ISO 639 code of a prompt's language: `en`, or one that the lexicons are of. Raises `PromptError` for a
        text in another one."""
        text = clean(text)
        scripts = [_script(character) for character in text if character.isalpha()]
        if "hangul" in scripts:
            return self._supported("ko")
        if "kana" in scripts:
            return self._supported("ja")
        if "kanji" in scripts:
            return self._of_chinese_characters(text)
        others = [script for script in scripts if script != "latin"]
        if 2 * len(others) > len(scripts):
            raise self._error(f"written in {max(sorted({*others}), key=others.count).title()} letters")
        found, clause = self._of_latin_letters(text), text.partition(",")[0]
        if found == ENGLISH and clause != text and any(word in FOREIGN for word in WORD.findall(clause.lower())):
            return self._of_latin_letters(clause)  # `un chat noir, 4k, masterpiece`
        return found

    def mixture_of(self, text: str, language: str) -> tuple[str, list[Part]] | None:
        """The language beside English of a prompt in two languages, and its parts; None for a prompt in one language,
        whose code is given."""
        if language not in (ENGLISH, *LATIN):
            parts = mixture_of(text, of_two_scripts, needs_small_word=not self._has_plain_english(text, language))
            return None if parts is None else (language, parts)
        if not any(word in FOREIGN for word in WORD.findall(without_english_names(text).lower())):
            return None
        found = {}
        for code in LATIN if language == ENGLISH else (language,):
            parts = mixture_of(text, functools.partial(self._kind_of, code)) if code in self._lexicons else None
            foreign = [] if parts is None else [part.text for part in parts if not part.is_english]
            if parts is not None and all(self._is_said(part, code) for part in foreign):
                found[code] = parts
        if not found:
            return None
        code = self._likeliest(
            " ".join(part.text for part in next(iter(found.values())) if not part.is_english), [*found]
        )
        return code, found[code]

    def _is_said(self, text: str, code: str) -> bool:
        """Whether all words of a part are known in a language, and there is a name or a phrase among them."""
        words, pieces = WORD.findall(text), self._lexicons[code].pieces(clean(text))
        is_about_things = any(piece.kind == "name" or " " in piece.english for piece in pieces)
        return is_about_things and self._num_known(clean(text), code) >= len(words)

    def _has_plain_english(self, text: str, code: str) -> bool:
        """Whether Latin letters in a Korean or Japanese prompt are English words, and no name of a style."""
        text = clean(text)
        said = [(piece.kind, text[piece.start : piece.end]) for piece in self._lexicons[code].pieces(text)]
        latin = [word for _, word in said if word.isascii() and word.isalpha()]
        names = any(kind == "name" and word.isascii() for kind, word in said)
        has_style = any(style in text for style in STYLE[code])
        return not (names or has_style) and any(len(word) > 1 and is_english_word(word) for word in latin)

    def _kind_of(self, code: str, word: str) -> WordKind:
        names, others = self._exact[code]
        if word in FOREIGN:
            return "foreign"
        if word in SMALL:
            return "english"
        if not (self.is_english(word) or is_english_word(word)):
            return "foreign"
        return "both" if word in names or word in others else "english"

    def is_english(self, word: str) -> bool:
        """Whether a lower-case word occurs in the English of a lexicon, in singular or plural."""
        forms = (word, word.removesuffix("s"), word.removesuffix("es"))
        return word not in FOREIGN and any(form in self._english for form in forms)

    def _of_chinese_characters(self, text: str) -> str:
        japanese = self._lexicons.get("ja")
        if japanese is not None and all(piece.kind != "unknown" for piece in japanese.pieces(text)):
            return "ja"
        hint = (
            ""
            if japanese is None
            else ", or in Japanese with words that the translator lacks (then set translate to ja)"
        )
        raise self._error(f"in Chinese{hint}")

    def _of_latin_letters(self, text: str) -> str:
        whole = text
        text = without_english_names(text)
        words = [word.lower() for word in WORD.findall(text)]
        known = {ENGLISH: sum(self.is_english(word) for word in words)}
        if known[ENGLISH] == len(words):
            return ENGLISH
        known |= {code: self._num_known(text, code) for code in LATIN if code in self._lexicons}
        most = max(known.values())
        num_english = sum(self.is_english(word) or self._is_english_word(word) for word in words)
        foreign = self._that_know_exactly(words)
        if num_english == len(words) and (not foreign or text != whole):
            return ENGLISH
        if num_english == len(words):
            return foreign[0] if len(foreign) == 1 else self._likeliest(whole, foreign)
        if num_english > most and 2 * num_english > len(words):
            return ENGLISH
        best = [code for code in known if known[code] == most]
        if ENGLISH in best and most > len(words) / 2:
            return ENGLISH
        if len(best) == 1 and most == len(words):
            return best[0]
        ranked = _ranked(whole)
        found, probability = ranked[0]
        if probability > SURE:
            if found in OTHERS and most < MOST * len(words):
                raise self._error(f"in {OTHERS[found]}")
            if found in best or found == ENGLISH or most == 0:
                return found if found in known else ENGLISH
        if most > len(words) / 2 or num_english == 0 < most:
            return self._likeliest(whole, best)
        return ENGLISH

    @staticmethod
    def _likeliest(text: str, codes: Sequence[str]) -> str:
        return next(code for code, _ in _ranked(text) if code in codes)

    @staticmethod
    def _is_english_word(word: str) -> bool:
        return word not in FOREIGN and is_english_word(word)

    def _that_know_exactly(self, words: Sequence[str]) -> list[str]:
        """The languages that have all of these English words too, with the same accents: a single word as a name that
        English has not borrowed, or several words."""
        if len(words) == 1:
            return [code for code in self._exact if words[0] in self._exact[code][0] and not is_borrowed(words[0])]
        return [
            code for code, (names, others) in self._exact.items() if all(one in names or one in others for one in words)
        ]

    @functools.cached_property
    def _exact(self) -> dict[str, tuple[frozenset[str], frozenset[str]]]:
        """By language, the names of one word and all other words, in lower case with their accents."""
        found = {}
        for code in LATIN:
            if (lexicon := self._lexicons.get(code)) is None:
                continue
            names = frozenset(name.lower() for name in lexicon.names if WORD.fullmatch(name))
            typed = {word for name in lexicon.names for word in WORD.findall(name.lower())}
            accented = {folded(word, code) for word in typed if word != folded(word, code)}
            others = typed | {word for word in lexicon.words if word not in accented}
            found[code] = (names, frozenset(others))
        return found

    def _num_known(self, text: str, code: str) -> int:
        pieces = self._lexicons[code].pieces(text)
        parts = [text[piece.start : piece.end] for piece in pieces if piece.kind in ("name", "word")]
        return sum(not word.key.isdigit() for part in parts for word in words_in(part, code))

    def _supported(self, code: str) -> str:
        if code not in self._lexicons:
            raise self._error(f"in {LANGUAGES[code]}")
        return code

    def _error(self, found: str) -> PromptError:
        known = [name for code, name in LANGUAGES.items() if code in self._lexicons]
        languages = f"{', '.join(known[:-1])} and {known[-1]}" if len(known) > 1 else "".join(known) or "no language"
        return PromptError(
            f"the prompt is {found}; the translator knows {languages}: write it in one of them or in English, or have "
            "it drawn as it is with translate off"
        )


def _script(character: str) -> str:
    found = script_of(character)
    if found in ("hiragana", "katakana"):
        return "kana"
    if found in ("kanji", "hangul"):
        return found
    return unicodedata.name(character, "unknown").split()[0].lower()


def _ranked(text: str) -> list[tuple[str, float]]:
    """Languages by falling probability."""
    return [(str(code), float(probability)) for code, probability in _identifier().rank(text)]


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # half a second, and few prompts need it

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([ENGLISH, *LATIN, *OTHERS])
    return identifier
