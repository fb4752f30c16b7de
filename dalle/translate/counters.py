"""Korean and Japanese numbers with a counter, which follow their noun: `사과 3개`, `りんご3個`."""

import re

from dalle.translate.languages import without_particle
from dalle.translate.lexicon import Lexicon

__all__ = ["counted"]

COUNTED = {
    "ko": re.compile(
        r"(?P<noun>[가-힣]+)\s*(?P<number>\d+)\s?(?:개|마리|명|송이|권|잔|그루|채|자루)(?P<rest>[을를이가와과의]?)(?![가-힣])"
    ),
    "ja": re.compile(
        r"(?P<noun>[^\W\d_]+)(?P<number>\d+)(?:個|匹|本|枚|人|台|羽|頭|冊|つ)(?P<rest>)(?![\u4e00-\u9fff])"
    ),
}
BEFORE = re.compile(r"(?P<number>\d+)(?:個|匹|本|枚|人|台|羽|頭|冊|つ)の")


def counted(text: str, lexicon: Lexicon) -> str:
    """A cleaned text in which a number stands in front of the name that it counts, without its counter: `사과 3개` is
    `3 사과`. Texts of other languages, and numbers beside other words, stay as they are."""
    if lexicon.language not in COUNTED:
        return text

    def moved(found: re.Match[str]) -> str:
        said = found["noun"]
        start = next((at for at in range(len(said)) if lexicon.name(_bare(said[at:], lexicon.language))), None)
        if (
            start is None
            or (start > 0 and lexicon.language == "ko")
            or _is_in_name(found.start("number"), text, lexicon)
        ):
            return found[0]
        return f"{said[:start]}{found['number']} {_bare(said[start:], lexicon.language)}{found['rest']}"

    text = COUNTED[lexicon.language].sub(moved, text)
    if lexicon.language == "ko":
        return text
    return BEFORE.sub(lambda found: found[0] if _is_in_name(found.start(), text, lexicon) else f"{found[1]} ", text)


def _bare(noun: str, language: str) -> str:
    return without_particle(noun) if language == "ko" and noun[-1] in "을를이가" else noun


def _is_in_name(at: int, text: str, lexicon: Lexicon) -> bool:
    return any(piece.kind == "name" and piece.start <= at < piece.end for piece in lexicon.pieces(text))
