"""taming-transformers (CompVis): VQModel and GumbelVQ, a run's folder with `configs/*.yaml` and `checkpoints/*.ckpt`.

Special: checkpoints are Lightning's, with the loss's networks among the weights and a class of Lightning's as a key.
GumbelVQ's own `encode` draws codes with noise even in evaluation; here a code is the likeliest.
"""

import itertools
from pathlib import Path

from dalle.errors import CheckpointError
from dalle.interop.family import Converted, Family, Source, state_dict
from dalle.interop.vqgan import described_vqgan, drawing
from dalle.vq.vqgan import ImageTokenizerConfig

__all__ = ["FAMILY"]

LICENCE = "code MIT; the published weights have none: ask their authors"


def _configs(source: Source) -> list[Path]:
    """Configurations of a model of taming-transformers; for a checkpoint alone, those that lie with its run."""
    found = source.find("*.yaml", "*.yml")
    if source.path.is_file():
        folder = source.path.parent
        found = [path for place in (folder, folder.parent / "configs") for path in sorted(place.glob("*.y*ml"))]
    return [path for path in found if _target(source, path).startswith("taming.models.")]


def _target(source: Source, path: Path) -> str:
    try:
        model = source.yaml(path).get("model")
    except CheckpointError:  # a yaml file of something else
        return ""
    return str(model.get("target")) if isinstance(model, dict) else ""


def _checkpoints(source: Source) -> list[Path]:
    """The weights; of a folder's, if there are several, those of the last step."""
    found = source.torch_files("*.ckpt") or source.find("*.pt", "*.pth")
    last = [path for path in found if path.name == "last.ckpt"]
    return last if len(last) == 1 else found


def _alike(one: str, other: str) -> int:
    """With how many of the same characters two names begin."""
    return len([*itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))])


def _config(source: Source) -> Path | None:
    """Of several, as they lie together in a folder of downloads, the one that is named like the weights; a run that was
    resumed has one for each start, and the last holds."""
    weights = _checkpoints(source)
    name = weights[0].name if len(weights) == 1 else ""
    return max(_configs(source), key=lambda config: (_alike(config.name, name), config), default=None)


def _of_vqgan(source: Source, path: Path) -> bool:
    """Also of one that a conditional Transformer has in it, which is refused later and told so."""
    content = source.torch(path)
    inside = content.get("state_dict", content) if isinstance(content, dict) else None
    return isinstance(inside, dict) and any(str(name).endswith("quant_conv.weight") for name in inside)


def recognise(source: Source) -> str | None:
    if source.path.is_file() and not any(_of_vqgan(source, path) for path in _checkpoints(source)):
        return None  # whatever lies beside it
    if (path := _config(source)) is None or "gumbelf8-sber" in path.name:
        return None
    return f"{path} is for {_target(source, path)}"


def convert(source: Source) -> Converted:
    config_path = _config(source)
    if config_path is None:
        raise CheckpointError(f"{source.path} has no *.yaml with model.target taming.models.*, which tells the network")
    checkpoints = _checkpoints(source)
    if len(checkpoints) != 1:
        raise CheckpointError(f"{source.path} has {len(checkpoints)} checkpoints; expected one, or one last.ckpt")
    (path,) = checkpoints
    target = _target(source, config_path)
    if not target.startswith("taming.models.vqgan."):
        raise CheckpointError(f"{config_path} is for {target}; of this project only image tokenizers are read")
    params = source.yaml(config_path)["model"].get("params") or {}
    if params.get("remap"):
        raise CheckpointError(f"{config_path} has remap, a table of codes beside the checkpoint, which is not read")
    content = source.torch(path)
    weights = state_dict(path, content, "state_dict")
    needed, beside = drawing(weights)
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
        derived.append("codes: the likeliest; the project's own encode adds Gumbel noise")
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
    convert=convert,
)
