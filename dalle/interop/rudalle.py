"""ruDALL-E (ai-forever): the Gumbel VQGAN `vqgan.gumbelf8-sber.model.ckpt`, and its variant with a wavelet head.

Special: the variant's network is one level deeper in its names, its picture twice as large as the one it encodes, and
of two `post_quant_conv` the decoder's own is the one that is used.
"""

from pathlib import Path

from dalle.interop.family import Converted, Family, Source, state_dict, take
from dalle.interop.vqgan import described_vqgan, vqgan_part
from dalle.weights import LazyTensor, Part

__all__ = ["FAMILY"]

DEFAULT_IMAGE_SIZE = 256


def recognise(source: Source) -> str | None:
    for path in _image_tokenizers(source):
        return f"{path} is a VQGAN of ruDALL-E's"
    return None


def convert(source: Source) -> Converted:
    found = _image_tokenizers(source)
    # both may be there, for the same codes: the plain one draws pictures of the size it was trained on
    plain = [path for path in found if not _has_wavelets(source, path)]
    path = source.only(plain or found, "vqgan.gumbelf8-sber*.ckpt", "the image tokenizer")
    others = [str(other.name) for other in found if other != path]
    return Converted(
        image_tokenizer=_image_tokenizer(source, path),
        about={
            "licence": "code Apache-2.0; the published weights under the project's own terms, see its model cards",
            "project": "https://github.com/ai-forever/ru-dalle",
        },
        ignored=tuple(f"{name}: give its path to have it instead" for name in others),
        derived=("pixels: [-1, 1] in the network, as the project trains", "codes: the likeliest, without noise"),
    )


def _image_tokenizers(source: Source) -> list[Path]:
    return [
        path
        for path in source.find("*.ckpt")
        if _has_wavelets(source, path) or ("gumbelf8" in path.name and "quantize.proj.weight" in _weights(source, path))
    ]


def _weights(source: Source, path: Path) -> dict[str, LazyTensor]:
    content = source.torch(path)
    has_weights = isinstance(content, dict) and isinstance(content.get("state_dict"), dict)
    return state_dict(path, content, "state_dict") if has_weights else {}


def _has_wavelets(source: Source, path: Path) -> bool:
    return any(name.startswith("model.decoder.idwt.") for name in _weights(source, path))


def _image_tokenizer(source: Source, path: Path) -> Part:
    weights = _weights(source, path)
    if _has_wavelets(source, path):
        inside = take(weights, "model.")
        # decoder.decoder.* and decoder.post_quant_conv.* move up; the wavelets' own filters are known
        decoder = {name: value for name, value in take(inside, "decoder.").items() if not name.startswith("idwt.")}
        above = ("decoder.", "post_quant_conv.")
        weights = {name: value for name, value in inside.items() if not name.startswith(above)} | decoder
    configs = source.find("*gumbelf8*.yml", "*gumbelf8*.yaml")
    if source.path.is_file():
        configs = sorted(source.path.parent.glob("*gumbelf8*.y*ml"))
    if not configs:
        return vqgan_part(path, weights, image_size=DEFAULT_IMAGE_SIZE)
    params = (source.yaml(configs[0]).get("model") or {}).get("params") or {}
    described = {
        **(params.get("ddconfig") or {}),
        "embed_dim": params.get("embed_dim"),
        "n_embed": params.get("n_embed"),
    }
    return described_vqgan(path, weights, configs[0], described)


FAMILY = Family(
    name="rudalle",
    expects="vqgan.gumbelf8-sber.model.ckpt or its dwt variant, or a folder with it",
    recognise=recognise,
    convert=convert,
)
