"""`Translator`: a translator directory, loaded. Sentences become translations, with a report of each."""

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from dalle.config import Config
from dalle.errors import LongPromptError, ParameterError, PromptError
from dalle.text.tokenizer import PromptTokenizer, check_prompt
from dalle.translate.alignment import Alignment, align
from dalle.translate.encoder_decoder import EncoderDecoder
from dalle.translate.lexicon import Lexicon
from dalle.translate.search import SearchConfig, search
from dalle.translate.sentences import Sentence, translate

__all__ = ["TextConfig", "Translation", "Translator"]

AT_ONCE = 64
"""Sentences that are translated together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(Config):
    """Languages of a translator, and what is done to a sentence before it is tokenized."""

    source_languages: tuple[str, ...] = ()
    """ISO 639 codes of the languages that it translates from; empty if they are not known."""
    target_language: str | None = None
    """ISO 639 code of the language that it translates into; None if it is not known."""
    unicode: Literal["nfkc", "none"] = "nfkc"
    """Unicode form that sentences are normalised to: full-width letters and composed signs become plain ones."""

    def normalised(self, text: str) -> str:
        """A text as the tokenizer gets it: in the Unicode form, blanks at the ends left out, other runs of white space
        replaced by one space."""
        text = unicodedata.normalize("NFKC", text) if self.unicode == "nfkc" else text
        return " ".join(text.split())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation:
    """A translated sentence, and how it was found."""

    source: str
    """The sentence, normalised."""
    text: str
    """The translation."""
    source_ids: tuple[int, ...]
    """Ids that were read, with the end."""
    ids: tuple[int, ...]
    """Ids of the translation, without the end."""
    log_probability: float
    """Sum of the log probabilities of the translation's ids and of its end."""
    score: float
    """The sum, normalised by the length penalty of the search."""
    finished: bool
    """Whether the translation came to its end; else it was cut at its largest length, and is not to be trusted."""
    unknown: tuple[str, ...]
    """Parts of the sentence that the vocabulary lacks; a byte-level vocabulary lacks none."""

    @property
    def confidence(self) -> float:
        """Geometric mean of the probabilities of the translation's ids and of its end, in (0, 1]."""
        mean = self.log_probability / (len(self.ids) + self.finished)
        return float(torch.tensor(mean).exp())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translator:
    """An encoder-decoder Transformer with its text tokenizer. A loaded network is float32, in evaluation mode."""

    name: str
    network: EncoderDecoder
    text_tokenizer: PromptTokenizer
    text: TextConfig
    search: SearchConfig
    """The search of a translation, unless `translate` is given another one."""
    lexicons: Mapping[str, Lexicon] = dataclasses.field(default_factory=dict)
    """Known names by language; empty for translators of other projects."""
    notice: str = ""
    """Sources and licences of the lexicons' names and of the training data; empty if there are none."""
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Free text by key: licence, data, training."""
    digest: str = ""
    """SHA-256 of config.json, in hexadecimal; set by loading."""

    def encode(self, sentence: str) -> list[int]:
        """The source ids of a sentence, with the end, without padding.

        Raises `PromptError` for a sentence that is empty or no text, `LongPromptError` for one of more tokens than the
        network reads.
        """
        check_prompt(sentence)
        text = self.text.normalised(sentence)
        if not text:
            raise PromptError("the sentence to translate is empty: it needs at least one character that is no blank")
        tokens, limit = self.text_tokenizer.tokenize(text), self.network.config.source_length - 1
        if len(tokens) > limit:
            raise LongPromptError(
                f"the sentence to translate has {len(tokens)} tokens; the limit is {limit}: give it in parts"
            )
        return [*tokens, self.network.config.end_id]

    def translate(self, sentences: Sequence[str], search_config: SearchConfig | None = None) -> list[Translation]:
        """The translations of sentences, in their order. A sentence's translation does not depend on the others.

        All sentences are checked before the first one is translated. Raises as `encode` does.
        """
        rows = [self.encode(sentence) for sentence in sentences]
        found: dict[int, Translation] = {}
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))  # little padding
        for start in range(0, len(order), AT_ONCE):
            some = order[start : start + AT_ONCE]
            ids = self.pad([rows[number] for number in some])
            for number, one in zip(some, search(self.network, ids, search_config or self.search), strict=True):
                text = self.text.normalised(sentences[number])
                found[number] = Translation(
                    source=text,
                    text=self.text_tokenizer.decode(list(one.ids)),
                    source_ids=tuple(rows[number]),
                    ids=one.ids,
                    log_probability=one.log_probability,
                    score=one.score,
                    finished=one.finished,
                    unknown=tuple(self.text_tokenizer.unknown(text)),
                )
        return [found[number] for number in range(len(rows))]

    def translate_with_lexicon(self, sentences: Sequence[str], language: str) -> list[Sentence]:
        """The translations of sentences of one language by lexicon and network together, as `dalle.translate.sentences`
        describes: known names are never mistranslated, and unknown words are kept and reported.

        Raises `ParameterError` for a language without a lexicon, else as `encode` does.
        """
        if language not in self.lexicons:
            known = ", ".join(self.lexicons) or "none"
            raise ParameterError(f"language is {language!r}; {self.name} has lexicons of: {known}")
        for sentence in sentences:
            self.encode(sentence)
        return translate(
            sentences, self.lexicons[language], lambda masked: [one.text for one in self.translate(masked)]
        )

    def align(self, translation: Translation, *, words: bool = True) -> Alignment:
        """Which words of the source each word of a translation looked at, in every layer and head; or, without `words`,
        which tokens each token looked at."""
        return align(self.network, self.text_tokenizer, translation.source_ids, translation.ids, words=words)

    def pad(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Rows of ids as one tensor (B, L) int64 on the network's device, L the length of the longest one, padded on
        the right."""
        length = max(map(len, rows))
        padded = [[*row, *[self.network.config.pad_id] * (length - len(row))] for row in rows]
        return torch.tensor(padded, device=self.network.embed_source.tokens.weight.device)
