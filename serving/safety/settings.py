"""`SafetySettings`: which prompts and pictures are blocked; part of `serving.settings`, and of a batch's options."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from serving.model_settings import StrictModel

__all__ = ["SafetySettings", "Stage"]

Stage = Literal["prompt", "picture"]


def _hook(name: str) -> str:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        raise ValueError(f"{name[:80]!r} does not name a function; write package.module:function")
    return name


Hook = Annotated[str, AfterValidator(_hook)]
"""A function, such as `package.module:function`, which every process that draws must be able to import."""


class SafetySettings(StrictModel):
    """Checks of prompts and pictures. By default there are none."""

    words: Path | None = None
    """File of words and phrases, one a line in UTF-8, that a prompt must not have. Lines that begin with `#` are
    comments."""
    prompt_hook: Hook | None = None
    """Function `package.module:function` that gets a prompt (`str`) and returns whether it is blocked (`bool`)."""
    nsfw_threshold: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    """Score of Yahoo's Open-NSFW network, from 0 to 1, from which a picture is blocked. Yahoo takes scores above 0.8
    for unsafe and below 0.2 for safe. It needs the extra `safety`. Without a threshold the network is not used."""
    picture_hook: Hook | None = None
    """Function `package.module:function` that gets a picture (`PIL.Image.Image`, RGB) and returns whether it is blocked
    (`bool`)."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is checked; nothing by default."""
        prompts = self.words is not None or self.prompt_hook is not None
        pictures = self.nsfw_threshold is not None or self.picture_hook is not None
        return (*(("prompt",) if prompts else ()), *(("picture",) if pictures else ()))

    def absolute(self) -> "SafetySettings":
        """The same settings with the absolute path of the word list: replicas have working directories of their own."""
        return self if self.words is None else self.model_copy(update={"words": self.words.absolute()})
