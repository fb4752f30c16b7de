"""Image tokenizers of DALLE-pytorch and OpenAI: shapes and options that the golden sets do not have."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dalle.errors import CheckpointError
from dalle.interop.convert import import_checkpoint
from dalle.vq.discrete_vae import DiscreteVAE
from dalle.vq.kinds import AnyImageTokenizer
from dalle.vq.vqgan import ImageTokenizer
from tests.support.golden import TOLERANCE, distance
from tests.support.interop_images import compare, ddconfig, discrete_vae, imported
from tests.support.references import VQGAN, OpenAIDVAE

HPARAMS: dict[str, dict[str, Any]] = {
    "no residual blocks": {"num_resnet_blocks": 0},
    "three residual blocks": {"num_resnet_blocks": 3},
    "one layer": {"num_layers": 1, "num_resnet_blocks": 1},
    "four layers, no blocks": {"num_layers": 4, "num_resnet_blocks": 0, "image_size": 32},
    "another range of pixels": {"normalization": ((0.4, 0.5, 0.6), (0.3, 0.2, 0.5))},
    "pixels as they are": {"normalization": None},
    "a range with a fourth channel": {"normalization": ((0.5, 0.5, 0.5, 0), (0.5, 0.5, 0.5, 1))},
    "a row as wide as a layer": {"codebook_dim": 20, "num_resnet_blocks": 0},
}


@pytest.mark.parametrize("inside", [False, True], ids=["vae.pt", "dalle.pt"])
@pytest.mark.parametrize("changes", HPARAMS.values(), ids=HPARAMS.keys())
def test_discrete_vaes_of_other_shapes(changes: dict[str, Any], inside: bool, tmp_path: Path) -> None:
    reference = discrete_vae(**changes)
    content: dict[str, Any] = {"hparams": reference.h, "weights": dict(reference.w)}
    if inside:
        weights = {f"vae.{name}": value for name, value in reference.w.items()}
        content = {"hparams": {"dim": 8}, "vae_params": reference.h, "weights": weights, "epoch": 1}
    torch.save(content, tmp_path / "model.pt")
    part = image_part(tmp_path / "model.pt", tmp_path / "model")
    images = torch.rand(2, 3, 16, 48)
    with torch.no_grad():
        assert isinstance(part, DiscreteVAE)
        logits = part.logits(2 * images - 1).permute(0, 3, 1, 2)
    assert distance(logits, reference.logits(images)) < TOLERANCE
    codes = part.encode(2 * images - 1)
    assert torch.equal(codes, reference.logits(images).argmax(1)) and len(codes.unique()) > 1
    mean, std = reference.affine()
    expected = (reference.decode(codes) * std + mean).clamp(0, 1)
    assert distance((part.decode(codes) + 1) / 2, expected) < TOLERANCE


def image_part(path: Path, out: Path) -> AnyImageTokenizer:
    """The image tokenizer of a file, without its decoder."""
    from dalle.interop import dalle_pytorch
    from dalle.interop.family import Source
    from dalle.vq.kinds import KINDS, kind_of

    part = dalle_pytorch._image_tokenizer(path, Source(path).torch(path), image_size=32)
    network = KINDS[kind_of(part.config)][1](part.config)  # type: ignore[arg-type]
    network.load_state_dict({name: tensor.load() for name, tensor in part.weights.items()})
    return network.eval()


@pytest.mark.parametrize("named", [True, False])
def test_image_tokenizers_that_dalle_pytorch_downloads(named: bool, tmp_path: Path) -> None:
    """dalle.pt with OpenAI's or taming-transformers' tokenizer: no parameters and, in older versions, no class name."""
    images = torch.rand(2, 3, 32, 32)
    dvae = OpenAIDVAE(n_hid=8, dec_hid=12, n_init=6, n_blk=1, dec_blk=2, vocab_size=40)
    weights = {}
    for name, value in dvae.w.items():
        side, _, rest = name.partition(".")
        leaf = "w" if rest.endswith("weight") else "b"
        weights[f"vae.{side[:3]}.{rest.rpartition('.')[0]}.{leaf}"] = value
    content: dict[str, Any] = {"hparams": {}, "vae_params": None, "weights": weights}
    content |= {"vae_class_name": "OpenAIDiscreteVAE"} if named else {}
    torch.save(content, tmp_path / "openai.pt")
    tokenizer = image_part(tmp_path / "openai.pt", tmp_path / "a")
    codes = dvae.logits(images).argmax(1)
    assert torch.equal(tokenizer.encode(2 * images - 1), codes)
    assert distance((tokenizer.decode(codes) + 1) / 2, dvae.decode(codes)) < TOLERANCE

    reference = VQGAN(ddconfig(ch_mult=[1, 1, 2], attn_resolutions=[4]), embed_dim=6, n_embed=50)
    weights = {f"vae.model.{name}": value for name, value in reference.w.items()}
    weights["vae.model.loss.logvar"] = torch.zeros(1)
    content = {"hparams": {}, "vae_params": None, "weights": weights}
    content |= {"vae_class_name": "VQGanVAE"} if named else {}
    torch.save(content, tmp_path / "vqgan.pt")
    tokenizer = image_part(tmp_path / "vqgan.pt", tmp_path / "b")
    assert isinstance(tokenizer, ImageTokenizer)
    compare(tokenizer, reference)


@pytest.fixture
def dall_e(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, Tensor]], nn.Module]:
    """A function that makes modules of OpenAI's classes by name, as a pickle of the project contains them."""
    classes = {"dall_e.encoder": "Encoder", "dall_e.decoder": "Decoder", "dall_e.utils": "Conv2d"}
    monkeypatch.setitem(sys.modules, "dall_e", types.ModuleType("dall_e"))
    for module, name in classes.items():
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        setattr(sys.modules[module], name, type(name, (nn.Module,), {"__module__": module}))

    def make(side: str, weights: dict[str, Tensor]) -> nn.Module:
        root: nn.Module = getattr(sys.modules[f"dall_e.{side}"], side.capitalize())()
        for name, value in weights.items():
            node = root
            *parents, leaf = name.split(".")
            for parent in parents:
                if parent not in dict(node.named_children()):
                    node.add_module(parent, sys.modules["dall_e.utils"].Conv2d())
                node = node.get_submodule(parent)
            node.register_parameter("w" if leaf == "weight" else "b", nn.Parameter(value))
        return root

    return make


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("kind", ["zip", "stream", "state_dict"])
def test_openai_dvae_of_another_shape(
    kind: str, tmp_path: Path, dall_e: Callable[[str, dict[str, Tensor]], nn.Module]
) -> None:
    reference = OpenAIDVAE(n_hid=12, dec_hid=8, n_init=10, n_blk=3, dec_blk=1, vocab_size=40)
    for side in ("encoder", "decoder"):
        weights = {name.removeprefix(f"{side}."): value for name, value in reference.w.items() if name.startswith(side)}
        module = dall_e(side, weights)
        content = module.state_dict() if kind == "state_dict" else module
        torch.save(content, tmp_path / f"{side}.pkl", _use_new_zipfile_serialization=kind != "stream")
    tokenizer, done = imported(tmp_path, tmp_path / "model")
    assert done.family == "openai-dvae"
    images = torch.rand(2, 3, 24, 40)
    codes = reference.logits(images).argmax(1)
    assert codes.shape == (2, 3, 5) and torch.equal(tokenizer.encode(2 * images - 1), codes)
    assert distance((tokenizer.decode(codes) + 1) / 2, reference.decode(codes)) < TOLERANCE


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("damage", ["no parameters", "a module within itself"])
def test_a_damaged_module_is_refused_with_a_message(
    damage: str, tmp_path: Path, dall_e: Callable[[str, dict[str, Tensor]], nn.Module]
) -> None:
    module = dall_e("encoder", {})
    if damage == "no parameters":
        module.__dict__["_parameters"] = None
    else:
        module.__dict__["_modules"]["own"] = module
    torch.save(module, tmp_path / "encoder.pkl")
    with pytest.raises(CheckpointError, match="is not a complete checkpoint of openai-dvae"):
        import_checkpoint(tmp_path, tmp_path / "ours")
