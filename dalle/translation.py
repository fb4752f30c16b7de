"""`PromptTranslation`: the prompts of a picture as they were given before they were translated, for its receipt."""

import dataclasses
import re

from dalle.config import Config
from dalle.errors import ParameterError

__all__ = ["PromptTranslation", "TranslatedPrompt"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTranslation(Config):
    """What was translated into the prompts of a picture, or worded otherwise (language `en`). Raises `ParameterError`
    for a value outside its range.

    A translation says nothing of how the picture was drawn: the English prompts of its receipt draw it again without.
    """

    prompt: str | None = None
    """The prompt as it was given; None if it was drawn as it was given."""
    language: str | None = None
    """ISO 639 code of its language."""
    negative_prompt: str | None = None
    """The negative prompt as it was given; None if it was used as it was given, or there is none."""
    negative_language: str | None = None
    """ISO 639 code of its language."""
    kept: tuple[str, ...] = ()
    """Words of both that are kept as they were, since neither lexicon nor network knows them."""
    translator: str
    """Name of the translator; `vocabulary` for an English prompt that only got the wording of the model's captions."""
    translator_digest: str
    """Digest of the translator, or of what decides the wording, in lowercase hexadecimal."""

    def __post_init__(self) -> None:
        texts = (
            ("prompt", self.prompt, self.language),
            ("negative_prompt", self.negative_prompt, self.negative_language),
        )
        if self.prompt is None and self.negative_prompt is None:
            raise ParameterError("a translation has neither prompt nor negative prompt: nothing was translated")
        for name, text, language in texts:
            if (text is None) != (language is None):
                raise ParameterError(f"{name} of a translation and its language belong together: one is missing")
            if language is not None and re.fullmatch("[a-z]{2,3}", language) is None:
                raise ParameterError(f"the language of a translation is {language[:80]!r}; it must be an ISO 639 code")
        if re.fullmatch("[0-9a-f]+", self.translator_digest) is None:
            message = f"translator_digest is {self.translator_digest[:80]!r}; it must be lowercase hexadecimal"
            raise ParameterError(message)

    @property
    def languages(self) -> str:
        """The languages of what was translated, by code, for a message."""
        found = dict.fromkeys(one for one in (self.language, self.negative_language) if one is not None)
        return " and ".join(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslatedPrompt:
    """A prompt and a negative prompt as they are drawn: in English, or as they were given."""

    prompt: str | None
    negative_prompt: str | None = None
    translation: PromptTranslation | None = None
    """What was given instead; None if nothing was translated."""

    @property
    def warning(self) -> str | None:
        """The warning of words that were kept because no translation of them is known; None if there are none."""
        if self.translation is None or not self.translation.kept:
            return None
        words = ", ".join(repr(word) for word in self.translation.kept[:8]) + ", ..." * (len(self.translation.kept) > 8)
        return f"kept as they are, since the translator does not know them: {words}"
