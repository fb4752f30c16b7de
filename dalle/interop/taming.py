"""Family `taming`: checkpoints of CompVis/taming-transformers.

Files: a run's folder with `configs/*.yaml` and `checkpoints/last.ckpt`, or a `.ckpt` with its configuration beside it.
Networks: the image tokenizers VQModel and GumbelVQ.
Not read: conditional Transformers (only image tokenizers are); `remap` (its table of codes is not in the checkpoint); a
`resolution` that is not a multiple of the pixels per code (the project truncates its grid and places attention
otherwise).

Checkpoints are Lightning's, with the networks of the loss among the weights and one of Lightning's classes as a key.
GumbelVQ's `encode` draws codes with noise even in evaluation; here `encode` returns the most likely code.
"""

import itertools
from pathlib import Path

from dalle.errors import CheckpointError
from dalle.interop.family import Converted, Family, Source, state_dict
from dalle.interop.vqgan import described_vqgan, inference_weights
from dalle.vq.vqgan import ImageTokenizerConfig

__all__ = ["FAMILY"]

LICENCE = "code MIT; the published weights have none: ask their authors"


def _configs(source: Source) -> list[Path]:
    """Configurations of taming-transformers' models in the source or, for a single checkpoint, in its run's folder."""
    found = source.find("*.yaml", "*.yml")
    if source.path.is_file():
        folder = source.path.parent
        found = [path for place in (folder, folder.parent / "configs") for path in sorted(place.glob("*.y*ml"))]
    return [path for path in found if _target(source, path).startswith("taming.models.")]


def _target(source: Source, path: Path) -> str:
    try:
        model = source.yaml(path).get("model")
    except CheckpointError:  # an unrelated YAML file
        return ""
    return str(model.get("target")) if isinstance(model, dict) else ""


def _checkpoints(source: Source) -> list[Path]:
    """Files of weights; only `last.ckpt` if a folder has several."""
    found = source.torch_files("*.ckpt") or source.find("*.pt", "*.pth")
    last = [path for path in found if path.name == "last.ckpt"]
    return last if len(last) == 1 else found


def _common_prefix_length(one: str, other: str) -> int:
    """The length of the longest common prefix of two names."""
    return len([*itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))])


def _config(source: Source) -> Path | None:
    """The configuration of the checkpoint. Among several in a folder of downloads it is the one whose name is most like
    the checkpoint's; a run that was resumed has one for each start, and the last is taken."""
    weights = _checkpoints(source)
    name = weights[0].name if len(weights) == 1 else ""
    return max(_configs(source), key=lambda config: (_common_prefix_length(config.name, name), config), default=None)


def _has_vqgan(source: Source, path: Path) -> bool:
    """Whether a file has the weights of a VQGAN, also as part of a conditional Transformer, which `convert` rejects."""
    content = source.torch(path)
    inside = content.get("state_dict", content) if isinstance(content, dict) else None
    return isinstance(inside, dict) and any(str(name).endswith("quant_conv.weight") for name in inside)


def recognise(source: Source) -> str | None:
    if source.path.is_file() and not any(_has_vqgan(source, path) for path in _checkpoints(source)):
        return None  # a configuration beside it is unrelated
    if (path := _config(source)) is None or "gumbelf8-sber" in path.name:
        return None
    return f"{path} is for {_target(source, path)}"


def lacks(source: Source) -> str | None:
    """The configuration, if there are weights of a VQGAN without one that can be read."""
    weights = [path for path in _checkpoints(source) if _has_vqgan(source, path)]
    if not weights:
        return None
    _config(source)
    for error in source.unreadable.values():
        return f"the configuration of {weights[0]} is missing, unless it is in a file that cannot be read: {error}"
    return (
        f"{weights[0]} has the weights of a VQGAN, but its configuration is missing: a *.yaml with model.target "
        "taming.models.*, beside it or in the folder configs of its run. A file of ruDALL-E under another name needs "
        "none, but --family rudalle"
    )


def convert(source: Source) -> Converted:
    config_path = _config(source)
    if config_path is None:
        raise CheckpointError(f"{source.path} has no *.yaml with model.target taming.models.* (the configuration)")
    checkpoints = _checkpoints(source)
    if len(checkpoints) != 1:
        raise CheckpointError(f"{source.path} has {len(checkpoints)} checkpoints; expected one, or one last.ckpt")
    (path,) = checkpoints
    target = _target(source, config_path)
    if not target.startswith("taming.models.vqgan."):
        raise CheckpointError(f"{config_path} is for {target}; only image tokenizers of this project are read")
    params = source.yaml(config_path)["model"].get("params") or {}
    if params.get("remap"):
        raise CheckpointError(f"{config_path} has remap, a table of codes beside the checkpoint, which is not read")
    content = source.torch(path)
    weights = state_dict(path, content, "state_dict")
    needed, beside = inference_weights(weights)
    described = {
        **(params.get("ddconfig") or {}),
        "embed_dim": params.get("embed_dim"),
        "n_embed": params.get("n_embed"),
    }
    part = described_vqgan(path, needed, config_path, described)
    ignored = [*beside]
    if "state_dict" in content and (rest := sorted({*map(str, content)} - {"state_dict"})):
        ignored.append(f"state of training: {', '.join(rest)}")
    derived = [f"configuration: {config_path.name}", "pixels: [-1, 1], as the project trains"]
    if isinstance(part.config, ImageTokenizerConfig) and part.config.quantizer == "gumbel":
        derived.append("codes: the most likely; the project's own encode adds Gumbel noise")
    return Converted(
        image_tokenizer=part,
        about={"licence": LICENCE, "project": "https://github.com/CompVis/taming-transformers"},
        ignored=tuple(ignored),
        derived=tuple(derived),
    )


FAMILY = Family(
    name="taming",
    expects="a run's folder with configs/*.yaml and checkpoints/last.ckpt",
    recognise=recognise,
    lacks=lacks,
    convert=convert,
)
