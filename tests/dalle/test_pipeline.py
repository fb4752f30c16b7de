"""The pipeline: prompt to picture, the same every time, in any company."""

import contextlib
import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from dalle import DALLE, Picture, Prefix, Request, SamplingParams
from dalle.checkpoint import load_checkpoint, save_checkpoint
from dalle.errors import CheckpointError, ImageError, ParameterError, PromptError
from dalle.images import to_rgb, to_tensor
from dalle.vq.vqgan import ImageTokenizer, ImageTokenizerConfig


def codes_of(pictures: list[Picture]) -> dict[tuple[str, int], tuple[tuple[int, ...], ...]]:
    return {(picture.prompt, picture.index): picture.receipt.codes for picture in pictures}


def test_pictures_are_their_own(model: DALLE) -> None:
    together = codes_of(list(model.generate(["a red panda", "a green heart"], n=5, seed=3)))
    assert len(together) == 10
    assert len(set(together.values())) == 10
    for prompt in ("a red panda", "a green heart"):
        alone = codes_of(list(model.generate(prompt, n=2, seed=3)))
        assert alone == {key: together[key] for key in alone}


def test_a_picture_is_the_decoded_codes(model: DALLE) -> None:
    (picture,) = model.generate("a red panda", seed=1)
    assert picture.image.size == (16, 16)
    codes = torch.tensor(picture.receipt.codes)
    assert codes.shape == (4, 4)
    assert np.array_equal(np.array(model.decode(codes)), np.array(picture.image))
    assert picture.receipt.model_digest == model.digest
    assert picture.receipt.parameters == SamplingParams(guidance_scale=2.0, top_k=16).to_dict()


def test_a_model_draws_transparency(clear: DALLE) -> None:
    assert clear.image_mode == "RGBA"
    (picture,) = clear.generate("a red panda", seed=7)
    (opaque,) = clear.generate("a red panda", seed=7, background="opaque")
    alpha = np.asarray(picture.image.getchannel("A"))
    assert (alpha == 0).any() and (alpha == 255).any() and ((alpha > 0) & (alpha < 255)).any()
    assert picture.image.tobytes() == clear.decode(torch.tensor(picture.receipt.codes)).tobytes()
    assert opaque.image.mode == "RGB" and opaque.image.tobytes() == to_rgb(picture.image).tobytes()
    assert picture.receipt.codes == opaque.receipt.codes
    parameters = clear.sampling.to_dict()
    assert picture.receipt.parameters == parameters | {"background": "transparent"}
    assert opaque.receipt.parameters == parameters | {"background": "opaque"}


def test_a_background_that_cannot_be_is_refused_before_anything_is_drawn(model: DALLE, clear: DALLE) -> None:
    for background in ("auto", "opaque"):
        (picture,) = model.generate("a red panda", seed=1, background=background)
        assert picture.image.mode == "RGB" and "background" not in picture.receipt.parameters
    with pytest.raises(ParameterError, match="the model lively draws no transparency"):
        model.generate("a red panda", background="transparent")
    with pytest.raises(ParameterError, match="background is 'white'; it must be transparent, opaque or auto"):
        clear.generate("a red panda", background="white")  # type: ignore[arg-type]


def test_a_prefix_keeps_its_transparency_where_the_model_draws_it(model: DALLE, clear: DALLE) -> None:
    source = next(clear.generate("a green heart", seed=8)).image
    (picture,) = clear.generate("a red panda", seed=1, prefix=Prefix(image=source, num_rows=2))
    kept = torch.tensor(picture.receipt.codes)[:2]
    assert torch.equal(kept, clear.encode(source)[:2])
    assert not torch.equal(kept, clear.encode(to_rgb(source))[:2])
    (over_white,) = model.generate("a red panda", seed=1, prefix=Prefix(image=source, num_rows=2))
    assert torch.equal(torch.tensor(over_white.receipt.codes)[:2], model.encode(to_rgb(source))[:2])


def test_without_a_seed_a_random_one_is_used_and_returned(model: DALLE) -> None:
    (first,), (second,) = model.generate("a red panda"), model.generate("a red panda")
    assert first.seed != second.seed
    (again,) = model.generate("a red panda", seed=first.seed)
    assert again.receipt == first.receipt


def test_prompts_differ_by_more_than_case(model: DALLE) -> None:
    lower, upper, other = (next(model.generate(p, seed=1)).receipt.codes for p in ("a panda", "A PANDA", "a fish"))
    assert lower == upper
    assert lower != other


def test_a_negative_prompt_matters_and_needs_guidance(model: DALLE) -> None:
    plain = next(model.generate("a red panda", seed=1)).receipt
    negative = next(model.generate("a red panda", seed=1, negative_prompt="blue fish")).receipt
    assert plain.codes != negative.codes
    assert (plain.negative_prompt, negative.negative_prompt) == (None, "blue fish")
    with pytest.raises(ParameterError, match="guidance_scale must be above 1"):
        model.generate("a red panda", SamplingParams(), negative_prompt="blue fish")


def test_a_prefix_is_kept_and_the_rest_is_drawn(model: DALLE) -> None:
    source = next(model.generate("a green heart", seed=8)).image
    expected = model.image_tokenizer.encode(to_tensor(source)[None])[0, :2]
    (picture,) = model.generate("a red panda", seed=1, prefix=Prefix(image=source, num_rows=2))
    assert torch.equal(torch.tensor(picture.receipt.codes)[:2], expected)
    assert picture.receipt.parameters["kept"] == "ff00"
    with pytest.raises(ParameterError, match=r"4 rows are to be kept; it must be in 0\.\.3"):
        model.generate("a red panda", prefix=Prefix(image=source, num_rows=4))
    with pytest.raises(ImageError, match="8 x 8; expected 16 x 16"):
        model.generate("a red panda", prefix=Prefix(image=source.resize((8, 8)), num_rows=1))


def test_a_wavelet_head_draws_larger_than_it_encodes(model: DALLE) -> None:
    """A picture that was drawn is shrunk to what the encoder takes before it is kept in part."""
    config = model.image_tokenizer.config
    assert isinstance(config, ImageTokenizerConfig)
    larger = copy.copy(model)
    larger.image_tokenizer = ImageTokenizer(dataclasses.replace(config, wavelet_head=True)).eval()
    assert larger.image_size == (32, 32)
    (picture,) = larger.generate("a red panda", seed=1)
    assert picture.image.size == (32, 32)
    small = to_tensor(picture.image)[None].unflatten(2, (16, 2)).unflatten(4, (16, 2)).mean((3, 5))
    assert torch.equal(larger.encode(picture.image), larger.image_tokenizer.encode(small)[0])


def test_every_step_is_seen(model: DALLE) -> None:
    drawn: list[int] = []
    list(model.generate("a red panda", n=6, seed=1, on_step=lambda result: drawn.append(result.num_codes)))
    assert sum(drawn) == 6 * model.num_codes
    assert drawn[:16] == [4] * 16  # guided pictures take two of eight slots
    assert len(drawn) < 32 and min(drawn) > 0  # the last two are drawn in parallel


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_empty_prompts_are_refused_before_anything_is_drawn(model: DALLE, prompt: str) -> None:
    with pytest.raises(PromptError, match="empty"):
        model.generate(["a red panda", prompt])


def test_long_prompts_are_refused_or_cut_on_request(model: DALLE) -> None:
    with pytest.raises(PromptError, match="limit is 11"):
        model.generate("x" * 50)
    with pytest.warns(UserWarning, match="cut"):
        (cut,) = model.generate("x" * 50, seed=1, truncate=True)
    with pytest.warns(UserWarning, match="cut"):
        (cut_away,) = model.generate("a red panda", seed=1, negative_prompt="x" * 50, truncate=True)
    (whole,) = model.generate("x" * 10, seed=1, truncate=True)
    assert cut.receipt.parameters["truncate"] is cut_away.receipt.parameters["truncate"] is True
    assert "truncate" not in whole.receipt.parameters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, r"n is 0; it must be in 1\.\.1000"),
        ({"n": 10_000}, "n is 10000"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
    ],
)
def test_parameters_outside_their_range_are_refused(model: DALLE, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        model.generate("a red panda", **arguments)  # type: ignore[arg-type]


def test_an_image_tokenizer_alone_cannot_draw(model: DALLE, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "stage1", name="stage 1", image_tokenizer=model.image_tokenizer)
    assert load_checkpoint(tmp_path / "stage1").decoder is None
    alone = DALLE.load(tmp_path / "stage1")
    codes = torch.arange(4).reshape(1, 2, 2)
    assert torch.equal(alone.image_tokenizer.decode(codes), model.image_tokenizer.decode(codes))
    for draw in (
        lambda: alone.generate("a red panda"),
        lambda: alone.sample(torch.zeros(1, 20, dtype=torch.long)),
        lambda: alone.logits(torch.zeros(1, 20, dtype=torch.long), codes),
        lambda: alone.image_size,
        lambda: alone.decoder,
    ):
        with pytest.raises(CheckpointError, match="stage 1 is an image tokenizer alone: it has no decoder"):
            draw()
    with pytest.raises(ParameterError, match="no use for a text encoder"):
        DALLE.load(tmp_path / "stage1", text_encoder=tmp_path)


def test_a_prompt_is_tokenized_once(model: DALLE, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenized: list[str] = []
    tokenizer = model.text_tokenizer
    assert tokenizer is not None
    tokenize = tokenizer.tokenize

    def noted(text: str) -> list[int]:
        tokenized.append(text)
        return tokenize(text)

    monkeypatch.setattr(tokenizer, "tokenize", noted)
    list(model.generate("a red panda", n=3, seed=1, negative_prompt="rain"))
    assert [text for text in tokenized if text] == ["a red panda", "rain"]


def test_a_picture_needs_a_request_that_knows_its_prompt(model: DALLE) -> None:
    request = model.request("a red panda", model.sampling, seed=1)
    plain = Request(text_ids=request.text_ids, null_ids=request.null_ids, params=request.params, seed=1)
    with pytest.raises(ParameterError, match=r"Request does not say what its prompt was: use `DALLE\.request`"):
        model.picture(plain, torch.zeros(16, dtype=torch.int64))  # type: ignore[arg-type]


def test_calls_that_overlap_or_end_early_draw_their_own_pictures(model: DALLE) -> None:
    """Engines are kept for later calls, and no call takes one that another uses."""
    alone = [[one.receipt.codes for one in model.generate("a red panda", n=3, seed=seed)] for seed in (1, 2)]
    first, second = (model.generate("a red panda", n=3, seed=seed) for seed in (1, 2))
    found = [(next(first).receipt.codes, next(second).receipt.codes) for _ in range(3)]
    assert [list(one) for one in zip(*found, strict=True)] == alone
    with contextlib.closing(model.generate("a red panda", n=3, seed=1)) as left:
        next(left)
    assert [one.receipt.codes for one in model.generate("a red panda", n=3, seed=2)] == alone[1]


def test_changed_weights_draw_other_pictures(model_folder: Path) -> None:
    model = DALLE.load(model_folder)
    before = [one.receipt.codes for one in model.generate("a red panda", n=2, seed=1)]
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.add_(0.5 * torch.randn_like(weight))
    assert [one.receipt.codes for one in model.generate("a red panda", n=2, seed=1)] != before
