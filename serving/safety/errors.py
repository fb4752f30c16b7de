"""Why a prompt or a picture is refused: it is blocked, its check has failed, or no check is possible now.

A check never passes silently: whatever happens in it, the prompt is not drawn or the picture is not sent.
"""

from typing import Literal

from dalle.errors import DalleError
from serving.jobs import MODERATION_BLOCKED, ModerationDetails, Refused
from serving.safety.settings import Stage

__all__ = ["BlockedError", "Check", "CheckFailedError", "CheckUnavailableError", "ModerationError"]

Check = Literal["words", "prompt_hook", "nsfw", "picture_hook"]
"""A check, by the name that the metric and the log give it."""

CATEGORIES: dict[Check, tuple[str, ...]] = {"nsfw": ("sexual",)}
"""OpenAI's categories for what a check blocks, where they are known."""
RETRY_SECONDS = 5


class ModerationError(DalleError):
    """A prompt or a picture that is refused by the checks: the base class."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.message)
        self.refused = refused
        """The refusal that the caller gets."""


class BlockedError(ModerationError):
    """A prompt or a picture that a check blocks. The message does not say why: it would help to get around it."""

    def __init__(self, stage: Stage, check: Check) -> None:
        what = "the prompt was" if stage == "prompt" else "what was drawn was"
        hint = "change the prompt" if stage == "prompt" else "change the prompt, or take another seed"
        super().__init__(
            Refused(
                status=400,
                code=MODERATION_BLOCKED,
                message=f"the request was rejected by the safety system: {what} blocked; {hint}",
                moderation_details=ModerationDetails(
                    moderation_stage="input" if stage == "prompt" else "output",
                    categories=list(CATEGORIES.get(check, ())),
                ),
            )
        )
        self.check = check


class CheckFailedError(ModerationError):
    """A hook that has raised an exception, or returned something else than a bool: a mistake of the operator."""

    def __init__(self, stage: Stage) -> None:
        message = f"the safety check of the {stage} has failed; the error is in the service's log"
        super().__init__(Refused(status=500, code="moderation_failed", message=message))


class CheckUnavailableError(ModerationError):
    """A process that checks pictures and is not there, although it was started again."""

    def __init__(self) -> None:
        message = "pictures cannot be checked at the moment, so none is sent; try again in a moment"
        refused = Refused(status=503, code="moderation_unavailable", message=message, retry_after=RETRY_SECONDS)
        super().__init__(refused)
