"""Image tokenizers of other shapes and options, compared with independent implementations of the projects' networks."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from dalle.checkpoint.weights import LazyTensor
from dalle.errors import CheckpointError, ImageError
from dalle.interop.convert import import_checkpoint
from dalle.interop.export import export_checkpoint
from dalle.interop.flax_msgpack import read_flax, write_flax
from dalle.vq.vqgan import ImageTokenizer
from tests.support import golden
from tests.support.golden import TOLERANCE, distance
from tests.support.interop_images import compare, ddconfig, discrete_vae, drawn, imported, vqgan, write_taming
from tests.support.references import VQGAN

DDCONFIGS: dict[str, dict[str, Any]] = {
    "wide coarse levels, two blocks": {"ch_mult": [1, 2, 4], "num_res_blocks": 2, "attn_resolutions": [4]},
    "attention at two levels": {"ch_mult": [1, 1, 2], "attn_resolutions": [4, 8]},
    "attention at the finest": {"ch_mult": [1, 2], "attn_resolutions": [16]},
    "no attention at any level": {"ch_mult": [1, 1, 1, 1], "attn_resolutions": []},
    "the first level wider than the stem": {"ch_mult": [2, 1]},
    "one level": {"ch_mult": [1], "num_res_blocks": 3},
    "64 channels": {"ch": 64, "ch_mult": [1, 1]},
    "pooling instead of convolutions": {"ch_mult": [1, 1, 2], "resamp_with_conv": False},
    "attention where the picture never is": {"ch_mult": [1, 1], "attn_resolutions": [4]},
}


@pytest.mark.parametrize("changes", DDCONFIGS.values(), ids=DDCONFIGS.keys())
def test_taming_of_other_shapes(changes: dict[str, Any], tmp_path: Path) -> None:
    reference = VQGAN(ddconfig(**changes), embed_dim=6, n_embed=50)
    write_taming(tmp_path / "run", reference)
    tokenizer = vqgan(tmp_path / "run", tmp_path / "model")
    compare(tokenizer, reference)
    config = tokenizer.config
    assert (config.image_size, config.codebook_size, config.codebook_dim, config.z_channels) == (16, 50, 6, 12)
    assert config.factor == 2 ** (len(changes["ch_mult"]) - 1)


def test_gumbel_of_another_shape(tmp_path: Path) -> None:
    reference = VQGAN(ddconfig(ch_mult=[1, 2], z_channels=10), embed_dim=10, n_embed=40, gumbel=True)
    write_taming(tmp_path / "run", reference, "GumbelVQ")
    compare(vqgan(tmp_path / "run", tmp_path / "model"), reference)


FLAX_DDCONFIGS = {
    name: DDCONFIGS[name] for name in ("wide coarse levels, two blocks", "one level", "pooling instead of convolutions")
} | {"twice the channels before the first 1 x 1 convolution": {"ch_mult": [1, 2], "double_z": True}}


@pytest.mark.parametrize("changes", FLAX_DDCONFIGS.values(), ids=FLAX_DDCONFIGS.keys())
def test_vqgan_jax_of_other_shapes(changes: dict[str, Any], tmp_path: Path) -> None:
    reference = VQGAN(ddconfig(**changes), embed_dim=6, n_embed=50)
    arrays = {}
    for name, value in reference.w.items():
        *parents, leaf = re.sub(r"(down|up|block|attn)\.(\d+)", r"\1_\2", name).split(".")
        if value.ndim == 4:
            leaf, value = "kernel", value.permute(2, 3, 1, 0)
        elif leaf == "weight":
            leaf = "embedding" if "embedding" in parents else "scale"
        arrays["/".join([*parents, leaf])] = LazyTensor.of(value.contiguous())
    described = {**reference.d, "embed_dim": 6, "n_embed": 50, "architectures": ["del"], "transformers_version": "4"}
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(described))
    write_flax(tmp_path / "checkpoint" / "flax_model.msgpack", arrays)
    tokenizer = vqgan(tmp_path / "checkpoint", tmp_path / "model")
    assert tokenizer.config.pixel_range == "unit"
    compare(tokenizer, reference)
    export_checkpoint(tmp_path / "model", "vqgan-jax", tmp_path / "back")
    exported = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {name: exported[name] for name in changes} == changes
    arrays, back = (read_flax(tmp_path / name / "flax_model.msgpack") for name in ("checkpoint", "back"))
    assert {*arrays} == {*back} and all(torch.equal(arrays[name].load(), back[name].load()) for name in arrays)


def test_mindalle_of_another_shape(tmp_path: Path) -> None:
    reference = VQGAN(ddconfig(ch_mult=[1, 2, 2], attn_resolutions=[4], num_res_blocks=2), embed_dim=6, n_embed=50)
    (tmp_path / "1.3B").mkdir()
    stage = {"type": "vqgan", "embed_dim": 6, "n_embed": 50, "hparams": reference.d}
    (tmp_path / "1.3B" / "config.yaml").write_text(yaml.safe_dump({"stage1": stage, "stage2": {}}))
    torch.save({"state_dict": dict(reference.w)}, tmp_path / "1.3B" / "stage1_last.ckpt")
    path = tmp_path / "1.3B" / "stage1_last.ckpt"
    tokenizer = vqgan(path.parent, tmp_path / "model")
    compare(tokenizer, reference)


def llamagen_names(reference: VQGAN, *, last: int) -> dict[str, Tensor]:
    """The weights under LlamaGen's names, which number the decoder's levels in reverse; `last` is the coarsest."""

    def rename(name: str) -> str:
        name = re.sub(r"(down|up)\.(\d)\.block\.", r"\1.\2.res.", name)
        name = name.replace("encoder.down.", "encoder.conv_blocks.")
        name = re.sub(r"decoder\.up\.(\d)", lambda match: f"decoder.conv_blocks.{last - int(match[1])}", name)
        for i, part in enumerate(("block_1", "attn_1", "block_2")):
            name = name.replace(f"mid.{part}.", f"mid.{i}.")
        return name

    return {rename(name): value for name, value in reference.w.items()}


@pytest.mark.parametrize("key", ["model", "ema", "state_dict"])
def test_llamagen_of_another_shape(key: str, tmp_path: Path) -> None:
    """LlamaGen has attention at the coarsest level only, codes of unit length, and its own names."""
    reference = VQGAN(ddconfig(ch_mult=[1, 1, 2], attn_resolutions=[4], num_res_blocks=2), embed_dim=8, n_embed=50)

    weights = llamagen_names(reference, last=2)
    torch.save({key: {**weights, "quantize.codebook_used": torch.zeros(65536)}, "steps": 3}, tmp_path / "vq_ds4.pt")
    tokenizer = vqgan(tmp_path / "vq_ds4.pt", tmp_path / "model")
    assert tokenizer.config.attention_levels == (2,)
    compare(tokenizer, reference, normalize=True)


@pytest.mark.parametrize("unit_length", [True, False])
def test_llamagen_says_how_codes_are_compared(unit_length: bool, tmp_path: Path) -> None:
    """A JSON file of ModelArgs beside the weights decides; one for another codebook is ignored."""
    reference = VQGAN(ddconfig(ch_mult=[1, 2], attn_resolutions=[8], num_res_blocks=2), embed_dim=8, n_embed=50)
    torch.save({"model": llamagen_names(reference, last=1)}, tmp_path / "vq_ds2.pt")
    described = {"codebook_size": 50, "codebook_embed_dim": 8, "codebook_l2_norm": unit_length, "image_size": 48}
    (tmp_path / "vq_config.json").write_text(json.dumps(described))
    other = {"codebook_size": 51, "codebook_embed_dim": 8, "codebook_l2_norm": not unit_length}
    (tmp_path / "vq_a_config.json").write_text(json.dumps(other))
    tokenizer, done = imported(tmp_path / "vq_ds2.pt", tmp_path / "model")
    assert isinstance(tokenizer, ImageTokenizer)
    compare(tokenizer, reference, normalize=unit_length)
    assert tokenizer.config.image_size == 48
    said = "at unit length" if unit_length else "as they are"
    assert f"codes are compared {said}, as vq_config.json says" in done.converted.derived


@pytest.mark.parametrize("family", ["mindalle", "rudalle", "llamagen"])
def test_weights_for_training_only_are_ignored_and_reported(family: str, tmp_path: Path) -> None:
    """The state_dict of a whole training run contains the networks of the loss, and counters."""
    changes = {"ch_mult": [1, 2], "attn_resolutions": [8], "num_res_blocks": 2}
    reference = VQGAN(ddconfig(z_channels=8, **changes), embed_dim=8, n_embed=50, gumbel=family == "rudalle")
    weights = {**reference.w, "loss.discriminator.main.0.weight": torch.zeros(3), "loss.logvar": torch.zeros(1)}
    theirs, options = tmp_path / "theirs", {}
    theirs.mkdir()
    if family == "mindalle":
        stage = {"embed_dim": 8, "n_embed": 50, "hparams": reference.d}
        (theirs / "config.yaml").write_text(yaml.safe_dump({"stage1": stage, "stage2": {}}))
        torch.save({"state_dict": weights}, theirs / "stage1_last.ckpt")
    elif family == "rudalle":
        torch.save({"state_dict": weights}, theirs / "vqgan.gumbelf8-sber.model.ckpt")
    else:
        named = llamagen_names(reference, last=1) | {
            "loss.logvar": torch.zeros(1),
            "quantize.codebook_used": torch.ones(9),
        }
        torch.save({"model": named, "ema": named, "steps": 1}, theirs / "vq_ds2.pt")
        options = {"normalize": True}
    tokenizer, done = imported(theirs, tmp_path / "model")
    assert isinstance(tokenizer, ImageTokenizer)
    compare(tokenizer, reference, **options)
    kinds = "loss., quantize.codebook_used" if family == "llamagen" else "loss."
    assert f"2 tensors that only training needs: {kinds}" in done.converted.ignored
    if family == "llamagen":
        assert "state of training in vq_ds2.pt: ema, steps" in done.converted.ignored


def test_mindalle_with_what_its_configuration_leaves_out(tmp_path: Path) -> None:
    """The project merges a configuration with its defaults, such as pictures of 256 pixels."""
    reference = VQGAN(ddconfig(ch_mult=[1, 1, 2], attn_resolutions=[]), embed_dim=6, n_embed=50)
    hparams = {name: value for name, value in reference.d.items() if name not in ("resolution", "attn_resolutions")}
    stage = {"embed_dim": 6, "n_embed": 50, "hparams": hparams}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"stage1": stage, "stage2": None}))
    torch.save({"state_dict": dict(reference.w)}, tmp_path / "stage1_last.ckpt")
    tokenizer = vqgan(tmp_path, tmp_path / "model")
    compare(tokenizer, reference)
    assert tokenizer.config.image_size == 256


@pytest.mark.parametrize("num_res_blocks", [1, 2])
def test_min_dalle_of_another_shape(num_res_blocks: int, tmp_path: Path) -> None:
    changes = {"ch_mult": [1, 1, 2], "num_res_blocks": num_res_blocks, "attn_resolutions": [4], "z_channels": 6}
    reference = VQGAN(ddconfig(**changes), embed_dim=6, n_embed=50, epsilon=1e-5)
    kept = ("decoder.", "post_quant_conv.", "quantize.embedding.")
    weights = {name.removeprefix("quantize."): value for name, value in reference.w.items() if name.startswith(kept)}
    (tmp_path / "vqgan").mkdir()
    torch.save(weights, tmp_path / "vqgan" / "detoker.pt")
    tokenizer = vqgan(tmp_path, tmp_path / "model")
    codes = torch.randint(50, (2, 3, 5))
    assert distance(drawn(tokenizer, codes), 2 * reference.decode(codes) - 1) < TOLERANCE
    assert tokenizer.config.image_size == 64, "16 codes on a side, of 4 pixels each"
    with pytest.raises(ImageError, match="only decodes: its checkpoint came without an encoder"):
        tokenizer.encode(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("with_config", [True, False])
def test_rudalle_with_wavelets(with_config: bool, tmp_path: Path) -> None:
    """Twelve channels become a picture of twice the size: the sum and the details of each 2 x 2 pixels."""
    reference = VQGAN(ddconfig(ch_mult=[1, 1, 1], z_channels=8, out_ch=12), embed_dim=8, n_embed=30, gumbel=True)
    weights = {"model.decoder.idwt.g0_col": torch.ones(2), "model.post_quant_conv.weight": torch.ones(8, 8, 1, 1)}
    weights["model.post_quant_conv.bias"] = torch.ones(8)
    for name, value in reference.w.items():
        inside = name.startswith(("decoder.", "post_quant_conv."))
        weights[f"model.{'decoder.' if inside else ''}{name}"] = value
    torch.save({"state_dict": weights}, tmp_path / "vqgan.gumbelf8-sber-dwt.model.ckpt")
    if with_config:
        params = {"ddconfig": reference.d | {"out_ch": 3}, "embed_dim": 8, "n_embed": 30}
        described = {"model": {"target": "taming.models.vqgan.GumbelVQ", "params": params}}
        (tmp_path / "vqgan.gumbelf8-sber.config.yml").write_text(yaml.safe_dump(described))
    tokenizer = vqgan(tmp_path, tmp_path / "model")
    config = tokenizer.config
    assert (config.image_size, config.factor, config.picture_factor) == (16 if with_config else 256, 4, 8)
    images = 2 * torch.rand(2, 3, 16, 16) - 1
    codes = reference.encode(images)
    assert torch.equal(tokenizer.encode(images), codes)
    bands, picture = reference.decode(codes), drawn(tokenizer, codes)
    assert picture.shape == (2, 3, 32, 32)
    corners = picture.unfold(2, 2, 2).unfold(3, 2, 2)
    a, b, c, d = (corners[..., i, j] for i in (0, 1) for j in (0, 1))
    assert distance((a + b + c + d) / 2, bands[:, :3]) < TOLERANCE
    details = bands[:, 3:].reshape(2, 3, 3, 16, 16)
    for i, band in enumerate([(a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2]):
        assert distance(band, details[:, :, i]) < TOLERANCE


def test_a_family_that_is_given_need_not_be_recognised_by_a_name(tmp_path: Path) -> None:
    path = golden.find("ru-dalle/vae/vqgan.gumbelf8-sber.model.ckpt")
    assert path is not None
    shutil.copy(path, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"its configuration is missing.* needs none, but --family rudalle"):
        import_checkpoint(tmp_path / "last.ckpt", tmp_path / "model")
    tokenizer, done = imported(tmp_path / "last.ckpt", tmp_path / "model", family="rudalle")
    assert done.reason == "the family was given" and isinstance(tokenizer, ImageTokenizer)
    expected = golden.vectors("ru-dalle", "vae.")
    assert torch.equal(tokenizer.encode(2 * expected["image"] - 1).flatten(1), expected["codes"].long())


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"ch_mult": [1, 1]}, r"says ch \* ch_mult \[32, 32\]; the weights of .*last.ckpt have \[32, 64\]"),
    ({"num_res_blocks": 2}, "says num_res_blocks 2; the weights of .* have 1"),
    ({"attn_resolutions": [16]}, r"says levels of attn_resolutions \[0\]; the weights of .* have \[1\]"),
    ({"double_z": True}, "double_z"),
    ({"resolution": None}, "does not describe a VQGAN with a resolution"),
    ({"resolution": 33}, "image_size is 33; it must be a multiple of 2"),
]


def test_what_contradicts_its_configuration_is_refused(tmp_path: Path) -> None:
    reference = VQGAN(ddconfig(ch_mult=[1, 2]), embed_dim=6, n_embed=50)
    for i, (changes, said) in enumerate(CONTRADICTIONS):
        described = VQGAN(ddconfig(ch_mult=[1, 2]), embed_dim=6, n_embed=50)
        described.w, described.d = reference.w, reference.d | changes
        write_taming(tmp_path / str(i), described)
        with pytest.raises(CheckpointError, match=said):
            import_checkpoint(tmp_path / str(i), tmp_path / "model")
    params = {**discrete_vae(num_resnet_blocks=2).h, "num_resnet_blocks": 10**9}
    weights = dict(discrete_vae(num_resnet_blocks=2).w)
    torch.save({"hparams": params, "weights": weights}, tmp_path / "vae.pt")
    with pytest.raises(CheckpointError, match="says num_resnet_blocks 1000000000; its weights have 2"):
        import_checkpoint(tmp_path / "vae.pt", tmp_path / "model")
    assert not (tmp_path / "model").exists()
