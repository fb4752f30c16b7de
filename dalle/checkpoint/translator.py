"""A translator on disk: saved and loaded as strictly as a model directory, in a format of its own.

config.json             format, name, notes, sizes, languages, search, text tokenizer, digests of the other files
tokenizer.json          the text tokenizer, of sources and translations alike
translator.safetensors  the weights of the encoder-decoder Transformer
lexicon-fr.json.xz      known names, in a file for each language that the translator has a lexicon of
NOTICE                  sources and licences, if there are any
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dalle.checkpoint.files import TOKENIZER_FILE, file_digest, listed
from dalle.checkpoint.model_config import CONFIG_FILE
from dalle.checkpoint.one_network import DirectoryFormat, find_directory, parsed
from dalle.checkpoint.vocabulary import Vocabulary
from dalle.checkpoint.wording import CaptionWording
from dalle.defaults import Translate
from dalle.errors import CheckpointError, ParameterError
from dalle.text.classes import ClassTokenizer
from dalle.text.kinds import load_text_tokenizer
from dalle.text.tokenizer import PromptTokenizer
from dalle.translate.config import EncoderDecoderConfig
from dalle.translate.encoder_decoder import EncoderDecoder
from dalle.translate.languages import LANGUAGES
from dalle.translate.lexicon import Lexicon, lexicon_file
from dalle.translate.prompts import PromptTranslator
from dalle.translate.search import SearchConfig
from dalle.translate.translator import TextConfig, Translator

__all__ = [
    "default_translate",
    "find_translator",
    "languages_of_translator",
    "load_translator",
    "prompt_translator",
    "save_translator",
    "translation_fault",
]

NOTICE_FILE = "NOTICE"

FORMAT = DirectoryFormat(
    name="dalle-translator",
    version=1,
    weights_file="translator.safetensors",
    further={"text_tokenizer": str, "text": dict, "search": dict},
)


def find_translator(name: str | Path) -> Path:
    """The translator directory of this path, or of this name: those in `models/translate` of this package, and in
    `translate` of the folder that DALLE_MODELS names. Raises `CheckpointError`, listing the known names."""
    return find_directory(name, "translate", "translator")


def save_translator(
    folder: str | Path,
    translator: Translator,
    *,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    sources: Iterable[Path] = (),
) -> str:
    """Write a translator directory, whole or not at all. Returns its digest.

    dtype: type of the stored weights: float32, float16, bfloat16, or int8, as `to_int8` stores them.
    overwrite: replace a translator directory that is there; nothing else is replaced. sources: what is never replaced.
    Raises `CannotWriteError` as `write_checkpoint` does, and `CheckpointError` for a text tokenizer of another size.
    """
    folder = Path(folder)
    _check_fit(folder, translator.text_tokenizer, translator.network.config)

    def write(files: Path) -> dict[str, Any]:
        translator.text_tokenizer.save(files / TOKENIZER_FILE)
        for lexicon in translator.lexicons.values():
            lexicon.save(files)
        if translator.notice:
            (files / NOTICE_FILE).write_text(translator.notice, encoding="utf-8")
        return {
            "text_tokenizer": translator.text_tokenizer.kind,
            "text": translator.text.to_dict(),
            "search": translator.search.to_dict(),
        }

    return FORMAT.save(
        folder,
        name=translator.name,
        network=translator.network,
        config=translator.network.config,
        about=translator.about,
        dtype=dtype,
        write=write,
        overwrite=overwrite,
        sources=sources,
    )


def load_translator(folder: str | Path) -> Translator:
    """Read a translator directory. Raises `CheckpointError`, naming the file and what was expected, if anything is
    missing, damaged, foreign, of another shape, or of a newer format."""
    folder = Path(folder)
    values = FORMAT.read(folder)
    config = parsed(folder, EncoderDecoderConfig, values["network"])
    tokenizer = load_text_tokenizer(values["text_tokenizer"], listed(folder, values["digests"], TOKENIZER_FILE))
    _check_fit(folder, tokenizer, config)
    digests = values["digests"]
    files = {language: lexicon_file(language) for language in LANGUAGES if lexicon_file(language) in digests}
    lexicons = {language: Lexicon.load(listed(folder, digests, file)) for language, file in files.items()}
    notice = listed(folder, digests, NOTICE_FILE).read_text(encoding="utf-8") if NOTICE_FILE in digests else ""
    return Translator(
        lexicons=lexicons,
        notice=notice,
        name=values["name"],
        network=FORMAT.network(folder, values, lambda: EncoderDecoder(config)),
        text_tokenizer=tokenizer,
        text=parsed(folder, TextConfig, values["text"]),
        search=parsed(folder, SearchConfig, values["search"]),
        about=values["about"],
        digest=file_digest(folder / CONFIG_FILE),
    )


def languages_of_translator(folder: Path) -> tuple[str, ...]:
    """ISO 639 codes of the languages whose prompts a translator directory can translate: those of its lexicons. Raises
    `CheckpointError` as `load_translator` does; the network is not built."""
    digests = FORMAT.read(folder)["digests"]
    return tuple(language for language in LANGUAGES if lexicon_file(language) in digests)


def translation_fault(name: str, text_tokenizer: PromptTokenizer | None, prompt_language: str) -> str | None:
    """Why prompts of a model cannot be translated for it; None if they can."""
    if text_tokenizer is None:
        return f"the model {name} has no text tokenizer, so it draws no prompts: there is nothing to translate"
    if isinstance(text_tokenizer, ClassTokenizer):
        return f"prompts of the model {name} are numbers of classes: there is nothing to translate"
    if prompt_language != "en":
        return f"the model {name} reads prompts in {prompt_language!r}, and the translator writes English"
    return None


def default_translate(
    *, text_tokenizer: PromptTokenizer | None, prompt_language: str, vocabulary: Vocabulary | None
) -> Translate:
    """What `translate` is for a model unless somebody says: `en` if its prompts are English and its vocabulary has
    styles, else `off`."""
    is_english = translation_fault("", text_tokenizer, prompt_language) is None
    return "en" if is_english and vocabulary is not None and vocabulary.styles else "off"


def prompt_translator(
    translator: str | Path,
    *,
    name: str,
    text_tokenizer: PromptTokenizer | None,
    prompt_language: str,
    vocabulary: Vocabulary | None,
) -> PromptTranslator:
    """The step that translates prompts for a model of this name. The translator, a name or a directory, is loaded for
    the first prompt that needs it.

    Raises `CheckpointError` for a translator that is not there, or has no lexicons, as those of other projects, and
    `ParameterError` for a model whose prompts cannot be translated.
    """
    if (fault := translation_fault(name, text_tokenizer, prompt_language)) is not None:
        raise ParameterError(fault)
    folder = find_translator(translator)
    if not languages_of_translator(folder):
        raise CheckpointError(
            f"{folder} has no lexicons, and so does not know which words it does not know: prompts need a translator "
            "that has them"
        )
    if vocabulary is None:
        return PromptTranslator(lambda: load_translator(folder))
    return PromptTranslator(lambda: load_translator(folder), vocabulary.knows_all, CaptionWording(vocabulary))


def _check_fit(folder: Path, tokenizer: PromptTokenizer, config: EncoderDecoderConfig) -> None:
    """Check that vocabulary and length of the text tokenizer are those of the network."""
    if tokenizer.vocab_size != config.vocab_size or tokenizer.text_length != config.source_length:
        raise CheckpointError(
            f"{folder}: the text tokenizer has {tokenizer.vocab_size} ids and rows of {tokenizer.text_length}; the "
            f"network has {config.vocab_size} and sources of {config.source_length}: they belong to different models"
        )
