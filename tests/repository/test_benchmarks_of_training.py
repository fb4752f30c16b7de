"""The benchmark of training: every contender trains, operations are counted rightly, and turns are compared."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training import HEADER, Options, Result, take_turns
from benchmarks.training_peers import OURS, PEERS, VQ_OURS, VQ_PEERS, build, random_rows
from benchmarks.training_steps import Case, row_work
from benchmarks.training_workers import Group, Trainee, Turn
from dalle.decoder.decoder import Decoder
from dalle.vq.vqgan import ImageTokenizerConfig
from tests.support.models import decoder_config
from training import decoder_presets, vq_presets
from training.decoder_config import DecoderTrainingConfig
from training.losses.prediction import prediction_losses
from training.vq_config import VQTrainingConfig

SHAPE = decoder_config(width=48, depth=2, num_heads=2, num_kv_heads=2, head_dim=24, mlp_width=64)
DECODER = Case(
    batch=4,
    at_once=2,
    decoder=DecoderTrainingConfig(model=SHAPE, loop=decoder_presets.tiny().loop, run="run"),
    grid_size=4,
    codebook_size=64,
)
SMALL = ImageTokenizerConfig(
    image_size=32, patch_size=4, widths=(8, 8), num_res_blocks=1, norm_groups=4, codebook_size=32, codebook_dim=4
)
VQ = Case(
    batch=4,
    at_once=4,
    vq=VQTrainingConfig(model=SMALL, loop=vq_presets.tiny().loop, run="run"),
)


@pytest.mark.filterwarnings("default")  # of the peers, when they are imported and used
@pytest.mark.parametrize(
    ("name", "case"),
    [(name, DECODER) for name in (*OURS, *PEERS) if not name.endswith("compiled")]
    + [(name, VQ) for name in (*VQ_OURS, *VQ_PEERS)],
)
def test_a_contender_trains_its_network(name: str, case: Case) -> None:
    try:
        contender = build(name, case, "float32")
    except ImportError as error:
        pytest.skip(f"{name} is not installed: {error}")
    trained = {key: p.detach().clone() for key, p in contender.network.named_parameters() if p.requires_grad}
    assert contender.step() > 0 and contender.step() > 0
    same = [key for key, p in contender.network.named_parameters() if key in trained and torch.equal(p, trained[key])]
    assert not same


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [name for name in PEERS if not name.endswith("compiled")])
def test_a_peer_multiplies_by_as_many_weights(name: str) -> None:
    """Linear layers are what a step multiplies by, heads over text ids and codes among them."""
    try:
        peer = build(name, DECODER, "float32").network
    except ImportError as error:
        pytest.skip(f"{name} is not installed: {error}")
    ours, theirs = (
        sum(module.weight.numel() for module in network.modules() if isinstance(module, torch.nn.Linear))
        for network in (build("ours", DECODER, "float32").network, peer)
    )
    assert theirs == ours


def test_the_work_of_a_row_is_what_torch_counts() -> None:
    """Written out as in bfloat16, attention has no kernel that torch counts in another way."""
    decoder, (text_ids, codes) = Decoder(DECODER.shape), random_rows(DECODER.shape)
    rows = text_ids[:3], codes[:3].unflatten(1, (4, 4)), codes[:3].unflatten(1, (4, 4))
    with FlopCounterMode(display=False) as counter:
        losses = prediction_losses(decoder, *rows, "bfloat16")
        (losses["text_loss"] + losses["image_loss"]).backward()
    assert counter.get_total_flops() == pytest.approx(3 * row_work(DECODER.shape), rel=1e-12)


def test_speeds_are_medians_of_ratios_within_a_turn() -> None:
    seconds = {"ours": [1.0, 2.0, 4.0], "slow": [4.0, 8.0, 16.0], "fast": [2.0, 2.0, 6.0]}
    result = Result(
        case="tiny",
        batch=8,
        precision="float32",
        turns={name: [Turn(step=one, peak_bytes=10**6, work=6e9) for one in times] for name, times in seconds.items()},
        failures={"absent": "ImportError"},
        notes={},
        rivals=["slow", "fast", "absent"],
        peak=10e9,
        steps=2,
    )
    assert result.best == "fast"
    assert [result.speed(name) for name in seconds] == [1.5, 0.375, 1.0]
    rows = result.rows()
    assert rows[0] == ["tiny", "float32", "8", "**ours**", "4.00", "2.000", "1.50", "0.30", "1", "3 x 2"]
    assert rows[-1][3:5] == ["absent", "left out: ImportError"]
    assert {len(row) for row in rows} == {len(HEADER)}


def test_processes_take_turns_and_two_share_a_batch() -> None:
    contenders: list[Trainee | Group] = [Trainee("ours", DECODER, "float32", 1), Group("ours", DECODER, "float32", 2)]
    options = Options(threads=1, turns=2, steps=1, keep_memory=False)
    result = take_turns("tiny", DECODER, "float32", contenders, ["ours, 2 workers"], options)
    assert not result.failures
    assert {name: len(turns) for name, turns in result.turns.items()} == {"ours": 2, "ours, 2 workers": 2}
    assert all(turn.step > 0 and turn.work == 4 * row_work(DECODER.shape) for turn in result.turns["ours"])
