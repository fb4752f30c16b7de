"""`CaptionWording`: puts an English prompt into the wording of the captions that a model was trained on.

    "i want to see a rocket rendered in twitter style"  ->  "rocket, twemoji style emoji"

A small decoder draws best what is worded as its captions were: the thing, a comma, and the words of a style. People
word prompts as sentences. So words around the thing are dropped, and the style gets its own words. A prompt that is not
understood this way to its last word stays as it is.
"""

import functools
import hashlib
import json
import re
from collections.abc import Sequence

from dalle.checkpoint.vocabulary import STOP_WORDS, Style, Vocabulary

__all__ = ["CaptionWording"]

ARTICLES = frozenset(("a", "an", "the"))
LINKS = ARTICLES | {"and", "at", "by", "for", "from", "in", "of", "on", "or", "to", "with"}
"""Words that also occur within the name of a thing: a house with a garden."""
AROUND = (STOP_WORDS | LINKS) - {"one", "two"} | frozenset(
    """am been being but come comes created creates creating deliver depict depicted depicting depiction depicts design
    designed did display displaying displays do does doing done drawings draws else fashion featuring given gives giving
    gimme going had has hello hey hi hope hoping how i'd i'll i'm illustrate illustrated illustrating illustration
    illustrations it's just kindly lemme let let's like likes love made maker makes making manner may maybe might
    must needed needs nice nicely ok okay our paint painted painting perhaps pic pics pls plz portray portrayed
    portraying possible produce produced really render rendered rendering renders rendition represent representation
    represented representing represents see shall should showed showing shown shows simply sketch sketched sort style
    thank thanks thx try turn turned turning u us use used using variant version wanna wanted wants was way we'd were
    what what's when where which who will wish would you'd you're""".split()
)
"""Words that people put around the thing that they want to see, and that say nothing about it."""
BEFORE_STYLE = frozenset(("as", "by", "from", "in", "with"))
AFTER_STYLE = frozenset(
    ("design", "emoji", "emojis", "icon", "icons", "look", "manner", "rendition", "style", "styled", "version")
)
"""Words beside a name such as `google` that show that it names a style, and not the thing."""
WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
SPACED_3D = re.compile(r"\b3[- ]d\b", re.IGNORECASE)


class CaptionWording:
    """The wording of one model's captions, from its vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._names: dict[tuple[str, ...], Style] = {}
        self._other_names: set[tuple[str, ...]] = set()
        for style in vocabulary.styles:
            for name in style.others:
                self._names[_key(_words(name))] = style
                self._other_names.add(_key(_words(name)))
        for style in vocabulary.styles:
            for name in (style.name, style.phrase):
                self._names[_key(_words(name))] = style
                self._other_names.discard(_key(_words(name)))
        self._longest_name = max(map(len, self._names), default=0)
        others = {other: concept for concept, *others in vocabulary.synonyms for other in others}
        self._other_things = {tuple(_words(other)): concept for other, concept in others.items()}
        self._things = {tuple(_words(concept)) for concept in vocabulary.concepts} | {*self._other_things}
        self._longest_thing = max(map(len, self._things), default=0)
        self._thing_words = {word for thing in self._things for word in thing}
        self._vocabulary = vocabulary

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of all that decides how prompts are worded."""
        styles = [[style.name, style.phrase, *style.others] for style in self._vocabulary.styles]
        known = [self._vocabulary.concepts, self._vocabulary.synonyms, self._vocabulary.words]
        return hashlib.sha256(json.dumps([styles, *known]).encode()).hexdigest()

    def __call__(self, prompt: str) -> str:
        """The prompt in the wording of captions, or as it was given if it is worded so already, or if a word of it is
        not understood: `a cat, but sleeping`."""
        text = SPACED_3D.sub("3d", prompt)
        places = list(WORD.finditer(text))
        words = [place.group().lower().replace("\u2019", "'") for place in places]
        found = self._style_in(words)
        start, end, style = (len(words), len(words), None) if found is None else found
        parts = [(0, self._description_before(words, start)), (end, len(words))]
        parts = [self._thing_in(words, *part, style) for part in parts]
        things = [(first, last) for first, last in parts if first < last]
        if len(things) != 1:
            return prompt
        first, last = things[0]
        thing = text[places[first].start() : places[last - 1].end()]
        if any(word in AROUND - LINKS for word in words[first:last]) and tuple(words[first:last]) not in self._things:
            return prompt
        if last == start and last - first > 3 and words[last - 3] in BEFORE_STYLE and words[last - 2] in ARTICLES:
            return prompt  # with a shiny 3d look
        if not self._vocabulary.knows_all(thing):
            return prompt
        if style is None:
            return thing if {*words[:first], *words[last:]} - ARTICLES else prompt
        thing = self._other_things.get(tuple(words[first:last]), thing)
        before, phrase = {*words[:first]}, _words(style.phrase)
        has_comma = start > 0 and "," in text[places[start - 1].end() : places[start].start()]
        if has_comma and words[start:] == phrase and not (before & ARTICLES and before - ARTICLES):
            return prompt  # a caption, with no sentence before it
        return f"{thing}, {style.phrase}"

    def _style_in(self, words: Sequence[str]) -> tuple[int, int, Style] | None:
        """The longest name of a style in a prompt, of these the last, as words[start:end]: its words in any order, and
        perhaps one more between them: `microsoft color gradient`."""
        for length in range(min(self._longest_name, len(words)), 0, -1):
            for between in (0, 1) if length > 1 else (0,):
                for start in range(len(words) - length - between, -1, -1):
                    end = start + length + between
                    if (style := self._style_named(words, start, end, between)) is not None:
                        return start, end, style
        return None

    def _style_named(self, words: Sequence[str], start: int, end: int, between: int) -> Style | None:
        """The style that words[start:end] name, with so many words between them that are in no name of a thing."""
        names = words[start:end]
        if not between:
            style = self._names.get(key := _key(names))
            is_thing = len(names) == 1 and key in self._other_names and not self._names_style(words, start)
            return None if is_thing else style
        for place in range(1, len(names) - 1):
            if names[place] not in AROUND | self._thing_words:
                style = self._names.get(_key([*names[:place], *names[place + 1 :]]))
                if style is not None:
                    return style
        return None

    def _names_style(self, words: Sequence[str], place: int) -> bool:
        is_described = self._description_before(words, place) < place
        return is_described or (place + 1 < len(words) and words[place + 1] in AFTER_STYLE)

    def _description_before(self, words: Sequence[str], place: int) -> int:
        """Where the description of a style begins whose name is at this place: `in`, `with a shiny`, or its name. A
        word that is in the name of a thing is none of a style: `in a hat`."""
        start = place
        if start > 0 and words[start - 1] not in AROUND | self._thing_words:
            start -= 1
        while start > 0 and words[start - 1] in ARTICLES:
            start -= 1
        return start - 1 if start > 0 and words[start - 1] in BEFORE_STYLE else place

    def _thing_in(self, words: Sequence[str], start: int, end: int, style: Style | None) -> tuple[int, int]:
        """The thing in words[start:end], as start and end: without the words around it."""

        def is_around(word: str) -> bool:
            return word in AROUND or (style is not None and self._names.get((word,)) is style)

        while start < end and is_around(words[start]) and not self._begins_a_thing(words[start:end]):
            start += 1
        while start < end and is_around(words[end - 1]) and not self._ends_a_thing(words[start:end]):
            end -= 1
        return start, end

    def _begins_a_thing(self, words: Sequence[str]) -> bool:
        """Whether the words begin with a known thing of several words, such as `love letter`, or are one."""
        lengths = range(2, min(self._longest_thing, len(words)) + 1)
        return tuple(words) in self._things or any(tuple(words[:length]) in self._things for length in lengths)

    def _ends_a_thing(self, words: Sequence[str]) -> bool:
        lengths = range(2, min(self._longest_thing, len(words)) + 1)
        return tuple(words) in self._things or any(tuple(words[-length:]) in self._things for length in lengths)


def _words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def _key(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(word.removesuffix("'s").replace("colour", "color") for word in words))
