"""Image tokenizers of other projects: features, codes and pictures equal those that the projects' own code computed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from dalle.vq.discrete_vae import DiscreteVAE
from dalle.vq.openai_dvae import OpenAIDiscreteVAE
from tests.support import golden
from tests.support.golden import TOLERANCE, distance
from tests.support.interop_images import drawn, imported, square, vqgan


def same_as_signed_vqgan(path: Path, out: Path, project: str, prefix: str) -> None:
    expected = golden.vectors(project, prefix)
    tokenizer = vqgan(path, out)
    images = expected["image"]
    raw = expected["decoded_raw" if project == "ru-dalle" else "decoded"]
    if project == "ru-dalle":
        images = 2 * images - 1
    with torch.no_grad():
        features = tokenizer.latents(images).permute(0, 3, 1, 2)
    assert distance(features, expected["prequant"]) < TOLERANCE
    assert torch.equal(tokenizer.encode(images).flatten(1), expected["codes"].long())
    codes = square(expected["rand_codes"].flatten(1))
    assert distance(drawn(tokenizer, codes), raw) < TOLERANCE
    assert distance(tokenizer.decode(codes), raw.clamp(-1, 1)) < TOLERANCE
    if "gumbel_logits" in expected:
        with torch.no_grad():
            logits = tokenizer.quantizer.to_logits(tokenizer.latents(images))  # type: ignore[operator]
        assert distance(logits.permute(0, 3, 1, 2), expected["gumbel_logits"]) < TOLERANCE
    if "recon" in expected:
        assert distance(tokenizer.decode(tokenizer.encode(images)), expected["recon"].clamp(-1, 1)) < TOLERANCE


def same_as_vqgan_jax(path: Path, out: Path) -> None:
    expected = golden.vectors("vqgan-jax")
    tokenizer = vqgan(path, out)
    images, decoded, recon = (expected[name].permute(0, 3, 1, 2) for name in ("image", "decoded", "recon"))
    with torch.no_grad():
        assert distance(tokenizer.latents(2 * images - 1), expected["prequant"]) < TOLERANCE
    codes = tokenizer.encode(2 * images - 1)
    assert torch.equal(codes.flatten(1), expected["codes"].long())
    assert distance(tokenizer.quantizer.decode(codes), expected["quant"]) == 0
    random_codes = square(expected["rand_codes"])
    assert distance((drawn(tokenizer, random_codes) + 1) / 2, decoded) < TOLERANCE
    assert distance((tokenizer.decode(random_codes) + 1) / 2, decoded.clamp(0, 1)) < TOLERANCE
    assert distance((drawn(tokenizer, codes) + 1) / 2, recon) < TOLERANCE


def same_as_discrete_vae(path: Path, out: Path) -> None:
    expected = golden.vectors("DALLE-pytorch", "vae.")
    tokenizer, _ = imported(path, out)
    images = 2 * expected["image"] - 1
    assert isinstance(tokenizer, DiscreteVAE)
    with torch.no_grad():
        assert distance(tokenizer.logits(images).permute(0, 3, 1, 2), expected["enc_logits"]) < TOLERANCE
    assert torch.equal(tokenizer.encode(images).flatten(1), expected["codes"].long())
    assert distance(tokenizer.decode(square(expected["rand_codes"])), expected["decoded"].clamp(-1, 1)) < TOLERANCE


def same_as_openai_dvae(path: Path, out: Path) -> None:
    expected = golden.vectors("openai-dVAE")
    tokenizer, _ = imported(path, out)
    images = 2 * expected["image"] - 1
    assert isinstance(tokenizer, OpenAIDiscreteVAE)
    with torch.no_grad():
        assert distance(tokenizer.logits(images).permute(0, 3, 1, 2), expected["z_logits"]) < TOLERANCE
    assert torch.equal(tokenizer.encode(images), expected["codes"].long())
    for codes, pictures in (("rand_codes", "decoded"), ("codes", "recon")):
        assert distance((tokenizer.decode(expected[codes].long()) + 1) / 2, expected[pictures]) < TOLERANCE


def same_as_min_dalle(path: Path, out: Path) -> None:
    expected = golden.vectors("min-dalle", "detoker.")
    tokenizer = vqgan(path, out)
    raw = expected["small_decoded_raw"]
    assert distance((drawn(tokenizer, square(expected["small_tokens"])) + 1) / 2, raw) < TOLERANCE
    picture = (tokenizer.decode(square(expected["tokens"]))[0].permute(1, 2, 0) + 1) / 2 * 255
    assert distance(picture[96:160], expected["image_0_255_rows96_160"]) < 255 * TOLERANCE


GOLDENS: dict[str, Callable[[Path, Path], None]] = {
    "vqgan-jax/checkpoint": same_as_vqgan_jax,
    "taming/vqgan_f2_200": partial(same_as_signed_vqgan, project="taming", prefix="vqgan_f2_200."),
    "taming/gumbel_f4_144": partial(same_as_signed_vqgan, project="taming", prefix="gumbel_f4_144."),
    "minDALL-E/checkpoint": partial(same_as_signed_vqgan, project="minDALL-E", prefix="stage1."),
    "LlamaGen/vq_ds.pt": partial(same_as_signed_vqgan, project="LlamaGen", prefix="vq."),
    "ru-dalle/vae/vqgan.gumbelf8-sber.model.ckpt": partial(same_as_signed_vqgan, project="ru-dalle", prefix="vae."),
    "ru-dalle/vae/vqgan.gumbelf8-sber-dwt.model.ckpt": partial(
        same_as_signed_vqgan, project="ru-dalle", prefix="vae_dwt."
    ),
    "DALLE-pytorch/vae.pt": same_as_discrete_vae,
    "openai-dVAE": same_as_openai_dvae,
    "min-dalle/vqgan/detoker.pt": same_as_min_dalle,
}


@pytest.mark.parametrize("name", [name for name in GOLDENS if golden.find(name)])
def test_golden(name: str, tmp_path: Path) -> None:
    path = golden.find(name)
    assert path is not None
    GOLDENS[name](path, tmp_path / "model")
