"""Prompts in the wording of captions, `CaptionWording`: the default model's, and those of made-up vocabularies."""

import dataclasses

import pytest

from dalle import DALLE
from dalle.checkpoint.store import find_model
from dalle.checkpoint.vocabulary import Style, Vocabulary, read_vocabulary
from dalle.checkpoint.wording import CaptionWording
from dalle.receipt import Receipt, describe
from dalle.translate.languages import as_translate

PROMPTS = """\
Draw me a red apple in the Noto style | red apple | noto
can you make a sleeping cat as a google blob emoji? | sleeping cat | noto blob
fire truck, twemoji | fire truck | twemoji
I'd like an icon of a person riding a bike, line icon style please | person riding a bike | line icon
flag of Japan as a round flag | flag of Japan | round flag
3d grinning face | grinning face | fluent 3d
clip art of a house with garden | house with garden | clip art
Please generate the Twitter version of the love letter emoji | love letter | twemoji
alarm clock outline icon | alarm clock | line icon
hey, could you do some paw prints for me, the way Mozilla draws them | paw prints | firefox os
broken heart emoji from Firefox OS | broken heart | firefox os
what would a shopping cart look like in flat color icon style? | shopping cart | flat color icon
man cooking - emojione | man cooking | emojione
an old woman rendered in Microsoft 3D | old woman | fluent 3d
hot dog in Microsoft flat style | hot dog | fluent flat
umbrella with rain drops, fluent gradient | umbrella with rain drops | fluent gradient
a google emoji showing a crying face | crying face | noto
soccer ball line color icon | soccer ball | line color icon
waving hand with dark skin tone, fluent flat | waving hand with dark skin tone | fluent flat
Streamline icon: envelope with arrow | envelope with arrow | streamline
I need a police car as clipart for a school poster | police car | clip art
two hearts emoji, emoji one look | two hearts | emojione
show me a birthday cake the way twitter would draw it | birthday cake | twemoji
sun behind cloud fluent icon | sun behind cloud | fluent icon
see-no-evil monkey as a blob | see-no-evil monkey | noto blob
Square flag for Brazil | Brazil | square flag
square flag icon showing the flag of Canada | flag of Canada | square flag
The round flag of South Korea, please. | South Korea | round flag
this is a noto emoji of a broken heart | broken heart | noto
gimme a hot dog in 3d | hot dog | fluent 3d
An outline icon depicting a shopping cart with a plus sign | shopping cart with a plus sign | line icon
Microsoft gradient style picture of a birthday cake with candles | birthday cake with candles | fluent gradient
red apple with a green leaf, drawn in the style of streamline icons | red apple with a green leaf | streamline
emoji of a woman running with medium skin tone in Google's design | woman running with medium skin tone | noto
is it possible to get a fluent icon of an alarm clock? | alarm clock | fluent icon
In twemoji style, a grinning face with sweat | grinning face with sweat | twemoji
clip-art style image of an old woman knitting | old woman knitting | clip art
firefox emoji police car | police car | firefox os
I was hoping for a flat color icon that shows an open envelope | open envelope | flat color icon
noto blob emoji, crying face, loud | crying face, loud | noto blob
Would you mind creating a sleeping cat for me? Make it a line color icon. | sleeping cat | line color icon
EmojiOne umbrella with rain drops | umbrella with rain drops | emojione
a family of four, gradient style | family of four | fluent gradient
my daughter loves fire trucks, so draw one as clip art | fire truck | clip art
a red apple | red apple |
draw a sleeping cat please | sleeping cat |
Could I have a picture of a man cooking? | man cooking |
flag of Japan | flag of Japan |
I want an emoji of a waving hand with dark skin tone | waving hand with dark skin tone |
person riding a bike up a hill | person riding a bike up a hill |
make me an icon for a shopping cart | shopping cart |
something like a love letter with a red seal | love letter with a red seal |
simple image: envelope with arrow | envelope with arrow |
hi, can u draw two hearts thx | two hearts |
a car with a flat tire in noto style | car with a flat tire | noto
draw a round table with four chairs | round table with four chairs |
twemoji of a line of people waiting at a bus stop | line of people waiting at a bus stop | twemoji
clip art of a fox looking at a square window | fox looking at a square window | clip art
a person wearing 3d glasses, as a line icon | person wearing 3d glasses | line icon
can I get a paper clip in fluent flat? | paper clip | fluent flat
"""
"""Prompt, thing and style, by somebody who had read nothing of this program."""


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    found = read_vocabulary(find_model("emoji"))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def wording(vocabulary: Vocabulary) -> CaptionWording:
    return CaptionWording(vocabulary)


@pytest.mark.parametrize(
    ("prompt", "worded"),
    [
        ("i'd love to see a rocket done in fluent flat", "rocket, fluent flat style emoji"),
        ("How would a bowing person look as a Twitter emoji?", "person bowing, twemoji style emoji"),
        ("please draw me the flag of Sri Lanka as a round flag", "flag of Sri Lanka, round flag style"),
        ("a Hot Dog in 3-D", "Hot Dog, fluent 3d style emoji"),
        ("noto: a house with a garden", "house with a garden, noto style emoji"),
        ("draw me a red apple, noto style emoji", "red apple, noto style emoji"),
        ("microsoft's flat version of an apple", "apple, fluent flat style emoji"),
        ("i want a love letter in emojione", "love letter, emojione style emoji"),
        ("a fluent flat version of paws", "paw prints, fluent flat style emoji"),
        ("Calendar, coloured line icon", "Calendar, line color icon style"),
        ("a superhero with a shiny 3d look", "superhero, fluent 3d style emoji"),
        ("a spoon as a microsoft color gradient emoji", "spoon, fluent gradient style emoji"),
        ("a scale, but in clip art", "scale, clip art"),
        ("a cat in a hat in noto", "cat in a hat, noto style emoji"),
        ("something in twitter twemoji depicting a face without mouth", "face without mouth, twemoji style emoji"),
        ("could you please show me a love letter emoji in the style of noto?", "love letter, noto style emoji"),
        ("can of soup in noto", "can of soup, noto style emoji"),
        ("a person painting, noto", "person painting, noto style emoji"),
        ("noto picture frame", "framed picture, noto style emoji"),
        ("pink blob, noto", "pink blob, noto style emoji"),
        ("a blob emoji of a cat", "cat, noto blob style emoji"),
    ],
)
def test_a_sentence_becomes_a_caption(wording: CaptionWording, prompt: str, worded: str) -> None:
    assert wording(prompt) == worded
    assert wording(worded) == worded, "a caption stays as it is"


@pytest.mark.parametrize(
    "prompt",
    [
        *("a red apple", "A Cat", "cat", "", "   ", "7!", "🐼", "...", "noto style emoji", "emoji", "draw", "the"),
        *("a sunflower, fluent 3d style emoji", "success picture, line icon style", "flash on, flat color icon style"),
        *("draw a cat", "can of soup", "thank you card", "surprise me"),  # without a style
        "a zorblax in noto style",  # no caption has this word, and perhaps it says something about the style
        "a cat in noto style looking at a dog",  # two parts: which is the thing?
        "a cat that is sleeping, not awake, done in noto",
        *("a cat, not in noto style", "a cat without noto style", "cat in noto not twemoji", "cat in noto and twemoji"),
        *("A cat. A dog. In noto.", "a cat; a dog in noto", "a rocket in noto for my website"),
        *("draw a (red:1.2) apple in noto", "keycap # in noto", "C# icon in noto", "<b>cat</b> in noto"),
        *("🚀 rocket, noto", "flag of the US in noto", "google", "message from google", "a happy 3d cat"),
        *("a happy noto cat", "the gradient of a hill", "letter a in noto", "cat in pajamas, noto"),
        *("cat on a line icon", "love letter", "see-no-evil monkey"),
        *("man with a round flag", "t-shirt with clip art", "noto blob with sunglasses", "fish in a blob"),  # a thing
        *("just one emoji of cat", "flag, round ball", "black square flag", "cute noto cat"),  # no name of a style
        *("cat nothing like noto", "how to draw a cat in noto", "man looking in 3d", "clip art for a baby shower"),
        *("un panda roux", "赤いパンダ", "красная панда", "a cat " * 50 + "in noto", "noto " * 6_000),
        "draw " * 6_000 + "a cat in noto",
    ],
)
def test_what_is_not_understood_or_is_worded_so_stays_byte_for_byte(wording: CaptionWording, prompt: str) -> None:
    assert wording(prompt) == prompt


def test_prompts_of_a_stranger(wording: CaptionWording, vocabulary: Vocabulary) -> None:
    """Most are understood, and none is misunderstood."""
    phrases = {style.name: style.phrase for style in vocabulary.styles}
    names = {other: concept for concept, *others in vocabulary.synonyms for other in others}
    understood = 0
    for line in PROMPTS.splitlines():
        prompt, thing, style = (part.strip() for part in line.split("|"))
        thing = names.get(thing, thing) if style else thing
        worded, caption = wording(prompt), f"{thing}, {phrases[style]}" if style else thing
        as_given = worded == prompt
        is_right = worded.lower() == caption.lower() or (
            as_given and prompt.lower().removeprefix("a ") == thing.lower()
        )
        assert is_right or as_given, (prompt, worded)
        understood += is_right
    assert understood >= 41, "of 60"


def test_a_long_name_of_a_style_takes_no_time() -> None:
    """A vocabulary may come with a model from somewhere else, and orders of its words are many."""
    name = " ".join("bcdefghjklmnopqrstvwxyz")
    wording = CaptionWording(Vocabulary(styles=(Style(name=name, phrase=name, others=(name[::-1],)),), words=("fox",)))
    assert wording(f"a fox in {name}") == f"fox, {name}"


def test_a_model_without_styles_is_given_prompts_as_they_are() -> None:
    wording = CaptionWording(Vocabulary(concepts=("red panda",), words=("fluffy",)))
    assert wording("please draw a fluffy red panda in noto style") == "please draw a fluffy red panda in noto style"


def test_a_style_is_found_in_any_order_and_the_longest_name_counts() -> None:
    styles = (
        Style(name="ink", phrase="ink drawing"),
        Style(name="wet ink", phrase="wet ink drawing", others=("runny ink", "wash")),
    )
    wording = CaptionWording(Vocabulary(styles=styles, concepts=("fox", "wash basin")))
    assert wording("make me a fox as a wet ink drawing") == "fox, wet ink drawing"
    assert wording("a fox rendered in ink runny") == "fox, wet ink drawing"
    assert wording("a fox in wash style") == "fox, wet ink drawing"
    assert wording("a wash basin in ink") == "wash basin, ink drawing"


def test_the_digest_is_that_of_all_that_decides(vocabulary: Vocabulary) -> None:
    digest = CaptionWording(vocabulary).digest
    assert len(digest) == 64 and digest == CaptionWording(dataclasses.replace(vocabulary, examples=())).digest
    first = dataclasses.replace(vocabulary.styles[0], others=("bird style",))
    for other in (
        dataclasses.replace(vocabulary, styles=(first, *vocabulary.styles[1:])),
        dataclasses.replace(vocabulary, synonyms=vocabulary.synonyms[1:]),
        dataclasses.replace(vocabulary, words=vocabulary.words[1:]),
    ):
        assert CaptionWording(other).digest != digest


def test_en_words_english_anew_and_needs_no_translator(vocabulary: Vocabulary) -> None:
    model = DALLE.load("emoji")
    assert model.translate == as_translate("en-GB") == "en"
    step = model.prompt_translator()
    found = step("i want to see a rocket rendered in noto", "un chat rouge", translate="en")
    assert (found.prompt, found.negative_prompt) == ("rocket, noto style emoji", "un chat rouge")
    assert found.translation is not None and found.warning is None
    assert (found.translation.language, found.translation.translator) == ("en", "vocabulary")
    assert found.translation.translator_digest == CaptionWording(vocabulary).digest
    assert "translator" not in vars(step), "it was loaded"
    assert step("i want to see a rocket rendered in noto", translate="auto") == dataclasses.replace(
        found, negative_prompt=None
    )
    assert step("i want to see a rocket", translate="off").translation is None
    both = step("i want to see a rocket rendered in noto", "un chat rouge", translate="auto")
    assert (both.prompt, both.negative_prompt) == ("rocket, noto style emoji", "a red cat")
    assert both.translation is not None and both.translation.prompt == "i want to see a rocket rendered in noto"
    assert (both.translation.language, both.translation.negative_language) == ("en", "fr")
    assert both.translation.translator == "emoji"


def test_the_receipt_says_what_was_given() -> None:
    model = DALLE.load("emoji")
    found = model.prompt_translator()("show me a rocket in noto", translate="en")
    assert found.prompt is not None
    (picture,) = model.generate(found.prompt, seed=7, translations=[found.translation])
    (plain,) = model.generate("rocket, noto style emoji", seed=7)
    assert picture.receipt.codes == plain.receipt.codes
    receipt = Receipt.from_text(picture.receipt.to_text())
    assert receipt == picture.receipt and receipt.prompt == "rocket, noto style emoji"
    assert "given as" in describe(receipt) and "show me a rocket in noto (en)" in describe(receipt)


def test_a_model_without_styles_draws_prompts_as_they_are(model: DALLE) -> None:
    assert model.vocabulary is None and model.translate == "off"
