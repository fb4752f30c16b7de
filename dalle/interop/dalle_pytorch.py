"""DALLE-pytorch (lucidrains): `vae.pt`, and the image tokenizer inside `dalle.pt`, of whichever kind it is.

Special: `dalle.pt` holds its image tokenizer with prefix `vae.`, a DiscreteVAE with its parameters in `vae_params`, or
one that DALLE-pytorch had downloaded: OpenAI's dVAE or taming-transformers' VQGAN, without parameters. Of these two the
sizes are read off the shapes. Each has pixels in a range of its own, which ends up as [-1, 1].
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dalle.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle.errors import CheckpointError
from dalle.interop.family import Converted, Family, Source, fit, state_dict, take
from dalle.interop.openai_dvae import dvae_part
from dalle.interop.vqgan import vqgan_part
from dalle.weights import LazyTensor, Part

__all__ = ["FAMILY", "names_of"]

DEFAULT_IMAGE_SIZE = 256
"""Of the image tokenizers that DALLE-pytorch downloads."""
TRAINING_ONLY = {"temperature", "straight_through", "reinmax", "kl_div_loss_weight", "smooth_l1_loss"}
"""Parameters of a DiscreteVAE that change nothing once it is trained."""


def recognise(source: Source) -> str | None:
    for path in _checkpoints(source):
        return f"{path} has hparams and weights"
    return None


def convert(source: Source) -> Converted:
    path = source.only(_checkpoints(source), "vae.pt or dalle.pt", "the model")
    content = source.torch(path)
    part = _image_tokenizer(path, content, image_size=DEFAULT_IMAGE_SIZE)
    ignored = sorted({*map(str, content)} & {"epoch", "opt_state", "scheduler_state"})
    return Converted(
        image_tokenizer=part,
        about={
            "licence": "code MIT; the project publishes no weights: ask whoever trained these",
            "project": "https://github.com/lucidrains/DALLE-pytorch",
        },
        ignored=(f"state of training: {', '.join(ignored)}",) if ignored else (),
    )


def _checkpoints(source: Source) -> list[Path]:
    return [
        path
        for path in source.find("*.pt", "*.pth")
        if isinstance(content := source.torch(path), dict) and {"hparams", "weights"} <= {*content}
    ]


def _image_tokenizer(path: Path, content: Mapping[str, Any], *, image_size: int) -> Part:
    """That of `vae.pt` or `dalle.pt`. `image_size` is for kinds that do not say it themselves."""
    weights = state_dict(path, content, "weights")
    if "vae_params" not in content:
        return _discrete_vae(path, content["hparams"], weights)
    inside = take(weights, "vae.")
    kind = content.get("vae_class_name", "DiscreteVAE")
    if kind == "DiscreteVAE":
        return _discrete_vae(path, content["vae_params"], inside)
    if kind == "OpenAIDiscreteVAE":
        halves = {"enc.": "encoder.", "dec.": "decoder."}
        named = {long + name: value for short, long in halves.items() for name, value in take(inside, short).items()}
        return dvae_part(path, named, image_size=image_size)
    if kind == "VQGanVAE":
        needed = {name: value for name, value in take(inside, "model.").items() if not name.startswith("loss.")}
        return vqgan_part(path, needed, image_size=image_size)
    raise CheckpointError(
        f"{path} has an image tokenizer of class {kind!r}; known are DiscreteVAE, OpenAIDiscreteVAE, VQGanVAE"
    )


def _discrete_vae(path: Path, params: Any, weights: Mapping[str, LazyTensor]) -> Part:
    if not isinstance(params, dict):
        raise CheckpointError(f"{path} has no parameters of its DiscreteVAE")
    known = {
        "image_size": "image_size",
        "num_layers": "num_layers",
        "num_tokens": "codebook_size",
        "codebook_dim": "codebook_dim",
        "hidden_dim": "width",
        "num_resnet_blocks": "num_res_blocks",
    }
    unknown = {*params} - {*known, *TRAINING_ONLY, "channels", "normalization"}
    if unknown or params.get("channels", 3) != 3:
        found = f"{', '.join(sorted(unknown))}" if unknown else f"{params['channels']} channels"
        raise CheckpointError(f"{path} has a DiscreteVAE with {found}, which is not known here")
    values: dict[str, Any] = {ours: params[theirs] for theirs, ours in known.items() if theirs in params}
    if "normalization" in params:
        mean, std = params["normalization"] or ((0.0,) * 3, (1.0,) * 3)
        values |= {"pixel_mean": [*mean][:3], "pixel_std": [*std][:3]}
    config = DiscreteVAEConfig.from_dict(values)
    num_blocks = sum(name.startswith("encoder.") and name.endswith(".net.0.weight") for name in weights)
    if config.num_res_blocks != num_blocks:
        raise CheckpointError(f"{path} says num_resnet_blocks {config.num_res_blocks}; its weights have {num_blocks}")
    return fit(path, DiscreteVAE, config, weights, names_of(config))


def names_of(config: DiscreteVAEConfig) -> dict[str, str]:
    """Our names -> theirs."""
    num_layers, num_res = config.num_layers, config.num_res_blocks
    enter = 1 if num_res else 0
    modules = {
        f"encoder.{2 * num_layers + num_res}": f"encoder.{num_layers + num_res}",
        f"decoder.{enter + num_res + 2 * num_layers}": f"decoder.{enter + num_res + num_layers}",
    }
    if enter:
        modules["decoder.0"] = "decoder.0"
    for i in range(num_layers):
        modules[f"encoder.{2 * i}"] = f"encoder.{i}.0"
        modules[f"decoder.{enter + num_res + 2 * i}"] = f"decoder.{enter + num_res + i}.0"
    for i in range(num_res):
        for j in range(3):
            modules[f"encoder.{2 * num_layers + i}.conv{j + 1}"] = f"encoder.{num_layers + i}.net.{2 * j}"
            modules[f"decoder.{enter + i}.conv{j + 1}"] = f"decoder.{enter + i}.net.{2 * j}"
    names = {f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in modules.items() for leaf in ("weight", "bias")}
    return names | {"codebook": "codebook.weight"}


FAMILY = Family(
    name="dalle-pytorch",
    expects="vae.pt or dalle.pt, or a folder with one of them",
    recognise=recognise,
    convert=convert,
)
