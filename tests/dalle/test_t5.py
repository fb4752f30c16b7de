"""T5 as a text encoder: captions cleaned as LlamaGen does, and features from a folder on this machine."""

import json
from pathlib import Path

import pytest
import torch
import transformers

import dalle
from dalle import DALLE, SamplingParams
from dalle.errors import CheckpointError, ParameterError, PromptError
from dalle.explain.explanation import explain
from dalle.interop.convert import import_checkpoint
from dalle.text.cleaning import clean_caption
from dalle.text.t5 import T5TextEncoder
from tests.support.text_encoders import write_t5

DATA = Path(__file__).parents[1] / "data" / "golden" / "LlamaGen"


def test_captions_are_cleaned_as_by_llamagen() -> None:
    captions = json.loads((DATA / "text_preprocessing.json").read_text())
    assert len(captions) == 35
    assert [clean_caption(caption["text"]) for caption in captions] == [caption["clean"] for caption in captions]


def test_captions_of_another_kind_are_cleaned_as_by_llamagen() -> None:
    """HTML is replaced by its text; blanks at the ends are kept until the last rule."""
    for caption, text in {
        "a <script>x=1</script> cat": "a cat",
        "<style>p{}</style> a <template>q <b>r</b></template> cat": "a cat",
        "&notanentity; &eacute; &#39;tis": "notanentity é 'tis",
        "<![CDATA[a cat]]> <!-- d -->": "a cat",
        r"page 12 page 12 ; \n ;": ";",
    }.items():
        assert clean_caption(caption) == text


def test_a_caption_that_is_broken_html_is_refused() -> None:
    with pytest.raises(PromptError, match=r"looks like HTML, and is not valid: '<!\[日本'"):
        clean_caption("<![日本")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 of 40 channels, random, as transformers saves one, with a unigram tokenizer of letters."""
    return write_t5(tmp_path_factory.mktemp("t5"), width=40)


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DALLE:
    out = tmp_path_factory.mktemp("imported") / "captions"
    import_checkpoint(DATA / "t2i_stage.pt", out)
    return dalle.load(out, device="cpu", text_encoder=folder)


def test_features_are_those_of_transformers(model: DALLE, folder: Path) -> None:
    assert model.text_tokenizer is not None and model.text_encoder is not None
    short = model.text_tokenizer.encode("abc")
    assert short.tolist() == [3, 4, 5, 6, 1, 0]
    values, mask = model.text_encoder.features(short[None])
    network: torch.nn.Module = transformers.T5EncoderModel.from_pretrained(folder)
    with torch.inference_mode():
        expected = network(short[None], attention_mask=(short != 0)[None].long()).last_hidden_state
    assert (values - expected).abs().max() < 1e-5
    assert mask.tolist() == [[True] * 5 + [False]]


def test_a_prompt_is_drawn_as_its_features_are(model: DALLE) -> None:
    assert model.text_tokenizer is not None and model.text_encoder is not None
    params = SamplingParams(guidance_scale=3.0, top_k=50)
    picture = next(model.generate("ABC", params, seed=4))
    features = model.text_encoder.features(model.text_tokenizer.encode("abc")[None])
    codes = model.sample(features, params, seed=4)
    assert torch.equal(torch.tensor(picture.receipt.codes), codes[0])
    other = next(model.generate("abc", params, seed=4, negative_prompt="cba")).receipt.codes
    assert other != picture.receipt.codes


def test_an_explanation_finds_the_features_of_words(model: DALLE) -> None:
    """Features that count are moved to the end of the text, behind those that are masked."""
    receipt = next(model.generate("ab c", SamplingParams(top_k=2), seed=4)).receipt
    found = explain(model, receipt)
    assert [(column.text.strip(), column.role, column.word) for column in found.columns if column.text.strip()] == [
        ("a", "token", 0),
        ("b", "token", 0),
        ("c", "token", 1),
        ("[end]", "end", None),
    ]
    assert found.words == ["ab", "c"] and found.alternatives.agrees.all()
    assert torch.allclose(found.attention.text.sum(-1)[..., 0], torch.ones(())), "the first code attends to text alone"


def test_a_long_prompt_is_cut_before_its_end(model: DALLE) -> None:
    assert model.text_tokenizer is not None
    with pytest.raises(PromptError, match="the prompt has 8 tokens; the limit is 5"):
        model.generate("abcdefg")
    with pytest.warns(UserWarning, match="cut"):
        assert model.text_tokenizer.encode("abcdefg", truncate=True).tolist() == [3, 4, 5, 6, 7, 1]


def test_folders_that_do_not_fit_are_refused(model: DALLE, folder: Path, tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a tokenizer of a T5"):
        T5TextEncoder(tmp_path, text_length=6, feature_width=40, device=torch.device("cpu"))
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(CheckpointError, match="is not a folder of a T5"):
        T5TextEncoder(tmp_path, text_length=6, feature_width=40, device=torch.device("cpu"))
    with pytest.raises(CheckpointError, match="features of 40 channels; the model expects 2048"):
        T5TextEncoder(folder, text_length=6, feature_width=2048, device=torch.device("cpu"))
    with pytest.raises(ParameterError, match="no use for a text encoder"):
        dalle.load(model_folder, device="cpu", text_encoder=folder)
