"""Code perturbation: how many codes are replaced, by what, and what the batch must hold for it."""

import random
from pathlib import Path

import pytest
import torch

from dalle.checkpoint import load_image_tokenizer, save_checkpoint
from dalle.decoder.decoder import Decoder
from dalle.errors import DataError
from dalle.text.bpe import TextTokenizer
from dalle.vq.vqgan import ImageTokenizer
from tests.support.models import decoder_config
from tests.support.stages import write_stage_1
from training.captions.draw import draw_caption
from training.pairs.shards import PairShards, find_shards
from training.perturbation import MAX_DRAWN_CODES, CodePerturbation

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of stage 1, and in `certain` a model that draws code 7 at every place, for any caption."""
    folder = tmp_path_factory.mktemp("perturb")
    write_stage_1(folder)
    text = TextTokenizer.load(folder / "tokenizer.json")
    config = decoder_config(text_vocab_size=text.vocab_size, text_length=16, tie_embeddings=False, head_bias=True)
    decoder = Decoder(config)
    assert decoder.head is not None and decoder.head.bias is not None
    with torch.no_grad():
        decoder.head.bias[text.vocab_size + 7] = 100.0
    eyes = load_image_tokenizer(folder / "eyes")
    save_checkpoint(folder / "certain", name="certain", image_tokenizer=eyes, text_tokenizer=text, decoder=decoder)
    return folder


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_any_nothing_is_replaced(eyes: ImageTokenizer) -> None:
    perturb = CodePerturbation(0.0, None, eyes, CPU)
    codes = torch.randint(32, (6, 4, 4))
    assert torch.equal(perturb(codes, {}, generator()), codes)
    assert not perturb.need_captions and perturb.captions([], [0, 1, 2]) == {}


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_share_of_the_codes_becomes_any_other(eyes: ImageTokenizer, share: float) -> None:
    codes = torch.full((2000, 4, 4), 3)
    before = codes.clone()
    wrong = CodePerturbation(share, None, eyes, CPU)(codes, {}, generator())
    assert torch.equal(codes, before), "the codes that were handed in stay"
    replaced = wrong[wrong != 3]
    # one in 32 is replaced by itself
    assert len(replaced) / codes.numel() == pytest.approx(share * 31 / 32, abs=0.01)
    counts = torch.bincount(replaced, minlength=32)
    assert counts[3] == 0 and len(counts) == 32
    others = counts[counts > 0] / len(replaced)
    assert len(others) == 31 and (others - 1 / 31).abs().max() < 0.02
    perturb = CodePerturbation(share, None, eyes, CPU)
    assert torch.equal(perturb(codes, {}, generator()), wrong), "a function of the generator"
    assert not torch.equal(perturb(codes, {}, generator(1)), wrong)


def test_in_half_of_the_pictures_up_to_half_of_the_codes_are_drawn(data: Path, eyes: ImageTokenizer) -> None:
    perturb = CodePerturbation(0.0, str(data / "certain"), eyes, CPU)
    num = 400
    codes = torch.full((num, 4, 4), 3)
    text_ids = TextTokenizer.load(data / "tokenizer.json").encode_batch(["a red square"] * num)
    drawn = perturb(codes, {"text_ids": text_ids}, generator())
    assert set(drawn.unique().tolist()) == {3, 7}, "the decoder is certain"
    assert torch.equal(drawn[num // 2 :], codes[num // 2 :])
    shares = (drawn[: num // 2] == 7).float().mean((1, 2))
    assert shares.mean().item() == pytest.approx(MAX_DRAWN_CODES / 2, abs=0.03)
    assert shares.min() < 0.05 and 0.45 < shares.max() < 0.85, "each picture has its own share"


def test_codes_are_replaced_at_random_after_codes_are_drawn(data: Path, eyes: ImageTokenizer) -> None:
    codes = torch.full((400, 4, 4), 3)
    text_ids = TextTokenizer.load(data / "tokenizer.json").encode_batch(["a red square"] * 400)
    wrong = CodePerturbation(0.2, str(data / "certain"), eyes, CPU)(codes, {"text_ids": text_ids}, generator())
    kept = (wrong == 3).float().mean((1, 2))
    assert kept[200:].mean().item() == pytest.approx(1 - 0.2 * 31 / 32, abs=0.02)
    assert kept[:200].mean().item() == pytest.approx(0.75 * 0.8 + 0.2 / 32, abs=0.03)


def test_a_batch_of_one_picture_has_none_that_is_drawn(data: Path, eyes: ImageTokenizer) -> None:
    codes = torch.full((1, 4, 4), 3)
    text_ids = TextTokenizer.load(data / "tokenizer.json").encode_batch(["a red square"])
    assert torch.equal(
        CodePerturbation(0.0, str(data / "certain"), eyes, CPU)(codes, {"text_ids": text_ids}, generator()), codes
    )


def test_captions_are_those_of_the_pairs(data: Path, eyes: ImageTokenizer) -> None:
    perturb = CodePerturbation(0.0, str(data / "certain"), eyes, CPU)
    assert perturb.need_captions
    pairs = PairShards(find_shards([data / "val.tar"]))
    metadata = [pairs.metadata(number) for number in (3, 1, 1)]
    text_ids = perturb.captions(metadata, [0, 5, 2])["text_ids"]
    chance = random.Random("0/5/2")
    text = TextTokenizer.load(data / "tokenizer.json")
    assert [text.decode(ids) for ids in text_ids] == [draw_caption(one, chance).lower() for one in metadata]
    assert torch.equal(perturb.captions(metadata, [0, 5, 2])["text_ids"], text_ids)
    assert not torch.equal(perturb.captions(metadata, [0, 6, 2])["text_ids"], text_ids)


def test_models_that_cannot_draw_these_codes_are_refused(data: Path, eyes: ImageTokenizer) -> None:
    with pytest.raises(DataError, match="eyes has no decoder to draw codes"):
        CodePerturbation(0.0, str(data / "eyes"), eyes, CPU)
    with torch.no_grad():
        eyes.quantizer.codebook[0] += 1
    with pytest.raises(DataError, match="certain draws other codes than those of the image tokenizer that is trained"):
        CodePerturbation(0.0, str(data / "certain"), eyes, CPU)
