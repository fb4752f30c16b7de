"""`PromptTranslator`: the step in front of a model that takes prompts in other languages and returns English ones.

    "빨간 판다, fluent 3d 스타일"  ->  "red panda, fluent 3d style", with what was given

English needs no translator. It passes through as it is, or in the wording of the captions that the model was trained on
(`dalle.checkpoint.wording`): a rocket rendered in noto  ->  rocket, noto style emoji.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

from dalle.defaults import Translate
from dalle.errors import NegativePromptError, ParameterError, PromptError
from dalle.translate.clauses import Part
from dalle.translate.detection import ENGLISH, FOREIGN, LanguageDetector
from dalle.translate.english import WORD
from dalle.translate.languages import LANGUAGES, as_translate
from dalle.translate.sentences import Sentence
from dalle.translate.translator import Translator
from dalle.translation import PromptTranslation, TranslatedPrompt

__all__ = ["PromptTranslator", "Wording"]

VOCABULARY = "vocabulary"
"""Name that stands for the translator in the record of a prompt that only got another English wording."""


class Wording(Protocol):
    """Puts English prompts into the wording that a model knows."""

    @property
    def digest(self) -> str: ...

    def __call__(self, prompt: str, /) -> str: ...


class PromptTranslator:
    """Translates the prompts of one model. The translator is loaded for the first prompt that needs it."""

    def __init__(
        self,
        load: Callable[[], Translator],
        knows_all: Callable[[str], bool] | None = None,
        wording: Wording | None = None,
    ) -> None:
        """load: loads the translator. knows_all: whether the model knows every word of a text, which is then English
        whatever other language it may be. wording: that of English prompts; None leaves them as they are."""
        self._load = load
        self._knows_all = knows_all
        self._wording = wording

    @functools.cached_property
    def translator(self) -> Translator:
        return self._load()

    @functools.cached_property
    def _detector(self) -> LanguageDetector:
        return LanguageDetector(self.translator.lexicons)

    def language_of(self, text: str) -> str:
        """The ISO 639 code of a prompt's language: `en`, or one that is translated. Raises `PromptError` for a text in
        another one, which lists those that are translated."""
        is_foreign = any(word in FOREIGN for word in WORD.findall(text.lower()))
        if text.isascii() and not is_foreign and self._knows_all is not None and self._knows_all(text):
            return ENGLISH
        return self._detector.language_of(text)

    def __call__(
        self, prompt: str | None, negative_prompt: str | None = None, *, translate: str = "auto"
    ) -> TranslatedPrompt:
        """Translate a prompt and a negative prompt, each from its own language with `auto`, or both from one by its
        code or tag (`fr`, `fr-CA`); `off` leaves them as they are. Texts without a letter are left as they are, and in
        a prompt in English and another language only the other one is translated. A prompt in English gets the wording
        of captions; `en` takes every text for English.

        Raises `PromptError` for a prompt that is no text, in a language that is not translated, or too long for the
        translator, which may be `NegativePromptError`; `ParameterError` for a `translate` that is none, or a language
        without a lexicon; `CheckpointError` for a translator that cannot be loaded.
        """
        chosen = as_translate(translate)
        for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            if text is not None and not isinstance(text, str):
                raise PromptError(f"{name} is {str(text)[:80]}, of type {type(text).__name__}; it must be one text")
        first = self._translated(prompt, chosen)
        try:
            second = self._translated(negative_prompt, chosen)
        except PromptError as error:
            raise NegativePromptError(str(error).replace("the prompt", "the negative prompt", 1)) from error
        worded = self._worded(prompt) if first is None and chosen != "off" else None
        if first is None and second is None and worded is None:
            return TranslatedPrompt(prompt=prompt, negative_prompt=negative_prompt)
        if worded is not None:
            first = ENGLISH, Sentence(str(prompt), worded, (), "wording")
        found = [one for one in (first, second) if one is not None]
        return TranslatedPrompt(
            prompt=prompt if first is None else first[1].english,
            negative_prompt=negative_prompt if second is None else second[1].english,
            translation=PromptTranslation(
                prompt=None if first is None else prompt,
                language=None if first is None else first[0],
                negative_prompt=None if second is None else negative_prompt,
                negative_language=None if second is None else second[0],
                kept=tuple(dict.fromkeys(word for _, sentence in found for word in sentence.unknown)),
                **self._named(only_worded=worded is not None and second is None),
            ),
        )

    def _worded(self, prompt: str | None) -> str | None:
        """An English prompt in the wording of captions; None if it stays as it is."""
        if prompt is None or self._wording is None:
            return None
        worded = self._wording(prompt)
        return None if worded == prompt else worded

    def _named(self, *, only_worded: bool) -> dict[str, str]:
        """Name and digest of what was used, for the record."""
        if only_worded:
            assert self._wording is not None
            return {"translator": VOCABULARY, "translator_digest": self._wording.digest}
        return {"translator": self.translator.name, "translator_digest": self.translator.digest}

    def _translated(self, text: str | None, translate: Translate) -> tuple[str, Sentence] | None:
        """Language and translation of a text; None if it is left as it is."""
        if translate in ("off", ENGLISH) or text is None or not any(character.isalpha() for character in text):
            return None
        language = self.language_of(text) if translate == "auto" else translate
        if language != ENGLISH and language not in self.translator.lexicons:
            known = ", ".join(f"{code} ({LANGUAGES[code]})" for code in self.translator.lexicons) or "no language"
            raise ParameterError(f"translate is {language}; the translator {self.translator.name} knows {known}")
        mixture = self._mixture_of(text, language)
        if mixture is not None:
            language = mixture[0]
        if language == ENGLISH:
            return None
        parts = [Part(text)] if mixture is None else mixture[1]
        try:
            return language, self._joined(text, parts, language)
        except PromptError as error:
            raise type(error)(str(error).replace("the sentence to translate", "the prompt to translate", 1)) from error

    def _mixture_of(self, text: str, language: str) -> tuple[str, list[Part]] | None:
        """Language and parts of a prompt that is in English and in another language; None if it is in one."""
        if language == ENGLISH and not any(word in FOREIGN for word in WORD.findall(text.lower())):
            return None  # and the translator need not be loaded
        return self._detector.mixture_of(text, language)

    def _joined(self, text: str, parts: Sequence[Part], language: str) -> Sentence:
        """The translation of a prompt of which some parts are English."""
        foreign = [part.text.strip() for part in parts if not part.is_english]
        sentences = iter(self.translator.translate_with_lexicon(foreign, language))
        if len(parts) == 1:
            return next(sentences)
        english, unknown = "", list[str]()
        for part in parts:
            if part.is_english:
                english += part.text
                continue
            sentence = next(sentences)
            unknown += sentence.unknown
            english += sentence.english + " " * (part.text != part.text.rstrip())
        return Sentence(text, english.strip(), tuple(unknown), "parts")
