"""The compiled step: the same codes as operation by operation, for every family, whatever is drawn beside."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dalle import DALLE
from dalle.cli import app
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


def set_times(found: CompiledModel, **milliseconds: float) -> None:
    file = found.folder / "about.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"milliseconds": milliseconds}))


def test_a_model_uses_the_step_that_was_compiled_for_it(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DALLE_CACHE", str(tmp_path))
    model = DALLE.load(model_folder)
    assert CompiledModel.find(model.digest, 8) is None
    assert new_engine(model, num_slots=8).step_kind == "eager"
    with pytest.raises(
        DalleError, match=rf"no step of lively is compiled for 8 slots.*`dalle compile {model_folder} --num-slots 8`"
    ):
        new_engine(model, num_slots=8, step="compiled")
    eager = [one.receipt for one in model.generate("a red panda", n=3, seed=1)]
    unused, used = "0" * 16, "1" * 16
    for name, days in ((unused, 31), (f".{unused}-half", 31), (used, 29), ("somebody else's", 31)):
        (tmp_path / "steps" / name).mkdir(parents=True)
        os.utime(tmp_path / "steps" / name, times=(time.time() - days * 24 * 3600,) * 2)
    found = compile_model(model, 8)
    assert {path.name for path in (tmp_path / "steps").iterdir()} == {used, "somebody else's", found.folder.name}
    assert found == CompiledModel.find(model.digest, 8)
    assert CompiledModel.find(model.digest, 4) is None
    assert new_engine(model, num_slots=8, step="compiled").step_kind == "compiled"
    assert new_engine(model, num_slots=8, step="eager").step_kind == "eager"
    assert new_engine(model, num_slots=8).step_kind == ("compiled" if found.is_faster else "eager")
    set_times(found, eager=2.0, compiled=1.0)
    model = DALLE.load(model_folder)
    compiled = [one.receipt for one in model.generate("a red panda", n=3, seed=1)]
    assert [one.codes for one in compiled] == [one.codes for one in eager]
    assert [one.step for one in (*eager, *compiled)] == ["eager"] * 3 + ["compiled"] * 3
    set_times(found, eager=1.0, compiled=2.0)
    assert new_engine(model, num_slots=8).step_kind == "eager"


@pytest.fixture(scope="module")
def whole_cache(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the compiled step of the model, for 8 slots."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALLE_CACHE", str(folder))
        found = compile_model(DALLE.load(model_folder), 8)
        set_times(found, eager=2.0, compiled=1.0)
    assert {path.name for path in found.folder.iterdir()} == {"about.json", "step.so", "window.so"}
    return folder


@pytest.fixture
def cached(whole_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the model's compiled step, in a cache of the test's own."""
    shutil.copytree(whole_cache, tmp_path / "cache")
    monkeypatch.setenv("DALLE_CACHE", str(tmp_path / "cache"))
    (folder,) = (tmp_path / "cache" / "steps").iterdir()
    return folder


@pytest.mark.parametrize(
    "damage", ["a missing library", "half a library", "an empty file of times", "other times", "no file of times"]
)
def test_a_damaged_step_counts_as_none(damage: str, cached: Path, model_folder: Path) -> None:
    library, about = cached / "step.so", cached / "about.json"
    match damage:
        case "a missing library":
            library.unlink()
        case "half a library":
            os.truncate(library, library.stat().st_size // 2)
        case "an empty file of times":
            about.write_text("")
        case "other times":
            about.write_text('{"eager": 1}')
        case "no file of times":
            about.unlink()
    model = DALLE.load(model_folder)
    assert CompiledModel.find(model.digest, 8) is None
    assert new_engine(model, num_slots=8).step_kind == "eager"
    with pytest.raises(DalleError, match="no step of lively is compiled"):
        new_engine(model, num_slots=8, step="compiled")


def test_a_step_that_cannot_be_loaded_is_left_out_with_a_warning_and_made_anew(
    cached: Path, model_folder: Path
) -> None:
    library = cached / "step.so"
    library.write_bytes(b"?" * library.stat().st_size)
    model = DALLE.load(model_folder)
    with pytest.warns(UserWarning, match=f"the compiled step in {cached} cannot be loaded"):
        assert new_engine(model, num_slots=8).step_kind == "eager"
    with pytest.raises(DalleError, match=f"cannot be loaded .*remove it, and run `dalle compile {model_folder}"):
        new_engine(model, num_slots=8, step="compiled")
    done = CliRunner().invoke(app, ["compile", str(model_folder), "--num-slots", "8"])
    assert done.exit_code == 0 and "compiling lively for 8 slots ..." in done.output
    assert new_engine(model, num_slots=8, step="compiled").step_kind == "compiled"


@pytest.mark.parametrize("change", ["in place", "replaced", "bfloat16"])
def test_changed_weights_are_drawn_with(change: str, cached: Path, model_folder: Path) -> None:
    """A compiled step has the weights of the model's directory."""
    model, plain = DALLE.load(model_folder), DALLE.load(model_folder)
    assert new_engine(model, num_slots=8).step_kind == "compiled"
    for decoder in (model.decoder, plain.decoder):
        weight = decoder.embedding.weight
        with torch.no_grad():
            if change == "in place":
                weight.mul_(-1)
            elif change == "replaced":
                weight.data = -weight.data
            else:
                decoder.bfloat16()
    engine = new_engine(model, num_slots=8)
    assert engine.step_kind == "eager"
    with pytest.raises(DalleError, match="cannot run a compiled step: its weights "):
        new_engine(model, num_slots=8, step="compiled")
    if change != "bfloat16":
        with pytest.raises(DalleError, match="its weights were changed after it was loaded"):
            compile_model(model, 8)
    drawn = [one.receipt.codes for one in model.generate("a red panda", n=3, seed=1)]
    request = [plain.request("a red panda", plain.sampling, seed=1, index=index) for index in range(3)]
    expected = Engine(plain.decoder, num_slots=8).run(request)
    assert drawn == [tuple(map(tuple, plain.decoder.layout.grid(one[None])[0].tolist())) for one in expected]


def test_a_full_disk_is_a_clear_error(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DALLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 2**40 - 10**6, 10**6))
    with pytest.raises(DalleError, match=r"compiling needs 5\d MB on the disk of .*, which has 1 free; .*DALLE_CACHE"):
        compile_model(DALLE.load(model_folder), 8)
    assert not any((tmp_path / "cache" / "steps").iterdir())


def test_without_a_compiler_the_message_says_so(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        DalleError, match=r"cannot compile the step of lively: there is no C\+\+ compiler 'no-such-compiler'"
    ):
        compile_model(DALLE.load(model_folder), 8)
