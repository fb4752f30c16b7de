"""`Moderation`: all checks of the settings, for the process that draws: prompts before, pictures after.

Negative prompts are not judged: guidance only leads away from what they say, so an unwanted word is in its place there.
"""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from dalle.images import to_rgb
from serving.safety.errors import BlockedError, CheckFailedError
from serving.safety.hooks import call_hook, load_hook
from serving.safety.pictures import PictureCheck, require_network
from serving.safety.settings import SafetySettings
from serving.safety.words import WordList

__all__ = ["Moderation", "check_safety", "identity_of"]

logger = logging.getLogger(__name__)

MAX_PROMPTS = 8
"""Prompts that are judged at a time, so that a hook may wait for another service."""


class Moderation:
    """The checks of one process. Call `close` at the end."""

    def __init__(self, settings: SafetySettings) -> None:
        """Read the word list, import the hooks, and start the process that judges pictures, if there are such. Raises
        `ConfigError` for those that cannot be used."""
        self._words = None if settings.words is None else WordList.read(settings.words)
        self._hook = None if settings.prompt_hook is None else load_hook(settings.prompt_hook)
        self._threads = ThreadPoolExecutor(MAX_PROMPTS, "prompt check")
        self._pictures = PictureCheck(settings) if "picture" in settings.stages else None

    @property
    def has_pictures(self) -> bool:
        """Whether pictures are judged."""
        return self._pictures is not None

    @property
    def pid(self) -> int | None:
        """Id of the process that judges pictures, if there is one."""
        return None if self._pictures is None else self._pictures.pid

    def check_prompt(self, prompt: str | None) -> None:
        """Judge a prompt; there is nothing to judge without one. Raises `BlockedError`, and `CheckFailedError` if the
        hook has failed."""
        if prompt is None:
            return
        if self._words is not None and self._words.blocks(prompt):
            raise BlockedError("prompt", "words")
        if self._hook is None:
            return
        try:
            blocked = call_hook(self._hook, prompt)
        except Exception as error:
            logger.exception("the check of a prompt has failed")
            raise CheckFailedError("prompt") from error
        if blocked:
            raise BlockedError("prompt", "prompt_hook")

    async def check_prompt_by(self, prompt: str | None, deadline: float) -> None:
        """The same on another thread. Raises `TimeoutError` at the deadline, in seconds since the epoch."""
        judged = asyncio.get_running_loop().run_in_executor(self._threads, self.check_prompt, prompt)
        await asyncio.wait_for(judged, max(0.0, deadline - time.time()))

    def check_picture(self, image: Image.Image) -> None:
        """Judge a picture, RGB or RGBA, the latter over white, if pictures are judged. Raises `BlockedError`,
        `CheckFailedError` and `CheckUnavailableError`."""
        if self._pictures is not None:
            self._pictures.check(to_rgb(image))

    def close(self) -> None:
        """End the process that judges pictures. Threads that wait for a hook are left to it."""
        self._threads.shutdown(wait=False)
        if self._pictures is not None:
            self._pictures.close()


def check_safety(settings: SafetySettings) -> None:
    """Raise `ConfigError` for a word list, a hook or a network that cannot be used here, without starting a process."""
    if settings.words is not None:
        WordList.read(settings.words)
    for name in (settings.prompt_hook, settings.picture_hook):
        if name is not None:
            load_hook(name)
    if settings.nsfw_threshold is not None:
        require_network()


def identity_of(settings: SafetySettings) -> dict[str, Any] | None:
    """Everything that decides what is blocked: the digest of the words, the threshold, and the names of the hooks. None
    if nothing is checked. Raises `ConfigError` as `WordList.read` does."""
    if not settings.stages:
        return None
    words = None if settings.words is None else WordList.read(settings.words).digest
    return settings.model_dump(exclude={"words"}) | {"words": words}
