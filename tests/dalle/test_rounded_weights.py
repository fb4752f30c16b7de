"""Rounded weights: bfloat16 and int8 in the linear layers of a decoder's steps."""

import random
import shutil
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
from dalle.receipt import Receipt
from dalle.steps import CompiledModel, compile_model, equal_codes, new_engine
from dalle.transformer.linear import RoundedLinear, Weights, inference_linear, why_not_rounded
from serving.engine.reproducibility import fingerprint
from serving.model_settings import ModelSettings
from tests.support.models import FAMILIES, lively_decoder
from tests.support.requests import fitted, request

pytestmark = pytest.mark.skipif(why_not_rounded(torch.zeros(1)) is not None, reason="no products in bfloat16")

KINDS: tuple[Weights, ...] = ("bfloat16", "int8")
SHAPES = [(64, 96), (320, 4096), (24, 50), (32, 7)]
"""Inputs and outputs of a layer; int8 products need multiples of 32 and 4, and the last two are in bfloat16."""


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize(("num_inputs", "num_outputs"), SHAPES)
def test_a_product_is_that_of_the_rounded_weight(weights: Weights, num_inputs: int, num_outputs: int) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(num_outputs, num_inputs) / num_inputs**0.5, torch.randn(num_outputs)
    is_int8 = weights == "int8" and num_inputs % 32 == 0 and num_outputs % 4 == 0
    rounded = weight.bfloat16().double()
    if is_int8:
        scales = (weight.abs().amax(1, keepdim=True) / 127).bfloat16().double()
        rounded = (weight / scales).round().clamp(-127, 127) * scales
        assert (rounded - weight).abs().max() < 0.006 * weight.abs().max()
    x = torch.randn(3, 5, num_inputs)
    expected = x.bfloat16().double() @ rounded.T + bias
    for pack in (True, False):
        layer = inference_linear(weight, bias, pack=pack, weights=weights)
        assert isinstance(layer, RoundedLinear)
        product = layer(x)
        assert product.dtype == torch.float32
        torch.testing.assert_close(product.double(), expected, rtol=0, atol=2**-8 * float(expected.abs().max()))


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("family", [{}, *FAMILIES.values()], ids=["ours", *FAMILIES])
def test_codes_are_the_same_alone_and_in_company(weights: Weights, family: dict[str, object]) -> None:
    torch.manual_seed(0)
    decoder = lively_decoder(**family)
    requests = [fitted(decoder, request(number)) for number in range(16)]

    def engine() -> Engine:
        return Engine(decoder, num_slots=4, step=Step(decoder, 4, weights=weights))

    alone = [engine().run([one])[0] for one in requests]
    order = random.Random(0).sample(range(16), 16)
    together = engine().run([requests[number] for number in order])
    assert all(torch.equal(codes, alone[number]) for number, codes in zip(order, together, strict=True))


@pytest.mark.parametrize("weights", KINDS)
def test_the_default_model_draws_nearly_all_codes(weights: Weights) -> None:
    share = equal_codes(DALLE.load(), weights)
    assert 0.93 < share < 1, share


@pytest.mark.parametrize("weights", KINDS)
def test_receipt_and_fingerprint_name_the_weights(
    weights: Weights, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DALLE_CACHE", str(tmp_path))
    model = DALLE.load(model_folder)
    assert new_engine(model, num_slots=4, weights=weights).step_kind == f"eager_{weights}"
    (picture,) = model.generate("a red panda", seed=1, weights=weights)
    assert picture.receipt.step == f"eager_{weights}"
    assert Receipt.from_text(picture.receipt.to_text()) == picture.receipt
    found = fingerprint(model, ModelSettings(path=str(model_folder), weights=weights), 1, f"eager_{weights}")
    assert found.startswith(f"fp_eager_{weights}_")


def test_weights_of_another_type_are_not_rounded(model_folder: Path) -> None:
    model = DALLE.load(model_folder)
    model.decoder.bfloat16()
    with pytest.raises(DalleError, match="cannot round the weights of lively to int8: the model is on cpu in bfloat16"):
        new_engine(model, num_slots=4, weights="int8")


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("weights", KINDS)
def test_a_compiled_step_has_the_logits_of_the_eager_one(weights: Weights, tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder: Decoder = lively_decoder()
    compile_step(decoder, 4, tmp_path, weights=weights)
    eager = Step(decoder, 4, weights=weights)
    compiled = CompiledStep(decoder, 4, tmp_path, weights=weights)
    plain = Step(decoder, 4)
    steps = plain, eager, compiled
    with torch.inference_mode():
        for step in steps:
            for slot in range(4):
                step.admit(fitted(decoder, request(slot, kept=None, params=SamplingParams())), [slot])
        length = len(eager.columns)
        for code in torch.randint(decoder.config.codebook_size, (decoder.layout.num_codes - 1, 4, 1)):
            exact, one, other = (step.forward(4, length, torch.arange(4))[0] for step in steps)
            scale = exact.abs().max()
            assert (one - other).abs().max() < 0.01 * scale
            assert 0 < (one - exact).abs().max() < 0.1 * scale
            for step in steps:
                step.ids[:] = code + decoder.layout.text_vocab_size
                step.positions += 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_model_uses_the_step_that_was_compiled_with_its_weights(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DALLE_CACHE", str(tmp_path))
    model = DALLE.load(model_folder)
    found = compile_model(model, 4, "int8")
    assert found == CompiledModel.find(model.digest, 4, "int8")
    assert CompiledModel.find(model.digest, 4) is None
    assert CompiledModel.find(model.digest, 4, "bfloat16") is None
    assert new_engine(model, num_slots=4, step="compiled", weights="int8").step_kind == "compiled_int8"
    with pytest.raises(DalleError, match=r"for 4 slots and bfloat16 weights.*--num-slots 4 --weights bfloat16`"):
        new_engine(model, num_slots=4, step="compiled", weights="bfloat16")
