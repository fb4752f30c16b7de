"""Cleaning of prompts before they are tokenized, as the projects did with the captions that they trained on.

`clean_caption` is the cleaning of LlamaGen before T5: it removes what web pages leave in captions, by the rules of
DeepFloyd's IF and in their order. They are applied twice, since one rule may uncover work for an earlier one.
"""

import html
import io
import re
import urllib.parse
from collections.abc import Callable

from dalle.errors import PromptError

__all__ = ["CLEANERS", "clean_caption"]

HOST = r"[a-z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
FILE = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
    "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)

Rules = tuple[tuple[str, str], ...]

ADDRESSES: Rules = (
    ("<person>", "person"),
    (rf"\b((?:https?:(?:/{{1,3}}|[a-z0-9%])|{HOST}))", ""),
    (rf"\b((?:www:(?:/{{1,3}}|[a-z0-9%])|{HOST}))", ""),
)
SIGNS: Rules = (
    (r"@\w+\b", ""),
    ("[\u31c0-\u31ff\u3200-\u4dff\u4e00-\u9fff]+", ""),  # CJK strokes and ideographs
    (f"[{DASHES}]+", "-"),
    ("[\u0060\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{FILE})", ""),
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
WORDS: Rules = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # article numbers
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{FILE})(\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", ""),  # sizes, also with a Cyrillic x or a times sign
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)
ENDS: Rules = (
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def clean_caption(caption: str) -> str:
    """Clean a caption for T5. Raises `PromptError` for one that looks like HTML but cannot be parsed, and if ftfy or
    Beautiful Soup is not installed."""
    return _clean_once(_clean_once(caption))


def _clean_once(caption: str) -> str:
    try:
        import bs4
        import ftfy
    except ImportError as error:
        raise PromptError(
            f"cleaning prompts for this model needs {error.name}: pip install 'dalle-serve[text]'"
        ) from error
    caption = _apply(ADDRESSES, urllib.parse.unquote_plus(caption).strip().lower())
    try:
        # given as a file: Beautiful Soup warns about strings that look like a file's name
        page = bs4.BeautifulSoup(io.StringIO(caption), "html.parser")
    except bs4.exceptions.ParserRejectedMarkup as error:
        raise PromptError(f"the prompt looks like HTML, and is not valid: {caption[:80]!r}") from error
    caption = _apply(SIGNS, page.text)
    if len(re.findall("[-_]", caption)) > 3:
        caption = re.sub("[-_]", " ", caption)
    caption = html.unescape(html.unescape(ftfy.fix_text(caption))).strip()
    # stripped last: blanks at the ends decide which rules of ENDS match
    return _apply(ENDS, _apply(WORDS, caption)).strip()


def _apply(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def _clean_as_clip(text: str) -> str:
    """CLIP's `basic_clean` and `whitespace_clean`, then lower case: repairs encodings, unescapes HTML entities twice,
    and replaces runs of white space by one space."""
    try:
        import ftfy
    except ImportError as error:
        raise PromptError("cleaning prompts for this model needs ftfy: pip install 'dalle-serve[text]'") from error
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip().lower()


CLEANERS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "lower": lambda text: text.lower().strip(),
    "clip": _clean_as_clip,
    "caption": clean_caption,
}
"""Cleaning functions by the name that a tokenizer's configuration has for each: none, lower case without blanks at the
ends, CLIP's, and LlamaGen's before T5."""
