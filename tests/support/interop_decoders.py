"""Comparisons of a decoder from another project: text ids, logits and probabilities."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dalle
from dalle import DALLE, SamplingParams
from dalle.decoder.sampling import FilterParams, filter_logits
from dalle.errors import PromptError
from dalle.interop.convert import import_checkpoint
from tests.support.golden import TOLERANCE, distance

GUIDED_TOLERANCE = 2e-4
GREEDY = SamplingParams(temperature=0)
DATA = Path(__file__).parents[1] / "data" / "golden"


def load(tmp_path_factory: pytest.TempPathFactory, path: str) -> DALLE:
    out = tmp_path_factory.mktemp("imported") / Path(path).stem
    import_checkpoint(DATA / path, out)
    return dalle.load(out, device="cpu")


def text_logits(model: DALLE, text_ids: Tensor, codes: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.decoder.teacher_forced(text_ids, codes)[0]


def probabilities(logits: Tensor, **params: Any) -> Tensor:
    columns = FilterParams.stack([SamplingParams(**params)] * len(logits), logits.device)
    return filter_logits(logits, columns).softmax(-1)


def params_of(name: str) -> dict[str, Any]:
    """The sampling parameters in a name such as probs_t0.8_k20_pNone."""
    temperature, top_k, top_p = (part[1:] for part in name.split("_")[-3:])
    return {
        "temperature": float(temperature),
        "top_k": 0 if top_k == "None" else int(top_k),
        "top_p": 1.0 if top_p == "None" else float(top_p),
    }


def same_rows(model: DALLE, prompts: list[dict[str, Any]]) -> None:
    """Check the ids of every prompt, truncated if there are too many, and that a long prompt is an error otherwise."""
    text = model.text_tokenizer
    assert text is not None and len(prompts) == 30
    with warnings.catch_warnings(action="ignore"):
        assert [text.encode(prompt["text"], truncate=True).tolist() for prompt in prompts] == [
            prompt["ids"] for prompt in prompts
        ]
    number = len(text.tokenize(prompts[-1]["text"]))
    assert number > text.max_tokens
    with pytest.raises(PromptError, match=f"the prompt has {number} tokens; the limit is {text.max_tokens}"):
        text.encode(prompts[-1]["text"])


def same_probabilities(expected: dict[str, Tensor], logits: Tensor) -> None:
    names = [name for name in expected if name.startswith("probs_")]
    assert len(names) >= 2
    for name in names:
        assert distance(probabilities(logits, **params_of(name)), expected[name]) < TOLERANCE


def guided(model: DALLE, condition: Any, null: Any, codes: Tensor, params: SamplingParams) -> Tensor:
    """Guided logits at each position, as sampling computes them."""
    conditional, unconditional = model.logits(condition, codes), model.logits(null, codes)
    scales = torch.tensor([params.guidance_at(place, model.num_codes) for place in range(model.num_codes)])
    return unconditional + scales[:, None] * (conditional - unconditional)
