"""The languages that are translated into English, and the words of their sentences.

French, German and Spanish words end at blanks and marks; Korean words also where another script begins; Japanese, which
has no blanks, is cut wherever the script changes. Words are compared folded: in lower case, without accents, German
umlauts as two letters.
"""

import dataclasses
import functools
import re
import unicodedata
from typing import Literal, cast

from dalle.defaults import LANGUAGES_OF_PROMPTS, Translate
from dalle.errors import ParameterError

__all__ = [
    "LANGUAGES",
    "PARTICLES",
    "Word",
    "as_translate",
    "clean",
    "folded",
    "script_of",
    "without_particle",
    "words_in",
]

LANGUAGES = LANGUAGES_OF_PROMPTS
"""English names of the languages by ISO 639 code."""

Script = Literal["kanji", "hiragana", "katakana", "hangul", "other", "none"]

PARTICLES = (
    *("이라고", "이랑", "으로", "에서", "에게", "까지", "부터", "처럼", "하고", "보다"),
    *("은", "는", "이", "가", "을", "를", "의", "에", "와", "과", "랑", "로", "도", "만"),
)
"""Korean particles that follow a noun without a blank."""
STRAIGHT = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"'})
UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "œ": "oe", "æ": "ae"})
COMBINING = re.compile(r"[\u0300-\u036f]")


def clean(text: str) -> str:
    """A text in Unicode form NFKC, with straight quotes and single blanks; `Pérou : ` loses the blank of French."""
    text = unicodedata.normalize("NFKC", text).translate(STRAIGHT)
    return re.sub(r"\s+", " ", text).replace(" :", ":").strip()


@functools.lru_cache(maxsize=65536)
def folded(word: str, language: str) -> str:
    """The form in which words of a language are compared."""
    word = word.lower()
    if language in ("ko", "ja"):
        return word
    word = word.translate(UMLAUTS)
    return unicodedata.normalize("NFC", COMBINING.sub("", unicodedata.normalize("NFD", word)))


@dataclasses.dataclass(frozen=True)
class Word:
    """A word in a text."""

    start: int
    end: int
    """Its characters are text[start:end]."""
    key: str
    """Its folded form."""


def script_of(character: str) -> Script:
    """The script of a character; `none` for blanks and marks."""
    if character == "々" or "\u3400" <= character <= "\u9fff":
        return "kanji"
    if "\u3041" <= character <= "\u309f":
        return "hiragana"
    if "\u30a1" <= character <= "\u30ff" and character != "・":
        return "katakana"
    if "\uac00" <= character <= "\ud7a3":
        return "hangul"
    return "other" if character.isalnum() else "none"


def words_in(text: str, language: str) -> list[Word]:
    """The words of a text that `clean` returned, in their order; marks and blanks are between them."""
    found = []
    start = 0
    while start < len(text):
        script = script_of(text[start])
        end = start + 1
        while end < len(text) and _continues(text[end], script, language):
            end += 1
        if script != "none":
            found.append(Word(start, end, folded(text[start:end], language)))
        start = end
    return found


def _continues(character: str, script: Script, language: str) -> bool:
    here = script_of(character)
    if here == "none" and unicodedata.combining(character):
        return True
    return here == script if language in ("ko", "ja") else script != "none" and here != "none"


def without_particle(word: str) -> str:
    """A Korean word without the particle at its end; the word itself if it has none or would be empty."""
    for particle in PARTICLES:
        if word.endswith(particle) and len(word) > len(particle):
            return word.removesuffix(particle)
    return word


OTHER_NAMES = {
    **{"français": "fr", "francais": "fr", "fra": "fr", "fre": "fr"},
    **{"한국어": "ko", "kor": "ko", "kr": "ko"},
    **{"deutsch": "de", "deu": "de", "ger": "de"},
    **{"español": "es", "espanol": "es", "spa": "es"},
    **{"日本語": "ja", "jpn": "ja", "jp": "ja"},
}
"""What people write for a language's code, by which a message names the code."""


def as_translate(value: object) -> Translate:
    """A value of `translate` from what a caller wrote: `auto`, `off`, or a language as a code or tag in any case, of
    which the region does not matter (`FR`, `fr-CA`, `en_GB.UTF-8`; BCP 47 and POSIX). Raises `ParameterError`."""
    choices = ", ".join(f"{code} ({name})" for code, name in LANGUAGES_OF_PROMPTS.items())
    if not isinstance(value, str):
        raise ParameterError(f"translate is {str(value)[:80]}; it must be a text: auto, off, {choices}, en")
    tag = re.fullmatch(r"([a-z]{2,8})([-_.@][a-z0-9-_.@]*)?", value.strip().lower())
    code = "" if tag is None else tag[1]
    if code in (*LANGUAGES_OF_PROMPTS, "en") or (code in ("auto", "off") and tag is not None and tag[2] is None):
        return cast(Translate, code)
    by_name = {name.lower(): code for code, name in LANGUAGES_OF_PROMPTS.items()} | OTHER_NAMES
    if (known := by_name.get(value.strip().lower())) is not None:
        hint = f"write {known}"
    elif code in ("eng", "english"):
        hint = "write en"
    else:
        hint = f"it must be auto, off, {choices}, or en, which only words English as captions are"
    raise ParameterError(f"translate is {value[:80]!r}; {hint}")
