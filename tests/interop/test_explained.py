"""Explanations of pictures of models of other projects: their words, and rows of which nothing is lost."""

import shutil
from pathlib import Path

import pytest

from dalle import DALLE, SamplingParams
from dalle.explain.explanation import Explanation, explain
from dalle.interop.convert import import_checkpoint
from tests.support.golden import decoder_of
from tests.support.interop_decoders import DATA

PARAMS = SamplingParams(top_k=2)
GUIDED = SamplingParams(top_k=2, guidance_scale=3.0)


def explained(path: Path, out: Path, prompt: str, params: SamplingParams) -> Explanation:
    """The explanation of a drawn picture, after it is checked that weights and noise are those of the drawing."""
    import_checkpoint(path, out)
    model = DALLE.load(out, device="cpu")
    found = explain(model, next(model.generate(prompt, params, seed=3)).receipt)
    assert found.alternatives.agrees.all()
    text, earlier = found.attention.text.sum(-1), found.attention.patches
    for i in range(1, model.num_codes):
        text[..., i] += earlier[..., i * (i - 1) // 2 : i * (i + 1) // 2].sum(-1)
    assert (text - 1).abs().max() < 1e-5, "all that a patch attends to is in a column or an earlier patch"
    return found


@pytest.mark.parametrize(
    ("path", "prompt", "params", "words", "roles"),
    [
        ("minDALL-E/checkpoint", "a cat", PARAMS, ["a", "cat"], {"token", "padding"}),
        ("ru-dalle/Malevich_v2", "кот на окне", PARAMS, ["кот", "на", "окне"], {"begin", "token", "end", "padding"}),
        ("ru-dalle/Malevich_v3", "кот на", PARAMS, ["кот", "на"], {"begin", "token", "end", "padding"}),
        ("LlamaGen/c2i_stage.pt", "7", GUIDED, ["7"], {"token"}),
    ],
)
def test_models_of_other_projects(
    path: str, prompt: str, params: SamplingParams, words: list[str], roles: set[str], tmp_path: Path
) -> None:
    found = explained(DATA / path, tmp_path / "ours", prompt, params)
    assert found.words == words and {column.role for column in found.columns} == roles
    assert found.influence is not None and found.influence.shape == (len(found.alternatives.codes), len(words))


@pytest.mark.parametrize(
    ("file", "num_ids"), [("bpe_simple_tiny.txt", 815), ("hug_bytebpe.json", 400), ("yttm.model", 300)]
)
def test_text_tokenizers_of_dalle_pytorch(file: str, num_ids: int, tmp_path: Path) -> None:
    theirs = decoder_of(tmp_path / "theirs", num_ids)
    shutil.copy(DATA / "DALLE-pytorch/tokenizers" / file, theirs)
    found = explained(theirs, tmp_path / "ours", "a red car, old", GUIDED)
    assert found.words == ["a", "red", "car", ",", "old"]
    assert {column.role for column in found.columns} == {"begin", "token", "padding"}
