"""Quantizers: encode and decode are inverses on the codebook, gradients, moving averages and restarted vectors."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.vq.quantize import CodebookAverage, Quantized, VectorQuantizer, codebook_statistics

NORMALIZED = pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])


def quantizer(codebook: Tensor, *, normalize: bool) -> VectorQuantizer:
    made = VectorQuantizer(*codebook.shape, normalize=normalize)
    made.codebook.data.copy_(codebook)
    return made


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def gradient(of: Tensor) -> Tensor:
    assert of.grad is not None
    return of.grad


@NORMALIZED
@pytest.mark.parametrize(("size", "dim"), [(2, 1), (100, 3), (4096, 16)])
def test_encode_inverts_decode_on_every_code(size: int, dim: int, normalize: bool) -> None:
    codebook = torch.randn(size, dim)
    if dim == 1:
        codebook = torch.tensor([[-0.3], [2.0]])  # in one dimension only two vectors have unit length
    codes = torch.randperm(size).reshape(2, -1)
    vectors = quantizer(codebook, normalize=normalize).decode(codes)
    assert vectors.shape == (*codes.shape, dim)
    assert torch.equal(quantizer(codebook, normalize=normalize).encode(vectors), codes)
    lengths = vectors.norm(dim=-1)
    assert (lengths - 1).abs().max() < 1e-6 if normalize else torch.equal(vectors, codebook[codes])


def test_the_tiny_vectors_of_a_new_codebook_are_distinguished() -> None:
    new = VectorQuantizer(512, 8, normalize=False)
    assert new.codebook.abs().max() <= 1 / 512
    assert torch.equal(new.encode(new.decode(torch.arange(512))), torch.arange(512))


@NORMALIZED
def test_encode_finds_the_nearest_vector(normalize: bool) -> None:
    codebook, latents = torch.randn(300, 5), 3 * torch.randn(2, 7, 11, 5)
    codes = quantizer(codebook, normalize=normalize).encode(latents)
    assert codes.shape == (2, 7, 11) and codes.dtype == torch.int64
    codebook, latents = codebook.double(), latents.double()
    if normalize:
        codebook, latents = F.normalize(codebook, dim=-1), F.normalize(latents, dim=-1)
    distances = (latents[..., None, :] - codebook).square().sum(-1)
    chosen = distances.gather(-1, codes[..., None])[..., 0]
    assert (chosen - distances.min(-1).values).max() < 1e-5
    assert (codes == distances.argmin(-1)).float().mean() > 0.99


def test_normalized_search_is_by_direction_alone() -> None:
    made = quantizer(torch.tensor([[100.0, 0.0], [0.0, 0.01]]), normalize=True)
    assert made.encode(torch.tensor([[0.01, 0.02], [5.0, 4.0]])).tolist() == [1, 0]
    made.normalize = False
    assert made.encode(torch.tensor([[0.01, 0.02], [5.0, 4.0]])).tolist() == [1, 1]


def test_the_lowest_index_of_equals_is_chosen() -> None:
    """Latents and codebook vectors of whole numbers, so that equal distances are equal in floating point too."""
    codebook = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
    latents = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [-1.0, 1.0], [5.0, 0.0]])
    assert quantizer(codebook, normalize=False).encode(latents).tolist() == [1, 1, 2, 2, 1]


@NORMALIZED
def test_gradient_goes_straight_through_to_the_latents(normalize: bool) -> None:
    made = quantizer(torch.randn(20, 4), normalize=normalize)
    latents, pull = torch.randn(3, 5, 4, requires_grad=True), torch.randn(3, 5, 4)
    quantized = made(latents)
    assert torch.equal(quantized.codes, made.encode(latents))
    assert (quantized.vectors - made.decode(quantized.codes)).abs().max() < 1e-6
    (quantized.vectors * pull).sum().backward()
    assert made.codebook.grad is None or not made.codebook.grad.any()
    if not normalize:
        assert torch.equal(gradient(latents), pull)
        return
    twin = latents.detach().clone().requires_grad_()
    (F.normalize(twin, dim=-1) * pull).sum().backward()
    assert (gradient(latents) - gradient(twin)).abs().max() < 1e-6
    assert (gradient(latents) * latents).sum(-1).abs().max() < 1e-5, "the length of a latent has no effect"


def test_commitment_pulls_the_latents_and_the_codebook_loss_pulls_the_codebook() -> None:
    codebook = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 9.0]])
    latents = torch.tensor([[1.0, 0.0], [3.0, 1.0], [5.0, 0.0], [0.0, -1.0]], requires_grad=True)
    made = quantizer(codebook, normalize=False)
    quantized = made(latents)
    assert quantized.codes.tolist() == [0, 1, 1, 0]
    offsets = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
    mean_square = offsets.square().mean().item()
    assert quantized.commitment_loss.item() == quantized.codebook_loss.item() == mean_square == 5 / 8

    quantized.commitment_loss.backward()
    assert made.codebook.grad is None
    assert torch.allclose(gradient(latents), 2 * offsets / 8)
    latents.grad = None
    quantized.codebook_loss.backward()
    assert latents.grad is None
    expected = torch.tensor([[-1.0, 1.0], [0.0, -1.0], [0.0, 0.0]]) * 2 / 8  # the sum of minus the offsets of each code
    assert torch.allclose(gradient(made.codebook), expected)


def test_one_update_by_hand() -> None:
    made = quantizer(torch.tensor([[0.0], [10.0]]), normalize=False)
    average = CodebookAverage(made, decay=0.75, restart_below=0.0)
    latents = torch.tensor([[1.0], [2.0], [3.0], [8.0]])  # three for code 0, one for code 1; an equal share is two
    assert average.update(made, made(latents), generator()) == 0
    assert average.counts.tolist() == [0.75 + 0.25 * 1.5, 0.75 + 0.25 * 0.5]
    assert average.sums.tolist() == [[0.25 * 6 / 2], [0.75 * 10 + 0.25 * 8 / 2]]
    assert torch.allclose(made.codebook.data, torch.tensor([[0.75 / 1.125], [8.5 / 0.875]]))


@NORMALIZED
def test_moving_averages_converge_to_the_means_of_clusters(normalize: bool) -> None:
    centers = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0], [-4.0, 0.0, 0.0]])
    sizes = torch.tensor([0.1, 0.2, 0.3, 0.4])
    made = quantizer(centers + torch.tensor([1.0, -1.0, 0.5]), normalize=normalize)
    average = CodebookAverage(made, decay=0.95, restart_below=0.05)
    for _ in range(200):
        drawn = torch.multinomial(sizes, 400, replacement=True)
        quantized = made(centers[drawn] + 0.3 * torch.randn(400, 3))
        assert average.update(made, quantized, generator()) == 0
    expected = F.normalize(centers, dim=-1) if normalize else centers
    assert (made.codebook.data - expected).abs().max() < 0.02
    assert (average.counts / 4 - sizes).abs().max() < 0.02


def test_dead_vectors_restart_from_latents_of_the_batch() -> None:
    made = quantizer(torch.cat([torch.zeros(1, 2), torch.full((7, 2), 50.0)]), normalize=False)
    average = CodebookAverage(made, decay=0.5, restart_below=0.3)
    first, second = torch.randn(40, 2), torch.randn(40, 2)
    assert average.update(made, made(first), generator()) == 0, "half an equal share is left, more than 0.3"
    assert torch.equal(made.codebook.data[1:], torch.full((7, 2), 50.0))
    assert average.update(made, made(second), generator()) == 7, "a quarter is left"
    restarted = made.codebook.data[1:]
    assert (restarted[:, None] == second[None]).all(-1).any(-1).all()
    assert len(restarted.unique(dim=0)) == 7
    assert torch.equal(average.counts[1:], torch.ones(7))
    assert average.update(made, made(second), generator()) == 0, "a restarted vector has time to find use"


def test_no_more_vectors_restart_than_there_are_latents() -> None:
    made = quantizer(torch.cat([torch.zeros(1, 2), torch.full((30, 2), 50.0)]), normalize=False)
    average = CodebookAverage(made, decay=0.01, restart_below=0.5)
    latents = torch.randn(4, 2)
    assert average.update(made, made(latents), generator()) == 4
    changed = (made.codebook.data[1:] != 50.0).all(-1)
    assert sorted(made.codebook.data[1:][changed].tolist()) == sorted(latents.tolist())


@NORMALIZED
@pytest.mark.parametrize("num_latents", [8, 20_000])
def test_a_trained_codebook_survives_small_and_large_batches(num_latents: int, normalize: bool) -> None:
    """Training that starts from a trained model keeps its codebook although the averages are new."""
    made = quantizer(torch.randn(64, 4), normalize=normalize)
    average = CodebookAverage(made, decay=0.99, restart_below=0.05)
    before = made.vectors().detach().clone()
    latents = made.decode(torch.arange(num_latents) % 4)
    for _ in range(20):
        assert average.update(made, made(latents), generator()) == 0
    assert (made.vectors() - before).abs().max() < 1e-3


def test_a_fixed_vector_neither_moves_nor_restarts_another() -> None:
    made = quantizer(torch.tensor([[0.0], [10.0], [99.0], [-99.0]]), normalize=False)
    average = CodebookAverage(made, decay=0.5, restart_below=0.3, fixed_code=0)
    latents = torch.tensor([[0.5], [-0.5], [0.25], [11.0]])  # three have the fixed code, one code 1
    for _ in range(4):
        average.update(made, made(latents), generator())
    assert made.codebook.data.flatten().tolist() == pytest.approx([0.0, 11.0, 11.0, 11.0], abs=0.1)
    assert average.update(made, made(latents[:3]), generator()) == 0, "a batch that has nothing else is no harm"
    average.start(made, torch.tensor([[7.0]]), generator())
    assert made.codebook.data.flatten().tolist() == [0.0, 7.0, 7.0, 7.0]


@NORMALIZED
def test_start_covers_the_latents(normalize: bool) -> None:
    made = VectorQuantizer(32, 4, normalize=normalize)
    average = CodebookAverage(made, decay=0.9, restart_below=0.1)
    many, few = torch.randn(100, 4), torch.randn(3, 4)
    for latents, num_distinct in ((many, 32), (few, 3)):
        average.start(made, latents, generator())
        codebook = made.codebook.data.clone()
        assert (codebook[:, None] == made.place(latents)[None]).all(-1).any(-1).all()
        assert len(codebook.unique(dim=0)) == num_distinct
        assert torch.equal(average.sums, codebook) and torch.equal(average.counts, torch.ones(32))
        average.start(made, latents, generator())
        assert torch.equal(made.codebook.data, codebook), "the same generator draws the same vectors"


def test_averages_are_saved_and_resumed() -> None:
    """Two halves of a run with the state carried over equal the whole run, bit for bit."""
    batches = torch.randn(6, 50, 4)

    def run(made: VectorQuantizer, average: CodebookAverage, steps: range) -> None:
        for step in steps:
            quantized: Quantized = made(batches[step])
            average.update(made, quantized, torch.Generator().manual_seed(step))

    codebook = torch.randn(16, 4)
    whole, first = quantizer(codebook, normalize=True), quantizer(codebook, normalize=True)
    run(whole, CodebookAverage(whole, decay=0.8, restart_below=0.5), range(6))
    average = CodebookAverage(first, decay=0.8, restart_below=0.5)
    run(first, average, range(3))
    second = VectorQuantizer(16, 4, normalize=True)
    resumed = CodebookAverage(second, decay=0.8, restart_below=0.5)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(average.state_dict())
    run(second, resumed, range(3, 6))
    assert torch.equal(second.codebook, whole.codebook)


@pytest.mark.parametrize(
    ("counts", "usage", "perplexity"),
    [
        ([5, 5, 5, 5], 1.0, 4.0),
        ([0, 7, 0, 0], 0.25, 1.0),
        ([3, 1, 0, 0], 0.5, math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))),
        ([0, 0], 0.0, 1.0),
    ],
)
def test_usage_and_perplexity_by_hand(counts: list[int], usage: float, perplexity: float) -> None:
    assert codebook_statistics(torch.tensor(counts)) == pytest.approx((usage, perplexity))
