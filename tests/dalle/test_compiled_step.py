"""The compiled step: the same codes as operation by operation, for every family, whatever is drawn beside."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from dalle import DALLE
from dalle.decoder.compiled_step import CompiledStep, compile_step
from dalle.decoder.decoder import Decoder
from dalle.decoder.engine import Engine
from dalle.decoder.sampling import SamplingParams
from dalle.decoder.step import Step
from dalle.errors import DalleError
from dalle.steps import CompiledModel, compile_model, new_engine
from tests.support.models import FAMILIES, lively_decoder
from tests.support.requests import draw_in_company, fitted, request

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")

VARIANTS: dict[str, dict[str, object]] = {
    "ours": {},
    "gpt-2": {"norm": "layernorm", "mlp": "gelu", "qk_norm": False, "qkv_bias": True, "output_bias": True}
    | {"mlp_bias": True, "head_bias": True, "num_kv_heads": 4, "attend_padding": True, "positions": "sinusoidal"},
    **{name: FAMILIES[name] for name in ("token shift", "features")},
}
"""Decoders that have every option between them: each is compiled, which takes a while."""


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=list(VARIANTS))
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Path]:
    torch.manual_seed(0)
    decoder = lively_decoder(**request.param)
    folder = tmp_path_factory.mktemp("compiled")
    compile_step(decoder, 4, folder)
    return decoder, folder


def test_codes_are_those_of_the_eager_step_alone_and_in_company(compiled: tuple[Decoder, Path]) -> None:
    decoder, folder = compiled
    requests = [fitted(decoder, request(number)) for number in range(16)]
    step = CompiledStep(decoder, 4, folder)
    expected = [Engine(decoder, num_slots=4).run([one])[0] for one in requests]
    assert all(
        torch.equal(Engine(decoder, num_slots=4, parallel=8, step=step).run([one])[0], codes)
        for one, codes in zip(requests, expected, strict=True)
    )
    for seed, parallel in enumerate((1, 8, 8)):
        drawn = draw_in_company(Engine(decoder, num_slots=4, parallel=parallel, step=step), requests, seed)
        assert len(drawn) > 8
        assert all(codes == expected[number].tolist() for number, codes in drawn.items())


@torch.inference_mode()
def test_logits_are_those_of_the_eager_step(compiled: tuple[Decoder, Path]) -> None:
    decoder, folder = compiled
    steps = Step(decoder, 4), CompiledStep(decoder, 4, folder)
    keys = torch.arange(4)
    for step in steps:
        for slot in range(4):
            step.admit(fitted(decoder, request(slot, kept=None, params=SamplingParams())), [slot])
    length, highest = len(steps[0].columns), decoder.layout.length - 1
    for code in torch.randint(decoder.config.codebook_size, (decoder.layout.num_codes, 4, 1)):
        logits, noise = zip(*(step.forward(4, length, keys) for step in steps), strict=True)
        assert (logits[0] - logits[1]).abs().max() < 1e-4
        assert (noise[0] - noise[1]).abs().max() < 1e-12
        for step in steps:
            step.ids[:] = code + decoder.layout.text_vocab_size
            step.positions += step.positions < highest


def test_the_default_model_draws_the_same_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several blocks of positions."""
    monkeypatch.setenv("DALLE_CACHE", str(tmp_path))
    model = DALLE.load()
    compile_model(model, 4)
    requests = [model.request("a red panda", model.sampling, seed=seed) for seed in range(5)]
    eager, compiled = (new_engine(model, num_slots=4, step=kind).run(requests) for kind in ("eager", "compiled"))
    assert all(map(torch.equal, eager, compiled))


def test_a_model_uses_the_step_that_was_compiled_for_it(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DALLE_CACHE", str(tmp_path))
    model = DALLE.load(model_folder)
    assert CompiledModel.find(model.digest, 8) is None
    assert new_engine(model, num_slots=8).step_kind == "eager"
    with pytest.raises(
        DalleError, match=r"no step of lively is compiled for 8 slots.*dalle compile lively --num-slots 8"
    ):
        new_engine(model, num_slots=8, step="compiled")
    eager = [one.receipt for one in model.generate("a red panda", n=3, seed=1)]
    for name, days in (("unused", 31), ("used", 29)):
        (tmp_path / "steps" / name).mkdir(parents=True)
        os.utime(tmp_path / "steps" / name, times=(time.time() - days * 24 * 3600,) * 2)
    found = compile_model(model, 8)
    assert {path.name for path in (tmp_path / "steps").iterdir()} == {"used", found.folder.name}
    assert found == CompiledModel.find(model.digest, 8)
    assert CompiledModel.find(model.digest, 4) is None
    assert new_engine(model, num_slots=8, step="compiled").step_kind == "compiled"
    assert new_engine(model, num_slots=8, step="eager").step_kind == "eager"
    assert new_engine(model, num_slots=8).step_kind == ("compiled" if found.is_faster else "eager")
    (found.folder / "times.json").write_text('{"eager": 2.0, "compiled": 1.0}')
    model = DALLE.load(model_folder)
    compiled = [one.receipt for one in model.generate("a red panda", n=3, seed=1)]
    assert [one.codes for one in compiled] == [one.codes for one in eager]
    assert [one.step for one in (*eager, *compiled)] == ["eager"] * 3 + ["compiled"] * 3
    (found.folder / "times.json").write_text('{"eager": 1.0, "compiled": 2.0}')
    assert new_engine(model, num_slots=8).step_kind == "eager"


def test_without_a_compiler_the_message_says_so(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DalleError, match=r"cannot compile the step of lively: there is no C\+\+ compiler"):
        compile_model(DALLE.load(model_folder), 8)
