"""Decoders and text tokenizers of other projects: ids, logits and greedy codes equal those of the projects' own code,
also with the cache, in a batch, and after a round trip through a model directory."""

import argparse
import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import dalle
from dalle import DALLE, Features, SamplingParams
from dalle.checkpoint.store import describe_model
from dalle.decoder.conditions import condition_rows
from dalle.errors import CheckpointError, EngineError, ParameterError, PromptError
from dalle.interop.convert import import_checkpoint
from tests.support import golden
from tests.support.decoder_references import LlamaGen, MinDALLE
from tests.support.golden import TOLERANCE, distance
from tests.support.interop_decoders import (
    DATA,
    GREEDY,
    GUIDED_TOLERANCE,
    guided,
    load,
    same_probabilities,
    same_rows,
    text_logits,
)

# minDALL-E


@pytest.fixture(scope="module")
def mindalle(tmp_path_factory: pytest.TempPathFactory) -> DALLE:
    return load(tmp_path_factory, "minDALL-E/checkpoint")


def test_mindalle(mindalle: DALLE) -> None:
    same_rows(mindalle, json.loads((DATA / "minDALL-E/tokenizer.json").read_text())["prompts"])
    expected = golden.vectors("minDALL-E", "stage2.")
    text_ids, codes = expected["text_ids"], expected["image_tokens"]
    assert distance(mindalle.logits(text_ids, codes), expected["logits_img"]) < TOLERANCE
    assert distance(text_logits(mindalle, text_ids, codes), expected["logits_txt"]) < TOLERANCE
    greedy = mindalle.sample(list(text_ids), GREEDY)
    assert torch.equal(greedy.flatten(1), expected["greedy"])
    assert distance(mindalle.logits(text_ids, greedy), expected["greedy_logits"]) < TOLERANCE
    pixels = golden.vectors("minDALL-E")["greedy_pixels"]
    assert distance((mindalle.image_tokenizer.decode(greedy) + 1) / 2, pixels) < TOLERANCE
    same_probabilities(expected, expected["first_logits"])


def test_guidance_needs_a_model_that_was_trained_for_it(mindalle: DALLE) -> None:
    guided = SamplingParams(guidance_scale=2.0)
    with pytest.raises(ParameterError, match=r"guidance_scale is 2.0; this model was never trained without captions"):
        mindalle.generate("a cat", guided)
    with pytest.raises(ParameterError, match="never trained without captions"):
        mindalle.sample(torch.ones(16, dtype=torch.int64), guided)
    plain = mindalle.request("a cat", GREEDY, seed=0)
    with pytest.raises(EngineError, match="never trained without captions"):
        dalle.Engine(mindalle.decoder, num_slots=2).add(dataclasses.replace(plain, params=guided))


def test_a_foreign_model_draws_from_prompts_like_ours(mindalle: DALLE) -> None:
    together = list(mindalle.generate(["a cat", "a dog"], SamplingParams(top_k=32), n=2, seed=3))
    alone = next(mindalle.generate("a dog", SamplingParams(top_k=32), seed=3))
    assert alone.receipt == next(one.receipt for one in together if one.prompt == "a dog" and one.index == 0)
    assert alone.image.size == (32, 32)
    prefix = dalle.Prefix(image=alone.image, num_rows=4)
    kept = next(mindalle.generate("a cat", seed=3, prefix=prefix)).receipt
    assert torch.equal(torch.tensor(kept.codes)[:4], mindalle.encode(alone.image)[:4])


def test_mindalle_of_another_shape(tmp_path: Path) -> None:
    """No biases in attention, the quick GELU, a larger text vocabulary than the tokenizer's, and another grid."""
    shutil.copytree(DATA / "minDALL-E/checkpoint", tmp_path / "theirs")
    peer = MinDALLE(text=(400, 16), codes=(256, 25), width=20, depth=2, heads=5)
    torch.save({"state_dict": peer.w}, tmp_path / "theirs/stage2_last.ckpt")
    config = yaml.safe_load((tmp_path / "theirs/config.yaml").read_text())
    config["stage2"] = {
        "vocab_size_txt": 400,
        "vocab_size_img": 256,
        "hparams": {"embed_dim": 20, "n_layers": 2, "n_heads": 5, "ctx_len_img": 25, "ctx_len_txt": 16}
        | {"attn_bias": False, "mlp_bias": True, "gelu_use_approx": True},
    }
    (tmp_path / "theirs/config.yaml").write_text(yaml.safe_dump(config))
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    model = dalle.load(tmp_path / "ours", device="cpu")
    text_ids, codes = torch.randint(400, (2, 16)), torch.randint(256, (2, 25))
    text, image = peer.logits(text_ids, codes)
    assert distance(model.logits(text_ids, codes), image) < TOLERANCE
    assert distance(text_logits(model, text_ids, codes), text) < TOLERANCE
    assert model.image_size == (20, 20)


@pytest.mark.parametrize("file", ["stage2_last.ckpt", "tokenizer/bpe-16k-vocab.json", "tokenizer/bpe-16k-merges.txt"])
def test_a_missing_part_is_named(file: str, tmp_path: Path) -> None:
    shutil.copytree(DATA / "minDALL-E/checkpoint", tmp_path / "theirs")
    (tmp_path / "theirs" / file).unlink()
    with pytest.raises(CheckpointError, match=rf"has no {Path(file).name} \("):
        import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


# ruDALL-E


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_rudalle(version: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = load(tmp_path_factory, f"ru-dalle/Malevich_{version}")
    prompts = json.loads((DATA / "ru-dalle/tokenizer.json").read_text())["prompts"]
    same_rows(model, prompts)
    expected = golden.vectors("ru-dalle", f"Malevich_{version}.")
    same_as_rudalle(model, expected["input_ids"], expected["logits"])
    assert model.text_tokenizer is not None
    with warnings.catch_warnings(action="ignore"):
        rows = model.text_tokenizer.encode_batch([prompts[i]["text"] for i in (20, 0)], truncate=True)
    greedy = model.sample(rows, GREEDY)
    assert torch.equal(greedy.flatten(1), expected["greedy"])
    assert distance(model.logits(rows, greedy), expected["greedy_logits"]) < TOLERANCE
    pictures = (model.image_tokenizer.decode(greedy) + 1) / 2
    assert distance(pictures, expected["decoded_greedy"]) < TOLERANCE
    same_probabilities(expected, expected["first_logits"])


def same_as_rudalle(model: DALLE, ids: Tensor, logits: Tensor) -> None:
    """Logits over the whole vocabulary at every position are equal to those of the project's code."""
    config, layout = model.decoder.config, model.decoder.layout
    text_ids, codes = ids[:, : config.text_length], ids[:, config.text_length :]
    size, first = config.text_vocab_size, layout.first_code - 1
    images = logits[:, first : first + layout.num_codes, size:]
    assert distance(model.logits(text_ids, codes), images) < TOLERANCE
    assert distance(text_logits(model, text_ids, codes), logits[:, :first, :size]) < TOLERANCE


@pytest.mark.parametrize("name", ["big_v2", "plain_v3", "five_v3"])
def test_rudalle_of_other_shapes(name: str, tmp_path: Path) -> None:
    """Without a version in the file's name, the masks decide."""
    shutil.copytree(DATA / "options/ru-dalle" / name, tmp_path / "theirs")
    shutil.copy(DATA / "ru-dalle/tokenizer/bpe.model", tmp_path / "theirs")
    shutil.copy(DATA / "ru-dalle/vae/vqgan.gumbelf8-sber.model.ckpt", tmp_path / "theirs")
    description = tmp_path / "theirs/model_params.json"
    values = json.loads(description.read_text())
    description.write_text(json.dumps({"num_attention_heads": values["model_params"]["num_attention_heads"]}))
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    expected = load_file(tmp_path / "theirs/golden.safetensors")
    same_as_rudalle(dalle.load(tmp_path / "ours", device="cpu"), expected["ids"], expected["logits"])
    description.unlink()
    with pytest.raises(CheckpointError, match="does not say how many heads"):
        import_checkpoint(tmp_path / "theirs", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_rudalle_of_an_older_layout(tmp_path: Path) -> None:
    """Masks that the model itself has are read in half precision; options that change the network are rejected."""
    theirs = tmp_path / "theirs"
    shutil.copytree(DATA / "options/ru-dalle/plain_v3", theirs)
    shutil.copy(DATA / "ru-dalle/tokenizer/bpe.model", theirs)
    shutil.copy(DATA / "ru-dalle/vae/vqgan.gumbelf8-sber.model.ckpt", theirs)
    weights = torch.load(theirs / "pytorch_model.bin", weights_only=True)
    moved = {name.replace("transformer.", "") if "_mask" in name else name: value for name, value in weights.items()}
    assert {"row_mask", "col_mask", "conv_mask"} <= {*moved}
    torch.save({name: value.half() if "_mask" in name else value for name, value in moved.items()}, theirs / "a.bin")
    (theirs / "pytorch_model.bin").unlink()
    import_checkpoint(theirs, tmp_path / "ours")
    expected = load_file(theirs / "golden.safetensors")
    same_as_rudalle(dalle.load(tmp_path / "ours", device="cpu"), expected["ids"], expected["logits"])
    for option, value in {"custom_relax": True, "cogview_layernorm_prescale": True, "mlp_activation": "relu"}.items():
        described = json.loads((DATA / "options/ru-dalle/plain_v3/model_params.json").read_text())
        described["model_params"][option] = value
        (theirs / "model_params.json").write_text(json.dumps(described))
        with pytest.raises(CheckpointError, match=f"is described with {option} {value!r}"):
            import_checkpoint(theirs, tmp_path / "other")


# LlamaGen


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> DALLE:
    return load(tmp_path_factory, "LlamaGen/c2i_stage.pt")


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> DALLE:
    return load(tmp_path_factory, "LlamaGen/t2i_stage.pt")


LLAMAGEN_MODES = {
    "cfg1": GREEDY,
    "cfg": SamplingParams(temperature=0, guidance_scale=4.0),
    "cfg_interval": SamplingParams(temperature=0, guidance_scale=4.0, guided_codes=6 + 2),
}


def test_llamagen_of_classes(classes: DALLE) -> None:
    expected = golden.vectors("LlamaGen", "c2i.")
    labels = expected["labels"]
    for form in (labels, labels[:, None], labels.tolist(), list(labels)):
        assert distance(classes.logits(form, expected["image_tokens"]), expected["logits"]) < TOLERANCE
    for mode, params in LLAMAGEN_MODES.items():
        greedy = classes.sample(labels, params)
        assert torch.equal(greedy.flatten(1), expected[f"greedy_{mode}"])
        ends = guided(classes, labels, torch.full((3,), 10), greedy, params)[:, [0, -1]]
        assert distance(ends, expected[f"greedy_{mode}_first_last_logits"]) < GUIDED_TOLERANCE


def test_llamagen_of_another_shape(tmp_path: Path) -> None:
    """Fewer keys than queries, another base of the rotary positions, another grid."""
    (tmp_path / "theirs").mkdir()
    shutil.copy(DATA / "LlamaGen/vq_ds.pt", tmp_path / "theirs")
    peer = LlamaGen(num_classes=5, codes=(256, 3), width=48, depth=2, heads=6, kv_heads=2, base=500.0)
    torch.save({"model": peer.w}, tmp_path / "theirs/c2i_Z_384.pt")
    with pytest.raises(CheckpointError, match="does not say how many heads its 48 channels have"):
        import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    (tmp_path / "theirs/c2i_config.json").write_text(json.dumps({"n_head": 6, "block_size": 10**10}))
    with pytest.raises(CheckpointError, match=r"is said to draw 100000 x 100000 codes; the limit is 128"):
        import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    arguments = {"model_type": "c2i", "dim": 48, "n_layer": 2, "n_head": 6, "rope_base": 500, "block_size": 9}
    (tmp_path / "theirs/c2i_config.json").write_text(json.dumps(arguments))
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    model = dalle.load(tmp_path / "ours", device="cpu")
    labels, codes = torch.tensor([0, 4, 5]), torch.randint(256, (3, 9))
    assert distance(model.logits(labels, codes), peer.logits(labels, codes)) < TOLERANCE
    assert model.image_size == (6, 6)


def test_llamagen_in_a_folder_of_downloads(tmp_path: Path) -> None:
    """The image tokenizer named like the decoder is taken, the grid comes from the training program's arguments, and
    weights of two dtypes are combined."""
    (tmp_path / "theirs").mkdir()
    content = torch.load(DATA / "LlamaGen/vq_ds.pt", weights_only=True)
    torch.save(content, tmp_path / "theirs/vq_ds16_c2i.pt")
    content["model"]["decoder.conv_out.bias"] += 1
    torch.save(content, tmp_path / "theirs/vq_ds16_t2i.pt")
    del content["model"]["quantize.embedding.weight"]
    content["model"]["quantize.embedding.weight"] = torch.randn(17, 8)
    torch.save(content, tmp_path / "theirs/vq_c2i_small.pt")
    peer = LlamaGen(num_classes=5, codes=(256, 3), width=48, depth=2, heads=6, kv_heads=2, base=10000.0)
    peer.w["tok_embeddings.weight"] = peer.w["tok_embeddings.weight"].bfloat16().float()
    weights = peer.w | {"tok_embeddings.weight": peer.w["tok_embeddings.weight"].bfloat16()}
    arguments = argparse.Namespace(gpt_model="GPT-B", image_size=6, downsample_size=2, num_classes=5)
    trained = {"model": weights, "ema": peer.w, "optimizer": {}, "steps": 3, "args": arguments}
    torch.save(trained, tmp_path / "theirs/0300000.pt")
    (tmp_path / "theirs/config.json").write_text(json.dumps({"n_head": 6, "dim": 48, "n_layer": 2}))
    done = import_checkpoint(tmp_path / "theirs/0300000.pt", tmp_path / "ours")
    assert "state of training in 0300000.pt: args, ema, optimizer, steps" in done.converted.ignored
    model, plain = dalle.load(tmp_path / "ours", device="cpu"), load_image_tokenizer_of(tmp_path)
    labels, codes = torch.tensor([0, 4, 5]), torch.randint(256, (3, 9))
    assert distance(model.logits(labels, codes), peer.logits(labels, codes)) < TOLERANCE
    grid = codes.reshape(3, 3, 3)
    assert torch.equal(model.image_tokenizer.decode(grid), plain.image_tokenizer.decode(grid))


def load_image_tokenizer_of(folder: Path) -> DALLE:
    """The image tokenizer of LlamaGen's golden set alone."""
    import_checkpoint(DATA / "LlamaGen/vq_ds.pt", folder / "vq")
    return dalle.load(folder / "vq", device="cpu")


def test_the_kind_of_prompt_is_described(tmp_path: Path) -> None:
    for path, told in (
        ("LlamaGen/c2i_stage.pt", "prompt: a class, 0 to 9"),
        ("LlamaGen/t2i_stage.pt", "prompt: up to 6 tokens, with its text encoder"),
        ("DALLE-pytorch/dalle_full_shift.pt", "prompt: no text tokenizer: 12 text ids"),
        ("minDALL-E/checkpoint", "prompt: up to 16 tokens"),
    ):
        out = tmp_path / Path(path).stem
        import_checkpoint(DATA / path, out)
        assert told in describe_model(out).splitlines()[4]


def test_a_class_is_a_prompt(classes: DALLE) -> None:
    picture = next(classes.generate("7", LLAMAGEN_MODES["cfg"], seed=0))
    codes = classes.sample(7, LLAMAGEN_MODES["cfg"])[0]
    assert torch.equal(torch.tensor(picture.receipt.codes), codes)
    assert picture.prompt == "7"
    for prompt in ("10", "-1", "7.0", "a cat", "٣"):
        with pytest.raises(PromptError, match=r"this model draws classes: say a number in 0\.\.9"):
            classes.generate(prompt)
    text = classes.text_tokenizer
    assert text is not None
    assert (text.encode(" 7 ").tolist(), text.decode([7]), text.decode(text.null_ids)) == ([7], "7", "")


def test_llamagen_of_captions(captions: DALLE) -> None:
    expected = golden.vectors("LlamaGen", "t2i.")
    codes, mask = expected["image_tokens"], expected["emb_mask"]
    masked, unmasked = Features(values=expected["cond"], mask=mask), Features(values=expected["cond"])
    raw = Features(values=expected["caption_emb_raw"], mask=expected["emb_mask_raw"])
    pair = (expected["cond"], mask)
    each = [Features(values=values, mask=row) for values, row in zip(*pair, strict=True)]
    for features, name in (
        *((form, "logits_masked") for form in (masked, raw, pair, each)),
        (unmasked, "logits_causal"),
    ):
        assert distance(captions.logits(features, codes), expected[name]) < TOLERANCE
    assert captions.decoder.features is not None
    null_features = captions.decoder.features.null.detach().expand(3, -1, -1)

    def null_logits(codes: Tensor) -> Tensor:
        ids, _ = condition_rows(masked, captions.decoder.config)
        with torch.inference_mode():
            return captions.decoder.teacher_forced(ids, codes, null_features)[1]

    assert distance(null_logits(codes), expected["logits_uncond_masked"]) < TOLERANCE
    for mode, params in LLAMAGEN_MODES.items():
        greedy = captions.sample(raw, params)
        assert torch.equal(greedy.flatten(1), expected[f"greedy_{mode}"])
        scales = torch.tensor([params.guidance_at(place, 16) for place in range(16)])[:, None]
        null = null_logits(greedy)
        found = null + scales * (captions.logits(masked, greedy) - null)
        assert distance(found, expected[f"greedy_{mode}_logits"]) < GUIDED_TOLERANCE
    assert torch.equal(captions.sample(unmasked, LLAMAGEN_MODES["cfg"]).flatten(1), expected["greedy_cfg_nomask"])
    same_probabilities(expected, expected["greedy_cfg_logits"][:, 0])


def test_codes_from_features_do_not_depend_on_other_requests(captions: DALLE) -> None:
    expected = golden.vectors("LlamaGen", "t2i.")
    params = SamplingParams(guidance_scale=3.0, top_k=50)
    whole = captions.sample(Features(values=expected["cond"], mask=expected["emb_mask"]), params, seed=5)
    alone = captions.sample(Features(values=expected["cond"][0], mask=expected["emb_mask"][0]), params, seed=5)
    assert torch.equal(whole[:1], alone)


def test_conditions_of_another_form_are_refused(captions: DALLE, classes: DALLE, mindalle: DALLE) -> None:
    codes = torch.zeros(1, 16, dtype=torch.int64)
    wrong: list[tuple[DALLE, Any, str]] = [
        (captions, torch.zeros(1, 6, dtype=torch.int64), r"follows features \(..., 40\), not text ids"),
        (captions, Features(values=torch.zeros(7, 40)), r"shape \(7, 40\); expected \(B, 6, 40\)"),
        (captions, Features(values=torch.zeros(6, 40), mask=torch.ones(5)), r"the mask has shape \(5,\)"),
        (classes, Features(values=torch.zeros(6, 40)), "not features"),
        (classes, 11, r"ids in 11\.\.11; the limit is 10"),
        (mindalle, torch.zeros(1, 15, dtype=torch.int64), r"shape \(1, 15\); expected \(16,\)"),
        (mindalle, torch.zeros(1, 16), "whole numbers"),
    ]
    for model, condition, message in wrong:
        with pytest.raises(ParameterError, match=message):
            model.logits(condition, codes.new_zeros(1, model.num_codes))
    with pytest.raises(ParameterError, match="2 conditions for 3 rows"):
        classes.logits(torch.tensor([1, 2]), codes.expand(3, -1))
    with pytest.raises(ParameterError, match=r"codes of shape \(1, 15\)"):
        classes.logits(1, codes[:, 1:])
    with pytest.raises(ParameterError, match="this model has no text encoder: give its folder"):
        captions.generate("a cat")
