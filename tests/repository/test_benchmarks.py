"""The benchmark of decoding: every contender draws what it is timed for, and the limit counts bytes rightly."""

import pytest
import torch

from benchmarks.limits import Machine, step_work
from benchmarks.peers import PEERS, build
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder

CONFIG = DecoderConfig(
    text_vocab_size=60,
    text_length=5,
    codebook_size=2048,
    grid_height=4,
    grid_width=4,
    width=48,
    depth=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=24,
    mlp_width=64,
    qk_norm=False,
    text_head=False,
)


@pytest.mark.filterwarnings("default")  # of the peers, when they are imported and used
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", ["ours eager", *(name for name in PEERS if name != "transformers compiled")])
def test_a_contender_draws_the_codes_that_it_is_timed_for(name: str, guided: bool) -> None:
    try:
        contender = build(name, CONFIG, torch.float32)
    except ImportError as error:
        pytest.skip(f"{name} is not installed: {error}")
    texts = torch.randint(1, 60, (3, 5))
    with torch.inference_mode():
        for first, num_codes in ((0, 16), (0, 3), (7, 4), (12, 4)):
            codes, seconds = contender.draw(texts, guided=guided, first=first, num_codes=num_codes)
            assert codes.shape == (3, num_codes)
            assert 0 <= int(codes.min()) <= int(codes.max()) < CONFIG.codebook_size
            assert len(seconds) == num_codes and seconds == sorted(seconds) and seconds[0] > 0
            assert len({tuple(row) for row in codes.tolist()}) == 3, "pictures of one text are drawn independently"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_has_as_many_weights(name: str) -> None:
    """Linear layers are what a step reads and multiplies. DALLE-pytorch's head predicts text ids too."""
    try:
        peer = build(name, CONFIG, torch.float32)
    except ImportError as error:
        pytest.skip(f"{name} is not installed: {error}")
    ours, theirs = (
        sum(module.weight.numel() for module in network.modules() if isinstance(module, torch.nn.Linear))
        for network in (build("ours eager", CONFIG, torch.float32).network, peer.network)
    )
    text_ids = 64 + CONFIG.text_length if name == "dalle-pytorch" else 0
    assert theirs == ours + text_ids * CONFIG.width


def test_the_work_of_a_step_is_that_of_the_decoders_own_weights() -> None:
    decoder = Decoder(CONFIG)
    used = sum(weight.numel() for name, weight in decoder.named_parameters() if not name.startswith("embedding"))
    matrices = sum(
        weight.numel()
        for name, weight in decoder.named_parameters()
        if weight.ndim == 2 and not name.startswith("embedding")
    )
    work = step_work(CONFIG, num_rows=3, num_filled=10, itemsize=4)
    assert work.weight_bytes == 4 * (used + 3 * CONFIG.width)
    cache = decoder.new_cache(3)
    assert work.cache_bytes == cache.num_bytes * 10 / cache.padding.shape[1]
    assert work.operations == 2 * 3 * (matrices + 2 * CONFIG.depth * 48 * 10)
    assert step_work(CONFIG, num_rows=3, num_filled=10, itemsize=2).num_bytes == work.num_bytes / 2


def test_the_limit_is_the_slower_of_reading_and_multiplying() -> None:
    machine = Machine(reading={2**10: 1e6, 2**20: 1e5}, product=1e9)
    assert machine.bandwidth(100) == 1e6
    assert machine.bandwidth(2**15) == pytest.approx(5.5e5)
    assert machine.bandwidth(2**30) == 1e5
    work = step_work(CONFIG, num_rows=1, num_filled=10, itemsize=4)
    assert machine.step_seconds(work) == pytest.approx(work.num_bytes / machine.bandwidth(work.num_bytes))
    slow = Machine(reading={2**10: 1e15, 2**20: 1e15}, product=1e3)
    assert slow.best(machine) == Machine(reading=slow.reading, product=1e9)
    assert slow.step_seconds(work) == pytest.approx(work.operations / 1e3)
