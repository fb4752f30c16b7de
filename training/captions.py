"""What a picture is called in training: templates drawn at random, with keywords, from a pair's metadata.

People do not write captions the way a data set does. So a picture is seen under many: its own captions, with and
without an article, with some of its keywords, with the style in front or behind or not at all.
"""

import random
from typing import Any

__all__ = ["all_captions", "draw_caption"]

MAX_KEYWORDS = 3
TEMPLATES_WITH_STYLE = (
    "{name}, {style} style emoji",
    "{article} {name}, {style} style emoji",
    "{name} in {style} style",
    "{style} {name}",
    "a {style} emoji of {name}",
    "{name}, {keywords}, {style} style emoji",
    "{keywords}, {style} style emoji",
)
TEMPLATES = ("{name}", "{article} {name}", "{name}, {keywords}")


def draw_caption(metadata: dict[str, Any], chance: random.Random) -> str:
    """One caption for a pair. Half of the time it is one of the pair's own `captions`, the first most often; else a
    template with `name_en`, `style` and up to three of `keywords_en`, where it has them."""
    captions: list[str] = metadata["captions"]
    name, style = metadata.get("name_en", "").replace(": ", ", "), metadata.get("style", "")
    if not name or chance.random() < 0.5:
        return captions[0] if chance.random() < 0.5 else chance.choice(captions)
    keywords = [word for word in metadata.get("keywords_en", []) if word != name]
    chosen = chance.sample(keywords, k=min(len(keywords), chance.randint(1, MAX_KEYWORDS)))
    templates = TEMPLATES_WITH_STYLE if style and chance.random() < 0.9 else TEMPLATES
    usable = [template for template in templates if chosen or "{keywords}" not in template]
    article = "an" if name[0].lower() in "aeiou" else "a"
    return chance.choice(usable).format(name=name, style=style, keywords=", ".join(chosen), article=article)


def all_captions(metadata: dict[str, Any]) -> list[str]:
    """Every phrase of a pair that a text tokenizer should know: its captions, name and keywords."""
    name = [metadata["name_en"]] if metadata.get("name_en") else []
    return [*metadata["captions"], *name, *metadata.get("keywords_en", [])]
