"""The experiment on the best of n: choices among the same candidates, and how they are measured."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dalle.checkpoint.clip import save_clip
from dalle.errors import ConfigError
from tests.support.clips import small_clip, text_tokenizer
from training.experiments.best_of import BestOfOptions, Candidates, compare


def test_choices_and_measures_by_hand() -> None:
    scores = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.9, 0.1, 0.2, 0.3]])
    candidates = Candidates(
        scores={"clip": scores},
        num_codes=16,
        half_way=torch.tensor([[1.0, 2.0, 3.0, 0.0], [2.0, 1.0, 0.0, 3.0]]),
        ranks=torch.tensor([[0, 5, 2, 0], [4, 0, 0, 0]]),
        cosines=scores,
        nearest=scores > 0.25,
    )
    assert candidates.best("clip", 4).tolist() == [[1], [0]]
    assert candidates.best("clip", 2).tolist() == [[1, 3], [0, 3]]
    assert candidates.survivors(1).tolist() == [[True, True, True, False], [True, False, False, True]]
    assert candidates.survivors(4).all()
    assert candidates.best("clip", 4, torch.tensor([[True, False, True, True]] * 2)).tolist() == [[3], [0]]
    measured = candidates.measured(candidates.best("clip", 2))
    assert torch.allclose(measured, torch.tensor([[0.5, 0.5, 0.35, 1.0], [0.5, 1.0, 0.6, 1.0]], dtype=torch.float64))


@pytest.fixture
def options(shards: Path, model_folder: Path, tmp_path: Path) -> BestOfOptions:
    text = text_tokenizer()
    save_clip(tmp_path / "clip", name="small", network=small_clip(text), text_tokenizer=text)
    values: dict[str, Any] = {"shards": (str(shards),), "split": "train", "model": str(model_folder), "num": 5}
    return BestOfOptions(**values, clip=str(tmp_path / "clip"), best_of=4, out=str(tmp_path / "runs" / "best-of"))


@pytest.mark.filterwarnings("ignore:the prompt has")
def test_the_whole_experiment(options: BestOfOptions) -> None:
    text = compare(options)
    assert (Path(options.out) / "table.md").read_text() == text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line]
    cells = {(row[0], row[1]): row[2:] for row in rows}
    judges = ("likelihood", "likelihood gained by the caption", "clip", "the measure itself (an upper bound)")
    for judge in judges:
        assert len(cells[judge, "4"]) == 4
    single, upper = cells["nobody", "1"], cells["the measure itself (an upper bound)", "4"]
    assert float(single[0]) <= float(upper[0].split()[0]) and float(single[1]) <= float(upper[1].split()[0])
    # the best of CLIP has the largest mean cosine of all choices
    cosines = {key: float(row[2].split()[0]) for key, row in cells.items() if key[1] == "4"}
    assert max(cosines, key=lambda key: cosines[key]) == ("clip", "4")
    pruned = next(row for row in rows if row[0] == "1" and "of 4" in row[1])
    assert int(pruned[3]) == 16 >= int(pruned[4]) and 0 < float(pruned[2]) < 50

    kept = Path(options.out) / "codes.safetensors"
    before = kept.stat().st_mtime_ns
    assert compare(options) == text and kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best_of": 6}, "best_of is 6; it must be a power of 4, such as 16"),
        ({"num": 1}, "num is 1; it must be at least 2"),
    ],
)
def test_mistakes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BestOfOptions(**changes)


def test_a_split_that_is_not_there_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split is 'val_none'; the shards have train, val_combo, val_misc"):
        compare(BestOfOptions(shards=(str(shards),), split="val_none", out=str(tmp_path / "out")))
