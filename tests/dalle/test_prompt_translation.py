"""Prompts in other languages: their detection, the step in front of a model, receipts, and `dalle generate`."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dalle import DALLE
from dalle.checkpoint.translator import find_translator, languages_of_translator, load_translator, save_translator
from dalle.checkpoint.vocabulary import Vocabulary
from dalle.defaults import DEFAULT_TRANSLATOR, Translate
from dalle.errors import CheckpointError, ImageError, NegativePromptError, ParameterError, PromptError
from dalle.images import encode_image
from dalle.receipt import Receipt, describe, read_receipt
from dalle.text.classes import ClassTokenizer
from dalle.translate.detection import LanguageDetector
from dalle.translate.prompts import PromptTranslator
from dalle.translation import PromptTranslation
from dalle.verify import Verifier
from tests.support.translators import translator_of


@pytest.fixture(scope="module")
def step(taught_folder: Path) -> PromptTranslator:
    return PromptTranslator(lambda: load_translator(taught_folder))


@pytest.mark.parametrize(
    ("prompt", "language", "english"),
    [
        ("un panda rouge, style fluent 3d", "fr", "a red panda, fluent 3d style"),
        ("빨간 판다, fluent 3d 스타일", "ko", "red panda, fluent 3d style"),
        ("eine rote Katze", "de", "a red cat"),
        ("un gato rojo", "es", "a red cat"),
        ("赤いパンダ", "ja", "red panda"),
        ("猫", "ja", "cat"),
        ("Schmetterling", "de", "butterfly"),
    ],
)
def test_a_prompt_becomes_english(step: PromptTranslator, prompt: str, language: Translate, english: str) -> None:
    found = step(prompt)
    assert found.prompt == english and found.translation is not None and found.warning is None
    assert (found.translation.prompt, found.translation.language) == (prompt, language)
    assert step(prompt, translate=language) == found, "the language was given"
    assert found.translation.translator == "taught" and found.translation.kept == ()


@pytest.mark.parametrize("prompt", ["a red panda", "A Red CAT,  and an apple", "panda", "🐼 7 !", "", "  ", "a wibble"])
def test_english_stays_byte_for_byte(step: PromptTranslator, prompt: str) -> None:
    found = step(prompt, "a blue apple")
    assert (found.prompt, found.negative_prompt, found.translation) == (prompt, "a blue apple", None)


def test_off_leaves_everything_as_it_is(step: PromptTranslator) -> None:
    assert step("красная панда", "un chat", translate="off").translation is None


def test_words_that_the_model_knows_need_no_translator() -> None:
    def load() -> None:
        raise AssertionError("it was loaded")

    vocabulary = Vocabulary(concepts=("red panda", "chat bubble"), words=("fluffy",))
    step = PromptTranslator(load, vocabulary.knows_all)  # type: ignore[arg-type]
    for prompt in ("a fluffy red panda", "chat", "2 red pandas"):
        assert step(prompt).translation is None
    with pytest.raises(AssertionError, match="loaded"):
        step("a fluffy zorblax")


def test_both_prompts_are_translated_each_from_its_language(step: PromptTranslator) -> None:
    found = step("빨간 판다", "eine rote Katze")
    assert (found.prompt, found.negative_prompt) == ("red panda", "a red cat")
    assert found.translation is not None
    assert (found.translation.language, found.translation.negative_language) == ("ko", "de")
    only = step("a red panda", "eine rote Katze").translation
    assert only is not None and (only.prompt, only.negative_prompt) == (None, "eine rote Katze")


def test_unknown_words_are_kept_and_reported(step: PromptTranslator) -> None:
    found = step("un zorblax rouge", "빨간 뽀로로")
    assert (found.prompt, found.negative_prompt) == ("a red zorblax", "red 뽀로로")
    assert found.translation is not None and found.translation.kept == ("zorblax", "뽀로로")
    assert found.warning == "kept as they are, since the translator does not know them: 'zorblax', '뽀로로'"


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ("красная панда", "written in Cyrillic letters"),
        ("قطة سوداء", "written in Arabic letters"),
        ("κόκκινη καρδιά", "written in Greek letters"),
        ("红色的熊猫", "in Chinese"),
        ("un gatto nero con cappello a punta", "in Italian"),
        ("czerwone jabłko na stole", "in Polish"),
    ],
)
def test_other_languages_are_refused_with_those_that_are_known(step: PromptTranslator, prompt: str, what: str) -> None:
    with pytest.raises(PromptError, match=what) as caught:
        step(prompt)
    assert "French, Korean, German, Spanish and Japanese" in str(caught.value) and "translate off" in str(caught.value)
    with pytest.raises(NegativePromptError, match="the negative prompt is"):
        step("a red panda", prompt)


def test_a_language_without_a_lexicon_is_refused(taught_folder: Path) -> None:
    translator = load_translator(taught_folder)
    french = dataclasses.replace(translator, lexicons={"fr": translator.lexicons["fr"]})
    step = PromptTranslator(lambda: french)
    with pytest.raises(ParameterError, match=r"translate is ko; the translator taught knows fr \(French\)"):
        step("빨간 판다", translate="ko")
    with pytest.raises(PromptError, match="the prompt is in Korean; the translator knows French:"):
        step("빨간 판다")


def test_a_prompt_that_is_too_long_for_the_translator_is_refused(step: PromptTranslator) -> None:
    with pytest.raises(PromptError, match=r"the prompt to translate has .* tokens; the limit is 63"):
        step("un panda rouge et un chat bleu " * 20, translate="fr")
    with pytest.raises(NegativePromptError, match="the negative prompt to translate has"):
        step("a panda", "un panda rouge et un chat bleu " * 20, translate="fr")


def test_receipts_name_what_was_given_and_pictures_verify(model: DALLE, taught_folder: Path, tmp_path: Path) -> None:
    found = model.prompt_translator(taught_folder)("빨간 판다", "eine rote Katze")
    (picture,) = model.generate(
        str(found.prompt), seed=3, negative_prompt=found.negative_prompt, translations=[found.translation]
    )
    (plain,) = model.generate("red panda", seed=3, negative_prompt="a red cat")
    assert picture.receipt.prompt == "red panda" and picture.receipt.codes == plain.receipt.codes
    assert picture.receipt.translation == found.translation and plain.receipt.translation is None
    text = picture.receipt.to_text()
    assert Receipt.from_text(text) == picture.receipt and "translation" not in plain.receipt.to_text()
    assert "translated from      빨간 판다 (ko)" in describe(picture.receipt)
    path = tmp_path / "panda.png"

    path.write_bytes(encode_image(picture.image, format="png", text=text))
    verifier = Verifier(model=model.source, resample=True)
    assert verifier.verify(path).kind == "good"


@pytest.mark.parametrize(
    "changes",
    [
        {"language": None},
        {"language": "KO"},
        {"prompt": None, "language": None},
        {"translator_digest": "x"},
        {"more": 1},
    ],
)
def test_a_malformed_translation_in_a_receipt_is_an_error(model: DALLE, changes: dict[str, object]) -> None:
    given = PromptTranslation(prompt="판다", language="ko", translator="t", translator_digest="ab")
    (picture,) = model.generate("panda", seed=1, translations=[given])
    text = picture.receipt.to_text()
    text["translation"] = json.dumps(json.loads(text["translation"]) | changes)
    with pytest.raises(ImageError, match="the receipt is malformed"):
        Receipt.from_text(text)


def test_models_without_english_prompts_have_no_translator(model: DALLE, taught_folder: Path, tmp_path: Path) -> None:
    def changed(**changes: object) -> DALLE:
        copy = DALLE.__new__(DALLE)
        copy.__dict__.update(model.__dict__ | changes)
        return copy

    for one, message in (
        (changed(text_tokenizer=None), "has no text tokenizer"),
        (changed(text_tokenizer=ClassTokenizer(4)), "are numbers of classes"),
        (changed(prompt_language="ru"), "reads prompts in 'ru'"),
    ):
        with pytest.raises(ParameterError, match=message):
            one.prompt_translator(taught_folder)
    with pytest.raises(CheckpointError, match="there is no translator 'nonsense'"):
        model.prompt_translator("nonsense")
    torch.manual_seed(0)
    save_translator(tmp_path / "plain", translator_of())
    with pytest.raises(CheckpointError, match="has no lexicons"):
        model.prompt_translator(tmp_path / "plain")
    assert languages_of_translator(taught_folder) == ("fr", "ko", "de", "es", "ja")


def generate(model_folder: Path, taught_folder: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ["--model", model_folder, "--seed", "3", "--out", out, "--translator", taught_folder]
    command = [sys.executable, "-m", "dalle.cli", "generate", *arguments, *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})


def test_the_command_translates_and_reports_words_that_it_kept(
    model_folder: Path, taught_folder: Path, tmp_path: Path
) -> None:
    prompts = ["--prompt", "빨간 판다", "--prompt", "un wib rouge", "--prompt", "a red panda"]
    done = generate(model_folder, taught_folder, tmp_path, *prompts, "--translate", "auto")
    assert done.returncode == 0, done.stderr
    assert "ko: red panda\nfr: a red wib\n" in done.stderr and "en:" not in done.stderr
    assert "kept as they are, since the translator does not know them: 'wib'" in done.stderr
    receipts = {receipt.prompt: receipt.translation for receipt in map(read_receipt, tmp_path.glob("*-3-0.png"))}
    assert receipts.keys() == {"red panda", "a red wib", "a red panda"} and receipts["a red panda"] is None
    given = receipts["red panda"]
    assert given is not None and (given.prompt, given.language) == ("빨간 판다", "ko")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["красная панда", "--translate", "auto"], "the prompt is written in Cyrillic letters"),
        (["un panda"], "--translator needs prompts to translate"),
        (["--prompt", "un gato rojo", "--prompt", "eine rote Katze", "--translate", "auto"], "are both 'a red cat'"),
    ],
)
def test_mistakes_end_the_command_with_a_line(
    model_folder: Path, taught_folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = generate(model_folder, taught_folder, tmp_path, *arguments)
    assert done.returncode == 2 and message in done.stderr and not [*tmp_path.glob("*.png")]
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_no_name_that_the_default_model_knows_is_translated() -> None:
    model = DALLE.load()
    assert model.vocabulary is not None and len(model.vocabulary.concepts) > 1000
    prompts = [*model.vocabulary.concepts, *model.vocabulary.examples]
    step = model.prompt_translator()
    assert [one for one in prompts if step.language_of(one) != "en"] == []
    detector = LanguageDetector(step.translator.lexicons)  # without the model's vocabulary
    assert sum(detector.language_of(one) == "en" for one in prompts) > 0.995 * len(prompts)


@pytest.mark.parametrize("language", ["fr", "ko", "de", "es", "ja"])
def test_names_of_each_language_are_found(language: str) -> None:
    lexicons = load_translator(find_translator(DEFAULT_TRANSLATOR)).lexicons
    detector = LanguageDetector(lexicons)
    names = [name for name in lexicons[language].names if not detector.is_english(name.lower().split()[0])][::7]
    found = [detector.language_of(name) for name in names]
    assert len(names) > 100 and found.count(language) > 0.95 * len(names)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("빨간 판다, fluent 3d 스타일", {"red", "panda", "fluent", "3d"}),
        ("un chat noir dans le style noto", {"black", "cat", "noto"}),
        ("ein roter Apfel", {"red", "apple"}),
        ("un corazón verde, estilo twemoji", {"green", "heart", "twemoji"}),
        ("赤いりんご", {"red", "apple"}),
    ],
)
def test_the_translator_of_the_library(prompt: str, words: set[str]) -> None:
    found = DALLE.load().prompt_translator()(prompt)
    assert found.prompt is not None and words <= {*found.prompt.replace(",", "").split()} and found.warning is None


def test_prompts_that_would_become_one_are_two_pictures(tmp_path: Path) -> None:
    prompts = ["a rocket in noto", "a rocket in the google style", "a rocket in twitter style"]
    options = [part for prompt in (*prompts, "rocket, twemoji style emoji") for part in ("--prompt", prompt)]
    command = [sys.executable, "-m", "dalle.cli", "generate", *options, "--seed", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "drawn as: rocket, noto style emoji\n" in done.stderr
    found = {read_receipt(path).prompt for path in tmp_path.glob("*.png") if path.name != "contact-sheet.png"}
    assert found == {"rocket, noto style emoji", *prompts[1:], "rocket, twemoji style emoji"}
