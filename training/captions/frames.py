"""Frames of training captions: the words around the name of a picture and the name of its style.

`{name}` is the bare name; `{thing}` is the name with or without an article, or its plural. `{style}` is the name of the
style. `{picture}` names a picture in the style: `twemoji emoji` for twemoji, `line icon` for line icon. `{a_style}` and
`{a_picture}` are the same with the article `a`. `{medium}` is what a picture in the style is, such as emoji.

No frame of the evaluation (`training.captions.phrasing`) may be added here.
"""

__all__ = [
    "AROUND_WRAPPED",
    "ASKABLE",
    "ASKING",
    "MARKS_AFTER",
    "NOT_ASKABLE",
    "OF_EMOJI",
    "OF_ICONS",
    "OF_STYLES",
    "OF_TRADE_NAMES",
    "PLAIN",
    "SEPARATORS",
    "TRADE_NAMES",
    "WITHOUT_EMOJI",
    "WITH_ONE",
    "WRAPPED",
]

AROUND_WRAPPED = (
    "{thing}, {style} style",
    "{thing}, {style}",
    "{thing} in {style} style",
    "{thing} in the {style} style",
    "{thing} ({style})",
)
ASKABLE = (
    *AROUND_WRAPPED,
    "{thing} as {a_picture}",
    "{name} as {picture}",
    "{picture} of {thing}",
    "{a_picture} of {thing}",
)
"""Frames that can follow a request: draw ..."""
MARKS_AFTER = ("{thing} - {style}", "{thing}: {style}", "{thing} / {style}", "{thing}; {style} style")
NOT_ASKABLE = ("{thing}, {picture}", "{style}, {name}", "{style}: {name}", "{style} - {name}", "{picture}: {name}")
OF_STYLES = ("{style} {name}", "{style} {name}", "{name} {style} style")
"""Frames for styles whose name is not a noun, such as noto; they can follow a request."""
OF_EMOJI = (
    "{style} style {name}",
    "{style} {name} {medium}",
    "{style} {name} {medium}",
    "{name} {medium} in {style} style",
    "{name} {medium}, {style}",
    "{name} {medium} ({style})",
    "{name} {style} {medium}",
    "{name}, {style} {medium}",
)
"""Frames for styles whose name is not a noun; they cannot follow a request."""
OF_ICONS = ("{name} {style}", "{name} {style}", "{name}, {style}")
"""Frames for styles that are a noun, such as line icon."""
OF_TRADE_NAMES = ("{thing} in the style of {style}", "{name} in the style of {style}")
TRADE_NAMES = (
    *("noto", "google", "android", "twemoji", "twitter", "fluent", "microsoft", "emojione", "emoji one", "firefox"),
    *("mozilla", "streamline"),
)
WITH_ONE = ("{a_style} {name}", "{a_style} {name} {medium}")
"""Frames for names that can take the article `a`."""
PLAIN = ("{thing}",)
WRAPPED = (
    *("picture of {thing}", "a picture of {thing}", "image of {thing}", "an image of {thing}", "pic of {thing}"),
    *("icon of {thing}", "an icon of {thing}", "drawing of {thing}", "a drawing of {thing}", "illustration of {thing}"),
    *("emoji of {thing}", "an emoji of {thing}", "emoji of {thing}", "sticker of {thing}", "a sticker of {thing}"),
    *("{name} emoji", "{name} emoji", "{name} icon", "{name} sticker", "{name} picture"),
)
"""Frames without a style. With a style, the result fills `{thing}` of another frame: a sticker of a cat, 3d."""
WITHOUT_EMOJI = tuple(frame for frame in WRAPPED if "emoji" not in frame and "sticker" not in frame)
"""Frames without a style for icons and clip art, so that the words emoji and sticker are used for emoji alone."""
ASKING = (
    *("draw {it}", "draw {it}", "draw me {it}", "show me {it}", "give me {it}", "make {it}", "make me {it}"),
    *("create {it}", "generate {it}", "i want {it}", "i need {it}", "please draw {it}", "please make {it}"),
    *("can you draw {it}?", "can i have {it}", "draw {it}, please", "{it} please", "{it}, please"),
)
SEPARATORS = (", ", ", ", ", ", ", ", "; ", " / ", " - ")
