"""Words for the styles of the emoji data: how people name each style, and what a picture in it is called.

Each wording must mean one style only. Trade names are used as people use them, to describe how a picture looks.
"""

import dataclasses
from typing import Any

__all__ = ["STYLES", "Style", "style_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """The words for one style of the data."""

    name: str
    """Name of the style, the same as in the metadata."""
    others: tuple[str, ...] = ()
    """Other words for the style, for training captions."""
    held_out: tuple[str, ...] = ()
    """Other words for the style, for prompts of the evaluation only."""
    medium: str = "emoji"
    """What a picture in this style is called after the name of the style: `a noto emoji`. Empty if the name of the
    style is a noun: `a line icon`."""


STYLES = {
    style.name: style
    for style in (
        Style(name="noto", others=("google", "google noto"), held_out=("noto font",)),
        Style(
            name="noto blob",
            others=("blob", "google blob", "android blob"),
            held_out=("blobby google", "blob-shaped noto"),
        ),
        Style(name="twemoji", others=("twitter",), held_out=("twitter twemoji",)),
        Style(
            name="fluent gradient",
            others=("gradient", "microsoft gradient", "microsoft fluent gradient"),
            held_out=("colorful gradient", "microsoft color gradient"),
        ),
        Style(
            name="fluent flat",
            others=("microsoft flat", "flat fluent", "microsoft fluent flat"),
            held_out=("flat microsoft", "simple flat microsoft"),
        ),
        Style(
            name="fluent 3d",
            others=("3d", "glossy 3d", "microsoft 3d", "3d fluent", "microsoft fluent 3d"),
            held_out=("shiny 3d", "3-d", "shiny microsoft 3d"),
        ),
        Style(name="emojione", others=("emoji one",), held_out=("emoji-one",)),
        Style(
            name="firefox os",
            others=("firefox", "mozilla"),
            held_out=("mozilla firefox", "firefox phone"),
        ),
        Style(name="streamline"),
        Style(
            name="flat color icon",
            others=("flat icon", "flat colored icon", "flat colour icon", "colorful flat icon"),
            held_out=("flat, colorful icon", "icon in flat colors"),
            medium="",
        ),
        Style(
            name="fluent icon",
            others=("microsoft icon", "microsoft fluent icon", "fluent color icon"),
            held_out=("microsoft color icon",),
            medium="",
        ),
        Style(
            name="round flag",
            others=("circle flag", "circular flag", "round flag icon"),
            held_out=("circle-shaped flag", "rounded flag"),
            medium="",
        ),
        Style(name="square flag", others=("square flag icon",), held_out=("square-shaped flag",), medium=""),
        Style(name="clip art", others=("clipart",), held_out=("clip-art",), medium="picture"),
        Style(
            name="line icon",
            others=("outline icon", "thin line icon", "outlined icon", "line art icon", "black line icon"),
            held_out=("black outline icon", "icon in thin lines"),
            medium="",
        ),
        Style(
            name="line color icon",
            others=("colored line icon", "line colour icon", "color outline icon", "colored outline icon"),
            held_out=("line icon in color", "outline icon with color"),
            medium="",
        ),
    )
}


def style_of(metadata: dict[str, Any]) -> Style | None:
    """The words for a pair's style; None if the pair has no style. The medium of an unknown style is emoji if the first
    caption has that word, else picture."""
    name = metadata.get("style", "")
    if not name or name in STYLES:
        return STYLES.get(name)
    return Style(name=name, medium="emoji" if "emoji" in metadata["captions"][0] else "picture")
