"""taming-transformers (CompVis): VQModel and GumbelVQ, a run's folder with `configs/*.yaml` and `checkpoints/*.ckpt`.

Special: checkpoints are Lightning's, with the loss's networks among the weights and a class of Lightning's as a key.
GumbelVQ's own `encode` draws codes with noise even in evaluation; here a code is the likeliest.
"""

from pathlib import Path

from dalle.errors import CheckpointError
from dalle.image_tokenizer import ImageTokenizerConfig
from dalle.interop.family import Converted, Family, Source, state_dict
from dalle.interop.vqgan import described_vqgan, drawing

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


def recognise(source: Source) -> str | None:
    for path in _configs(source):
        if "gumbelf8-sber" not in path.name:
            return f"{path} is for {_target(source, path)}"
    return None


def convert(source: Source) -> Converted:
    configs = _configs(source)
    if not configs:
        raise CheckpointError(f"{source.path} has no *.yaml with model.target taming.models.*, which tells the network")
    config_path = configs[-1]  # a run that was resumed has one for each start; the last holds
    target = _target(source, config_path)
    if not target.startswith("taming.models.vqgan."):
        raise CheckpointError(f"{config_path} is for {target}; of this project only image tokenizers are read")
    checkpoints = source.find("*.ckpt")
    last = [path for path in checkpoints if path.name == "last.ckpt"]
    if len(checkpoints) > 1 and len(last) == 1:
        checkpoints = last
    if len(checkpoints) != 1:
        raise CheckpointError(f"{source.path} has {len(checkpoints)} files *.ckpt; expected one, or one last.ckpt")
    (path,) = checkpoints
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
    if rest := sorted({*map(str, content)} - {"state_dict"}):
        ignored.append(f"state of training: {', '.join(rest)}")
    derived = ["pixels: [-1, 1], as the project trains"]
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
