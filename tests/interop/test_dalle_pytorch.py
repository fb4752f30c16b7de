"""DALLE-pytorch: its layers, options and types, and its three kinds of text tokenizers."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dalle
from dalle import DalleError, Features, SamplingParams
from dalle.errors import CheckpointError
from dalle.interop.convert import import_checkpoint
from tests.support import golden
from tests.support.decoder_references import DALLEPytorch
from tests.support.golden import TOLERANCE, decoder_of, distance
from tests.support.interop_decoders import DATA, GREEDY, GUIDED_TOLERANCE, guided, load, probabilities, text_logits

# DALLE-pytorch


@pytest.mark.parametrize("name", ["full_shift", "full_noshift", "sparse_shift"])
def test_dalle_pytorch(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = load(tmp_path_factory, f"DALLE-pytorch/dalle_{name}.pt")
    expected = golden.vectors("DALLE-pytorch", f"{name}.")
    text_ids, codes = expected["text"], expected["image_tokens"]
    logits = model.logits(text_ids, codes)
    assert distance(logits, expected["logits_image"]) < TOLERANCE
    assert distance(text_logits(model, text_ids, codes), expected["logits_text"]) < TOLERANCE
    greedy = model.sample(text_ids, GREEDY)
    assert torch.equal(greedy.flatten(1), expected["greedy"])
    assert distance(model.logits(text_ids, greedy), expected["greedy_logits"]) < TOLERANCE
    assert distance(model.image_tokenizer.decode(greedy), expected["greedy_image"].clamp(-1, 1)) < TOLERANCE
    if "primed_greedy" in expected:
        kept = model.image_tokenizer.encode(2 * golden.vectors("DALLE-pytorch", "vae.")["image"] - 1).flatten(1)
        kept[:, model.num_codes // 2 :] = -1
        primed = model.sample(text_ids[:2], GREEDY, kept=kept)
        assert torch.equal(primed.flatten(1), expected["primed_greedy"])
    if "first_logits_cond_scale3" in expected:
        first = guided(model, text_ids, model.decoder.layout.empty_ids, codes, SamplingParams(guidance_scale=3.0))[:, 0]
        assert distance(first, expected["first_logits_cond_scale3"]) < GUIDED_TOLERANCE
        kept_tokens = int((1 - 0.9) * 168)
        found = probabilities(logits[:, 0], temperature=0.8, top_k=kept_tokens)
        assert distance(found, expected["first_step_topk0.9_probs_t0.8"]) < TOLERANCE


@pytest.mark.parametrize("path", sorted((DATA / "options/dalle-pytorch").glob("*.pt")), ids=lambda path: path.stem)
def test_dalle_pytorch_of_other_shapes_and_options(path: Path, tmp_path: Path) -> None:
    import_checkpoint(path, tmp_path / "ours")
    model, expected = dalle.load(tmp_path / "ours", device="cpu"), load_file(path.with_suffix(".safetensors"))
    assert distance(model.logits(expected["text"], expected["codes"]), expected["logits"]) < TOLERANCE
    assert distance(text_logits(model, expected["text"], expected["codes"]), expected["text_logits"]) < TOLERANCE
    assert torch.equal(model.sample(expected["text"], GREEDY).flatten(1), expected["greedy"])


@pytest.mark.parametrize(
    ("name", "version", "window"),
    [
        ("wide_conv", "1.6.6", "convolution"),
        ("wide_conv", "1.5.0", "convolution"),
        ("wide_conv", "1.10.0", "convolution"),
        ("wide_conv", None, "convolution"),
        ("wide_conv", "1.4.2", "convolution_centered"),
        ("before_0.10", "0.14.3", "convolution_centered"),
        ("before_0.10", None, "convolution_centered"),
    ],
)
def test_windows_of_convolution_by_version(name: str, version: str | None, window: str, tmp_path: Path) -> None:
    """The windows changed in 1.5. A file without a version is older, or was assembled by hand from a newer one."""
    content = torch.load(DATA / f"options/dalle-pytorch/{name}.pt", weights_only=True) | {"version": version}
    torch.save(content, tmp_path / "dalle.pt")
    import_checkpoint(tmp_path / "dalle.pt", tmp_path / "ours")
    patterns = dalle.load(tmp_path / "ours", device="cpu").decoder.config.patterns
    assert [pattern for pattern in patterns if pattern.startswith("convolution")] == [window]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_with_a_wrapper_before_them(prefix: str, tmp_path: Path) -> None:
    """Prefixes in a state_dict from training on several devices or compiling; axial positions under newer names."""
    content = torch.load(DATA / "options/dalle-pytorch/plain_axial_pos.pt", weights_only=True)
    expected = load_file(DATA / "options/dalle-pytorch/plain_axial_pos.safetensors")
    names = {name: prefix + name.replace("pos_emb.weights_", "pos_emb.weights.") for name in content["weights"]}
    content["weights"] = {names[name]: value for name, value in content["weights"].items()}
    torch.save(content, tmp_path / "dalle.pt")
    llamagen = torch.load(DATA / "LlamaGen/t2i_stage.pt", weights_only=True)["model"]
    (tmp_path / "b").mkdir()
    torch.save({f"{prefix}{name}": value for name, value in llamagen.items()}, tmp_path / "b/t2i_stage.pt")
    for file in ("vq_ds.pt", "t2i_config.json"):
        shutil.copy(DATA / "LlamaGen" / file, tmp_path / "b")
    import_checkpoint(tmp_path / "dalle.pt", tmp_path / "one")
    import_checkpoint(tmp_path / "b", tmp_path / "two")
    one, two = (dalle.load(tmp_path / name, device="cpu") for name in ("one", "two"))
    assert distance(one.logits(expected["text"], expected["codes"]), expected["logits"]) < TOLERANCE
    expected = golden.vectors("LlamaGen", "t2i.")
    features = Features(values=expected["cond"], mask=expected["emb_mask"])
    assert distance(two.logits(features, expected["image_tokens"]), expected["logits_masked"]) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dalle_pytorch_of_other_types(dtype: torch.dtype, tmp_path: Path) -> None:
    """In half precision the angles of the rotary positions are rounded too, and the project uses them so."""
    content = torch.load(DATA / "DALLE-pytorch/dalle_full_noshift.pt", weights_only=True)
    content["weights"] = {name: value.to(dtype) for name, value in content["weights"].items()}
    torch.save(content, tmp_path / "dalle.pt")
    import_checkpoint(tmp_path / "dalle.pt", tmp_path / "ours")
    model, peer = dalle.load(tmp_path / "ours", device="cpu"), DALLEPytorch(content["hparams"], content["weights"])
    expected = golden.vectors("DALLE-pytorch", "full_noshift.")
    text_ids, codes = expected["text"], expected["image_tokens"]
    text, image = peer.logits(text_ids, codes)
    if dtype == torch.float32:
        assert distance(image, expected["logits_image"]) < TOLERANCE
    assert distance(model.logits(text_ids, codes), image) < TOLERANCE
    assert distance(text_logits(model, text_ids, codes), text) < TOLERANCE


TOKENIZERS = {
    "simple_tiny": ("bpe_simple_tiny.txt", 815),
    "hug": ("hug_bytebpe.json", 400),
    "yttm": ("yttm.model", 300),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_tokenizers_of_dalle_pytorch(name: str, tmp_path: Path) -> None:
    """Each tokenizer lies beside a decoder with as many text ids; it is saved with the model and loads unchanged."""
    file, num_ids = TOKENIZERS[name]
    theirs, prompts = decoder_of(tmp_path / "theirs", num_ids), prompts_of_dalle_pytorch()
    shutil.copy(DATA / "DALLE-pytorch/tokenizers" / file, theirs)
    import_checkpoint(theirs, tmp_path / "ours")
    text = dalle.load(tmp_path / "ours", device="cpu").text_tokenizer
    assert text is not None and text.text_length == 24
    assert [text.tokenize(prompt["text"]) for prompt in prompts] == [prompt[name] for prompt in prompts]
    if f"{name}_ctx24" in prompts[0]:
        with warnings.catch_warnings(action="ignore"):
            rows = [text.encode(prompt["text"], truncate=True).tolist() for prompt in prompts]
        assert rows == [prompt[f"{name}_ctx24"] for prompt in prompts]
    assert text.null_ids.tolist() == [0] * 24
    assert text.decode(text.encode("a red car")).strip() == "a red car"


def test_a_text_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    theirs = decoder_of(tmp_path / "theirs", 299)
    shutil.copy(DATA / "DALLE-pytorch/vae.pt", theirs)  # dalle.pt contains it
    shutil.copy(DATA / "DALLE-pytorch/tokenizers/yttm.model", theirs)
    with pytest.raises(
        CheckpointError, match=r"trained with 299 text ids, and no text tokenizer has that number: .*yttm.model 300"
    ):
        import_checkpoint(theirs, tmp_path / "ours")


def prompts_of_dalle_pytorch() -> list[dict[str, Any]]:
    prompts: list[dict[str, Any]] = json.loads((DATA / "DALLE-pytorch/tokenizer.json").read_text())["prompts"]
    assert len(prompts) == 30
    return prompts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hparams": {"reversible": True}}, "reversible layers, which are not read"),
        ({"hparams": {"attn_types": ("full", "sparse")}}, "attention of type 'sparse'"),
        ({"hparams": {"attn_types": ("mlp",)}}, "attention of type 'mlp'"),
        ({"hparams": {"num_text_tokens": 31}}, r"text embeddings; expected num_text_tokens and one .* before 0\.9"),
        ({"weights": {"transformer.extra": torch.zeros(1)}}, "transformer.extra, which no decoder"),
        ({"weights": {"to_logits.0.weight": torch.zeros(2, 2)}}, "to_logits.0.weight has shape"),
    ],
)
def test_unsupported_checkpoints_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = torch.load(DATA / "options/dalle-pytorch/plain_axial_pos.pt", weights_only=True)
    for key, values in change.items():
        content[key] |= values
    torch.save(content, tmp_path / "dalle.pt")
    with pytest.raises(DalleError, match=message):
        import_checkpoint(tmp_path / "dalle.pt", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
