"""Image tokenizers of other projects: written, imported and compared."""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from dalle.checkpoint import load_image_tokenizer
from dalle.interop.convert import Imported, import_checkpoint
from dalle.vq.kinds import AnyImageTokenizer
from dalle.vq.vqgan import ImageTokenizer
from tests.support.golden import TOLERANCE, distance
from tests.support.references import VQGAN, PlainDVAE


def imported(path: Path, out: Path, **options: Any) -> tuple[AnyImageTokenizer, Imported]:
    done = import_checkpoint(path, out, **options)
    return load_image_tokenizer(out), done


def vqgan(path: Path, out: Path) -> ImageTokenizer:
    tokenizer, _ = imported(path, out)
    assert isinstance(tokenizer, ImageTokenizer)
    return tokenizer


def drawn(tokenizer: ImageTokenizer, codes: Tensor) -> Tensor:
    """Decoded pixels before they are clamped to [-1, 1]."""
    with torch.no_grad():
        return tokenizer.pixels(tokenizer.quantizer.decode(codes))


def square(codes: Tensor) -> Tensor:
    """(B, N) -> (B, h, w)."""
    side = round(codes.shape[-1] ** 0.5)
    return codes.long().reshape(len(codes), side, side)


def ddconfig(**changes: Any) -> dict[str, Any]:
    values = {"double_z": False, "z_channels": 12, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32}
    return values | {"num_res_blocks": 1, "attn_resolutions": [8], "dropout": 0.0} | changes


def compare(tokenizer: ImageTokenizer, reference: VQGAN, **options: Any) -> None:
    """Compare an imported tokenizer with a reference on square and other pictures."""
    unit, factor = tokenizer.config.pixel_range == "unit", tokenizer.config.factor
    for height, width in ((16, 16), (2 * factor, 3 * factor)):
        images = 2 * torch.rand(2, 3, height, width) - 1
        theirs = (images + 1) / 2 if unit else images
        with torch.no_grad():
            features, expected = tokenizer.latents(images).permute(0, 3, 1, 2), reference.prequant(theirs)
        assert distance(features, expected) < TOLERANCE
        codes = reference.encode(theirs, **options)
        assert torch.equal(tokenizer.encode(images), codes) and len(codes.unique()) > 1
        picture = reference.decode(codes, **options)
        assert distance(drawn(tokenizer, codes), 2 * picture - 1 if unit else picture) < TOLERANCE


def write_taming(folder: Path, reference: VQGAN, target: str = "VQModel") -> None:
    (folder / "configs").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    params = {"ddconfig": reference.d, "embed_dim": reference.embed_dim, "n_embed": reference.n_embed}
    config = {"model": {"target": f"taming.models.vqgan.{target}", "params": params}}
    (folder / "configs" / "2021-05-01T00-00-00-project.yaml").write_text(yaml.safe_dump(config))
    (folder / "configs" / "2021-05-01T00-00-00-lightning.yaml").write_text("lightning:\n  trainer: {gpus: 1}\n")
    weights = {**reference.w, "loss.discriminator.main.0.weight": torch.zeros(3)}
    torch.save({"epoch": 3, "state_dict": weights}, folder / "checkpoints" / "last.ckpt")


def discrete_vae(**changes: Any) -> PlainDVAE:
    values: dict[str, Any] = {"image_size": 16, "num_layers": 2, "num_tokens": 30, "codebook_dim": 24, "hidden_dim": 20}
    return PlainDVAE(values | {"num_resnet_blocks": 1} | changes)


DDCONFIG = {"z_channels": 6, "resolution": 8, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [4]}
DDCONFIG |= {"out_ch": 3}
"""A VQGAN of 2 x 2 pixels per code, for `write_mindalle`."""


def write_mindalle(folder: Path, reference: VQGAN) -> None:
    folder.mkdir()
    stage = {"type": "vqgan", "embed_dim": 6, "n_embed": 20, "hparams": reference.d}
    (folder / "config.yaml").write_text(yaml.safe_dump({"stage1": stage, "stage2": {}}))
    torch.save({"state_dict": dict(reference.w)}, folder / "stage1_last.ckpt")
