"""Weighted epochs: the items of each batch, as a function of seed and step."""

import numpy as np
import pytest

from dalle.errors import DataError
from training.pairs import epochs as epochs_module
from training.pairs.epochs import WeightedEpochs


def batches(epochs: WeightedEpochs, steps: range) -> list[list[int]]:
    return [epochs.batch(step).tolist() for step in steps]


def test_an_epoch_has_every_item_once() -> None:
    epochs = WeightedEpochs(np.ones(10), batch_size=4, seed=0)
    drawn = np.concatenate([epochs.batch(step) for step in range(25)]).reshape(10, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in drawn.tolist()), "batches run on over the epochs' ends"
    assert len({tuple(epoch) for epoch in drawn.tolist()}) == 10, "each is shuffled anew"
    assert epochs.batch(0).dtype == np.int64


def test_weights_are_honoured_over_epochs() -> None:
    """An item of weight 1 is in every epoch once, of 0.3 in about three of ten, of 2.5 two or three times, of 0
    never."""
    epochs = WeightedEpochs(np.array([1.0, 0.3, 2.5, 0.0, 1.0]), batch_size=4, seed=3)
    drawn = np.concatenate([epochs.batch(step) for step in range(2000)])
    counts = (drawn[:, None] == np.arange(5)).cumsum(0)  # of each item, up to each place
    num_epochs = counts[:, 0]
    assert num_epochs[-1] > 1500
    assert (abs(counts[:, 4] - num_epochs) <= 1).all()
    assert (counts[:, 1] <= num_epochs + 1).all()
    assert (counts[:, 2] >= 2 * (num_epochs - 1)).all() and (counts[:, 2] <= 3 * (num_epochs + 1)).all()
    assert not counts[-1, 3]
    assert abs(counts[-1, 1] / num_epochs[-1] - 0.3) < 0.04
    assert abs(counts[-1, 2] / num_epochs[-1] - 2.5) < 0.04


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    weights = np.random.default_rng(0).random(50) * 3

    def new(seed: int = 1) -> WeightedEpochs:
        return WeightedEpochs(weights, batch_size=7, seed=seed)

    expected = batches(new(), range(60))
    assert [new().batch(step).tolist() for step in (59, 3, 40)] == [expected[step] for step in (59, 3, 40)]
    one = new()
    order = np.random.default_rng(1).permutation(60)
    assert all(one.batch(int(step)).tolist() == expected[step] for step in order), "in any order"
    assert batches(new(seed=2), range(60)) != expected
    assert all(len(batch) == 7 for batch in expected)


def test_a_batch_larger_than_an_epoch() -> None:
    epochs = WeightedEpochs(np.array([1.0, 1.0, 0.01]), batch_size=9, seed=0)
    assert np.bincount(np.concatenate([epochs.batch(step) for step in range(4)]))[:2].min() >= 17
    rare = WeightedEpochs(np.array([0.001]), batch_size=2, seed=0)
    assert rare.batch(1).tolist() == [0, 0], "most epochs are empty"


@pytest.mark.parametrize("weights", [np.ones(50), np.full(50, 2.0), np.random.default_rng(0).random(50) * 3])
@pytest.mark.parametrize("at_once", [7, 50])
def test_parts_of_the_items_give_the_order_of_all_at_once(
    weights: np.ndarray, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochs_module, "AT_ONCE", at_once)
    epochs = WeightedEpochs(weights.astype(np.float32), batch_size=40, seed=5)
    expected: list[int] = []
    for epoch in range(6):
        random = np.random.default_rng([5, epoch])
        times = np.floor(weights.astype(np.float32).astype(np.float64) + random.random(50)).astype(np.int64)
        order = np.repeat(np.arange(50), times)
        random.shuffle(order)
        expected += order.tolist()
    drawn = batches(epochs, range(5))
    assert [number for batch in drawn for number in batch] == expected[:200]
    late = WeightedEpochs(weights.astype(np.float32), batch_size=40, seed=5)
    assert late.batch(4).tolist() == drawn[4], "a run that resumes late"


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -0.1], [1.0, float("nan")], [1.0, float("inf")]])
def test_weights_that_make_no_epoch_are_refused(weights: list[float]) -> None:
    with pytest.raises(DataError, match="non-negative, with a positive and finite sum"):
        WeightedEpochs(np.array(weights), batch_size=1, seed=0)
