"""The losses of a CLIP model: open_clip's numbers, several positives, and several processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.support.golden import distance, vectors
from tests.support.workers import ENVIRONMENT, LAUNCHER, SECONDS
from training.losses.contrastive import matches, sigmoid_loss, softmax_loss


def test_losses_are_those_of_open_clip() -> None:
    golden = vectors("open_clip", "loss.")
    cosines, own = golden["images"] @ golden["texts"].T, torch.eye(6, dtype=torch.bool)
    assert float(sigmoid_loss(10 * cosines - 10, own).mean()) == pytest.approx(float(golden["siglip"]), abs=1e-6)
    both = softmax_loss(14 * cosines, own).mean() + softmax_loss(14 * cosines.T, own).mean()
    assert float(both / 2) == pytest.approx(float(golden["clip"]), abs=1e-6)


def test_a_caption_fits_all_that_has_what_it_names() -> None:
    pictures = torch.tensor([[0, 0, 5], [0, 1, 5], [1, 0, 6]])  # thing, style, group
    captions = torch.tensor([[0, 0, -1], [0, -1, -1], [-1, 0, -1], [-1, -1, 6], [1, 1, -1]])
    assert matches(pictures, captions).T.tolist() == [
        [True, False, False],
        [True, True, False],
        [True, False, True],
        [False, False, True],
        [False, False, False],
    ]


def test_several_positives_are_averaged_by_softmax_and_summed_by_sigmoid() -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0]])
    positives = torch.tensor([[True, True, False]])
    log = logits.log_softmax(1)[0]
    assert float(softmax_loss(logits, positives)) == pytest.approx(float(-(log[0] + log[1]) / 2))
    expected = F.softplus(torch.tensor([-1.0, -2.0, -1.0])).sum()
    assert float(sigmoid_loss(logits, positives)) == pytest.approx(float(expected))


WORKER = """
import json, sys
from pathlib import Path
import torch
from tests.support.clips import small_clip, text_tokenizer
from training.distributed import current_share, data_parallel, joined, mean
from training.losses.contrastive import contrastive_loss
tokenizer = text_tokenizer()
out = {}
with joined():
    share = current_share()
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(6, 3, 16, 16, generator=generator) * 2 - 1
    ids = tokenizer.encode_batch(["a red panda", "a green heart", "two fish", "flag", "face", "blue fish in the sea"])
    labels = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 0, 2], [2, 1, 2], [2, 0, 2], [3, 0, 3]])
    named = labels.clone()
    named[:, 2] = -1
    named[1, 1] = named[4, 1] = -1  # two captions name no style
    for kind in ("sigmoid", "softmax"):
        network = small_clip(tokenizer, loss=kind)
        def loss(images, ids):
            vectors = network.embed_images(images), network.embed_texts(ids)
            return contrastive_loss(network, *vectors, labels, named, kind)
        averaging = data_parallel(loss, network)
        value = averaging(share.of(images), share.of(ids))
        value.backward()
        out[kind] = {"loss": float(mean(value))}
        out[kind] |= {name: p.grad.flatten().tolist() for name, p in network.named_parameters()}
    if share.leads:
        Path(sys.argv[1]).write_text(json.dumps(out))
"""


def test_processes_that_share_a_batch_have_the_loss_and_gradient_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["worker", str(tmp_path / "one.json")])
        exec(compile(WORKER, "worker", "exec"), {})  # in this process, which has imported everything
    command = [sys.executable, *LAUNCHER, "--nproc-per-node", "2", "--", str(tmp_path / "worker.py")]
    done = subprocess.run(
        [*command, str(tmp_path / "two.json")], env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    for kind in ("sigmoid", "softmax"):
        assert two[kind]["loss"] == pytest.approx(one[kind]["loss"], rel=1e-6)
        for name, values in one[kind].items():
            gradient, other = torch.tensor(values), torch.tensor(two[kind][name])
            assert distance(other, gradient) < 1e-6 * max(1.0, float(gradient.abs().max())), (kind, name)
        assert max(abs(value) for value in one[kind]["vision.patches.weight"]) > 1e-4
