"""`CaptionWording`: puts an English prompt into the wording of the captions that a model was trained on.

    "i want to see a rocket rendered in twitter style"  ->  "rocket, twemoji style emoji"

A small decoder draws best what is worded as its captions were: the thing, a comma, and the words of a style. People
word prompts as sentences. Two forms of sentences are understood, each with words of request around it:

    [draw me a] THING [rendered in] STYLE [please]          [i want a] STYLE [emoji that shows a] THING [please]

Only a prompt that fits one of them to its last word is worded anew; any other stays as it is, and so does one without a
style.
"""

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Sequence

from dalle.checkpoint.vocabulary import Style, Vocabulary

__all__ = ["CaptionWording"]

MAX_CHARACTERS = 300
"""Longer prompts stay as they are."""
MAX_REORDERED = 4
"""Most words of a style's name that may come in any order."""
PLAIN = re.compile(r"[\w\s.,:;!?'\u2019\"\u201c\u201d\u2013\u2014-]*")
"""Prompts with other characters stay as they are: brackets, weights, markup, emoji."""
BREAK = re.compile(r"[.:;!?\n\"\u201c\u201d]")
"""Punctuation that is in no thing, unless it is known by its name: Mrs. Claus."""
PAUSE = re.compile(r"[.,:;!?\n\"\u201c\u201d\u2013\u2014]|\s-\s")
"""Punctuation that is in no name of a style, and may stand between a thing and a style."""
WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
SPACED_3D = re.compile(r"\b3[- ]d\b", re.IGNORECASE)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


ARTICLES = _set("a an the")
LINKS = ARTICLES | _set("and as at but by for from in into of on or to with")
"""Words that neither begin nor end a thing."""
NEGATIONS = _set(
    """anti aren't can't cannot doesn't don't except isn't minus never no non none nor not nothing sans unlike versus vs
    without won't"""
)
ASKING = _set(
    """create depict draw drawing emoji generate get gimme give have how i'd icon illustrate illustration image lemme
    let let's like love make need needed pic picture please produce render see show something sticker version wanna want
    wanted what would"""
)
"""Words at least one of which makes a request."""
REQUEST = (
    ASKING
    | ARTICLES
    | _set(
        """am are be can could do does drawn for hello hey hi hoping i i'll i'm is it it's just kindly looking me my
        now of ok okay pls plz possible should so some that there this to try u us was we you your"""
    )
)
"""Words of a request in front of the thing."""
CLOSING = _set("me of see draw drawing generate create render want need would showing depicting please")
"""The last word of a request, if it is no article."""
ALONE = _set("draw generate create gimme")
"""Requests of one word."""
INTO_STYLE = _set("as by from in into like using with")
DONE = _set(
    """but created depicted designed done drawn illustrated like look looking looks made painted rendered shown styled
    turned"""
)
"""Words between the thing and the style, before `in`."""
LOOKING = _set("like look looking looks")
"""Words of `DONE` that only questions have: how would a fox look in noto?"""
QUESTIONS = _set("how what")
ADJECTIVES = _set(
    "bright classic clean colorful cool cute glossy minimal minimalist modern neat nice plain shiny simple smooth"
)
"""Words that describe a style, and are left out with it."""
BETWEEN = _set("color colored emoji shaped style")
"""Words within the name of a style that are left out: microsoft color gradient."""
OF_STYLE = _set("design emoji emojis icon icons image look manner picture rendition style styled version")
"""Words after the name of a style."""
LOOKS = _set("design look manner rendition style version")
"""Words without which `with a round flag` says what is in the picture."""
SHOWING = ARTICLES | _set("depicting depicts displaying displays of show showing shows that which")
"""Words between the style and the thing."""
POLITE = _set("emoji for me pls plz please thank thanks thx you")
"""Words at the end of a prompt."""
STRAY = _set(
    """are be but depicted depicting depicts done draw drawn emoji emojis give her his i i'd i'm icons is it like look
    looking looks me my our please rendered show shown shows their want would you your"""
)
"""Words that a thing does not have, unless it is known by its name."""


class CaptionWording:
    """The wording of one model's captions, from its vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._names: dict[tuple[str, ...], Style] = {}
        """Styles by the words of their names, also in other orders: flat microsoft."""
        self._vague: set[tuple[str, ...]] = set()
        """Names of one word that also mean something else: google, 3d."""
        for style in vocabulary.styles:
            keys = [key for name in style.others for key in _orders(name)]
            self._names |= dict.fromkeys(keys, style)
            self._vague |= {key for key in keys if len(key) == 1}
        for style in vocabulary.styles:
            keys = [*_orders(style.name), _key(_words(style.phrase))]
            self._names |= dict.fromkeys(keys, style)
            self._vague -= {*keys}
        self._longest_name = max(map(len, self._names), default=0)
        others = {other: concept for concept, *others in vocabulary.synonyms for other in others}
        self._concepts = {tuple(_words(other)): concept for other, concept in others.items() if PLAIN.fullmatch(other)}
        """Concepts by the words of their other names."""
        self._things = {tuple(_words(name)) for name in vocabulary.concepts if PLAIN.fullmatch(name)} | {
            *self._concepts
        }
        self._longest_thing = max(map(len, self._things), default=0)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of all that decides how prompts are worded."""
        styles = [[style.name, style.phrase, *style.others] for style in self._vocabulary.styles]
        known = [self._vocabulary.concepts, self._vocabulary.synonyms, self._vocabulary.words]
        return hashlib.sha256(json.dumps([styles, *known]).encode()).hexdigest()

    def __call__(self, prompt: str) -> str:
        """The prompt in the wording of captions, or as it was given if it is a caption already or not understood."""
        if len(prompt) > MAX_CHARACTERS or not PLAIN.fullmatch(prompt):
            return prompt
        text = SPACED_3D.sub("3d", prompt)
        places = list(WORD.finditer(text))
        words = [place.group().lower().replace("\u2019", "'") for place in places]
        pauses = [bool(PAUSE.search(text[a.end() : b.start()])) for a, b in itertools.pairwise(places)]
        if (found := self._style_in(words, pauses)) is None:
            return prompt
        start, end, style = self._widened(words, *found)
        first, last = self._thing_beside(words, start, end)
        thing, known = words[first:last], tuple(words[first:last]) in self._things
        if QUESTIONS & {*words[:first]} and not LOOKING & {*words[last:]}:
            return prompt  # how to draw a cat
        if not thing or NEGATIONS & {*words[:first], *words[last:], *(thing if not known else ())}:
            return prompt
        given = text[places[first].start() : places[last - 1].end()]
        if not known and ({thing[0], thing[-1]} & LINKS or STRAY & {*thing} or BREAK.search(given)):
            return prompt
        if not known and last == start and not pauses[last - 1]:
            return prompt  # black square flag
        if self._has_style(thing) or self._spans(words, start, end) or not self._vocabulary.knows_all(given):
            return prompt
        asked = {*words[:first]}
        has_request = bool(asked & ARTICLES and asked - ARTICLES)
        if words[start:] == _words(style.phrase) and start > 0 and pauses[start - 1] and not has_request:
            return prompt  # a caption
        return f"{self._concepts.get(tuple(thing), given)}, {style.phrase}"

    # -- the style

    def _style_in(self, words: Sequence[str], pauses: Sequence[bool]) -> tuple[int, int, Style] | None:
        """The longest name of a style in a prompt, of these the last, as words[start:end], with perhaps one more word
        in it: `microsoft color gradient`. pauses: whether there is punctuation after each word but the last."""
        for length in range(min(self._longest_name, len(words)), 0, -1):
            for more in (0, 1) if length > 1 else (0,):
                for start in range(len(words) - length - more, -1, -1):
                    end = start + length + more
                    style = None if any(pauses[start : end - 1]) else self._style_named(words[start:end], more)
                    if style is not None and (length > 1 or self._is_meant(words, start, pauses)):
                        return start, end, style
        return None

    def _widened(self, words: Sequence[str], start: int, end: int, style: Style) -> tuple[int, int, Style]:
        """The place of a style with further names of it on both sides: twitter twemoji."""
        while start > 0 and self._names.get(_key(words[start - 1 : start])) is style:
            start -= 1
        while end < len(words) and self._names.get(_key(words[end : end + 1])) is style:
            end += 1
        return start, end, style

    def _style_named(self, names: Sequence[str], more: int) -> Style | None:
        if not more:
            return self._names.get(_key(names))
        inner = [place for place in range(1, len(names) - 1) if names[place] in BETWEEN]
        return next(filter(None, (self._names.get(_key([*names[:i], *names[i + 1 :]])) for i in inner)), None)

    def _is_meant(self, words: Sequence[str], place: int, pauses: Sequence[bool]) -> bool:
        """Whether a name of one word, such as `google`, names a style here, and not the thing."""
        if _key(words[place : place + 1]) not in self._vague:
            return True
        if place + 1 < len(words) and words[place + 1] in OF_STYLE and not pauses[place]:
            return True
        leading = words[self._description_before(words, place, place + 1) : place]
        return bool({"as", "in"} & {*leading}) and not ARTICLES & {*leading}

    def _has_style(self, thing: Sequence[str]) -> bool:
        """Whether a thing contains a name of a style that is not vague."""
        lengths = range(1, min(self._longest_name, len(thing)) + 1)
        keys = (_key(thing[i : i + n]) for n in lengths for i in range(len(thing) - n + 1))
        return any(key in self._names and key not in self._vague for key in keys)

    def _spans(self, words: Sequence[str], start: int, end: int) -> bool:
        """Whether a known thing begins before the style and ends within it, or the other way round: paper clip art."""
        for low in range(max(0, start - self._longest_thing), end):
            for high in range(low + 2, min(len(words), low + self._longest_thing) + 1):
                inside = max(0, min(high, end) - max(low, start))
                if 0 < inside < high - low and tuple(words[low:high]) in self._things:
                    return True
        return False

    # -- the thing

    def _thing_beside(self, words: Sequence[str], start: int, end: int) -> tuple[int, int]:
        """The thing before or after the style words[start:end], as start and end; empty if the prompt is not understood
        to its last word."""
        last = len(words)
        while last > end and words[last - 1] in POLITE:
            last -= 1
        after = end
        while after < last and words[after] in OF_STYLE and not self._begins_a_thing(words[after:last]):
            after += 1
        if after == last:
            stop = self._description_before(words, start, end)
            stop -= stop > 0 and words[stop - 1] == "emoji"
            return self._after_request(words, stop), stop
        if not {*words[:start]} <= REQUEST | INTO_STYLE | (ADJECTIVES if after > end else frozenset()):
            return 0, 0
        while after < last and words[after] in SHOWING and tuple(words[after:last]) not in self._things:
            after += 1
        return after, last

    def _description_before(self, words: Sequence[str], start: int, end: int) -> int:
        """Where the words begin that lead from a thing to the style words[start:end], such as `rendered in the style
        of` or `with a shiny`; `start` if there are none."""
        place = start
        if place > 0 and words[place - 1] in ADJECTIVES:
            place -= 1
        if list(words[max(0, place - 2) : place]) == ["style", "of"]:
            place -= 2
        while place > 0 and words[place - 1] in ARTICLES:
            place -= 1
        if place == 0 or words[place - 1] not in INTO_STYLE:
            return start
        place -= 1
        is_object = words[place] in ("by", "from", "using", "with") or (
            words[place] == "in" and words[place + 1] in ARTICLES
        )
        if is_object and not LOOKS & {*words[place:start], *words[end : end + 2]}:
            return start
        verbs = DONE if QUESTIONS & {*words} else DONE - LOOKING
        while place > 0 and words[place - 1] in verbs:
            place -= 1
        return place

    def _after_request(self, words: Sequence[str], stop: int) -> int:
        """Where the thing begins in words[:stop]: after a request and its article, or after an article."""
        place = 0
        while place < stop and words[place] in REQUEST and not self._begins_a_thing(words[place:stop]):
            place += 1
        asked = words[:place]
        is_request = bool(ASKING & {*asked}) and place < stop
        if is_request and (asked[-1] in ARTICLES | CLOSING if place > 1 else asked[0] in ALONE):
            return place
        place = 0
        while place < stop and words[place] in ARTICLES:
            place += 1
        return place

    def _begins_a_thing(self, words: Sequence[str]) -> bool:
        """Whether the words begin with a known thing of several words, such as `love letter`, or are one."""
        lengths = range(2, min(self._longest_thing, len(words)) + 1)
        return tuple(words) in self._things or any(tuple(words[:length]) in self._things for length in lengths)


def _words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def _orders(name: str) -> list[tuple[str, ...]]:
    """The words of a style's name in all orders; in the given one alone if they are many, or if any style may have one
    of them after its name: emoji one."""
    words = _words(name)
    if len(words) > MAX_REORDERED or OF_STYLE & {*words}:
        return [_key(words)]
    return [_key(order) for order in itertools.permutations(words)]


def _key(words: Sequence[str]) -> tuple[str, ...]:
    """Words for a comparison: google's, coloured."""
    return tuple(word.removesuffix("'s").replace("colour", "color") for word in words)
