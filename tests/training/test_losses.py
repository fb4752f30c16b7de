"""The losses of stage 1: VGG16 features, LPIPS, augmentations, and the adversarial loss."""

import pytest
import torch
import torch.nn.functional as F

from training.losses.adversarial import LeCam, PatchDiscriminator, adaptive_weight, discriminator_loss, r1_penalty
from training.losses.augmentation import over_backgrounds, random_crops
from training.losses.entropy import entropy_loss
from training.losses.perceptual import LPIPS, find_lpips_heads
from training.losses.vgg import VGG16Features


@pytest.fixture(scope="module")
def vgg() -> VGG16Features:
    return VGG16Features(last_block=4)


def test_vgg_features_have_the_shapes_of_the_paper(vgg: VGG16Features) -> None:
    features = vgg(torch.rand(2, 3, 32, 48) * 2 - 1)
    assert [tuple(feature.shape) for feature in features] == [
        (2, 64, 32, 48),
        (2, 128, 16, 24),
        (2, 256, 8, 12),
        (2, 512, 4, 6),
    ]
    assert all(feature.min() == 0 for feature in features), "after the rectifier"
    assert not any(p.requires_grad for p in vgg.parameters())
    assert len(VGG16Features(last_block=2)(torch.zeros(1, 3, 16, 16))) == 2


def test_lpips_weighs_the_channels_of_each_block() -> None:
    lpips = LPIPS()
    images, targets = (torch.rand(2, 3, 3, 16, 16) * 2 - 1).requires_grad_()
    assert lpips(images, images).tolist() == [0, 0, 0]
    distances = lpips(images, targets)
    stored = torch.load(find_lpips_heads(), map_location="cpu", weights_only=True)
    by_hand = torch.zeros(3)
    for block, (one, other) in enumerate(zip(lpips.vgg(images), lpips.vgg(targets), strict=True)):
        squares = (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square()
        head = stored[f"lin{block}.model.1.weight"].flatten()
        by_hand += torch.einsum("bchw,c->bhw", squares, head).mean((1, 2))
    torch.testing.assert_close(distances, by_hand)
    nearer = lpips(targets + 0.3 * (images - targets), targets)
    assert (nearer > 0).all() and (nearer < distances).all()
    pull, none = torch.autograd.grad(distances.sum(), (images, targets), allow_unused=True)
    assert pull.abs().sum() > 0 and none is None


def test_both_pictures_lie_over_the_same_colour() -> None:
    transparent = -torch.ones(2, 4, 4, 4)
    opaque = torch.cat([torch.rand(2, 3, 4, 4) * 2 - 1, torch.ones(2, 1, 4, 4)], dim=1)
    one, other = over_backgrounds(transparent, opaque, torch.Generator().manual_seed(0))
    assert torch.equal(other, opaque[:, :3]), "what is opaque hides it"
    assert one.flatten(2).std(2).max() == 0 and one[0, 0, 0, 0] != one[1, 0, 0, 0], "a colour for each picture"
    again, _ = over_backgrounds(transparent, opaque, torch.Generator().manual_seed(0))
    assert torch.equal(one, again)
    same, _ = over_backgrounds(opaque[:, :3], opaque[:, :3], torch.Generator())
    assert torch.equal(same, opaque[:, :3])


def test_crops_are_the_same_window_of_both() -> None:
    images = torch.arange(2 * 3 * 10 * 12.0).reshape(2, 3, 10, 12)
    found = set()
    for seed in range(200):
        one, other = random_crops(images, images + 0.5, 7, torch.Generator().manual_seed(seed))
        assert one.shape == (2, 3, 7, 7)
        assert torch.equal(one + 0.5, other)
        found.add(divmod(int(one[0, 0, 0, 0]), 12))
        assert torch.equal(one[0, 0, 0] - one[0, 0, 0, 0], torch.arange(7.0))
    assert found == {(top, left) for top in range(4) for left in range(6)}, "every place is drawn"
    whole, _ = random_crops(images, images, 10, torch.Generator())
    assert whole is images


def test_hinge_loss_by_numbers() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3))


def test_a_verdict_does_not_depend_on_the_other_pictures() -> None:
    discriminator = PatchDiscriminator(8, 2)
    images = torch.rand(4, 3, 32, 32)
    verdicts = discriminator(images)
    assert verdicts.shape[:2] == (4, 1)
    assert (discriminator(images[2:3]) - verdicts[2]).abs().max() < 1e-5


def test_adaptive_weight_makes_both_losses_pull_equally() -> None:
    layer = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    strong, weak = (torch.tensor([30.0, 40.0]) * layer).sum(), (torch.tensor([0.0, 2.0]) * layer).sum()
    assert adaptive_weight(strong, weak, layer).item() == pytest.approx(25, rel=1e-3)
    assert adaptive_weight(weak, strong, layer).item() == pytest.approx(1 / 25, rel=1e-3)
    assert adaptive_weight(strong, 0 * weak, layer).item() == 1e4, "bounded"


def test_lecam_by_numbers() -> None:
    lecam = LeCam(decay=0.75)
    real, fake = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([-1.0, 0.0])
    assert lecam(real, fake).item() == 0, "there are no averages yet"
    lecam.update(real, fake)
    assert lecam.averages.tolist() == [2.0, -0.5], "the first logits"
    assert lecam(real, fake).item() == pytest.approx((1.5**2 + 3.5**2) / 2 + (3.0**2 + 2.0**2) / 2)
    lecam.update(torch.tensor([4.0]), torch.tensor([-2.5]))
    assert lecam.averages.tolist() == [2.5, -1.0]
    lecam(real, fake).backward()
    assert real.grad is not None and real.grad.tolist() == pytest.approx([2.0, 4.0]), "real logits are drawn back"
    assert lecam(torch.tensor([-9.0]), torch.tensor([9.0])).item() == 0, "a discriminator that errs is left alone"


def test_r1_by_numbers() -> None:
    """The penalty is the squared slope of each picture's mean logit, and its own gradient is that of a difference
    quotient."""
    discriminator = PatchDiscriminator(8, 1).double()
    pictures = torch.rand(3, 3, 8, 8, dtype=torch.float64) * 2 - 1
    slopes = [
        torch.autograd.functional.jacobian(lambda one: discriminator(one[None]).mean(), picture) for picture in pictures
    ]
    penalty = r1_penalty(discriminator, pictures)
    torch.testing.assert_close(penalty, torch.stack([slope.square().sum() for slope in slopes]).mean())
    place, small = (1, 2, 3, 4), 1e-6
    nudge = torch.zeros_like(pictures)
    nudge[place] = small
    quotient = (discriminator(pictures + nudge) - discriminator(pictures - nudge))[1].mean() / (2 * small)
    assert slopes[1][2, 3, 4].item() == pytest.approx(quotient.item(), rel=1e-5)
    weight = next(discriminator.parameters())
    (pull,) = torch.autograd.grad(penalty, weight)
    higher_and_lower = []
    for change in (small, -small):
        with torch.no_grad():
            weight[0, 0, 0, 0] += change
        higher_and_lower.append(r1_penalty(discriminator, pictures).item())
        with torch.no_grad():
            weight[0, 0, 0, 0] -= change
    assert pull[0, 0, 0, 0].item() == pytest.approx((higher_and_lower[0] - higher_and_lower[1]) / (2 * small), rel=1e-4)
    assert not pictures.requires_grad
    flat = torch.nn.Conv2d(3, 1, 1).double()
    torch.testing.assert_close(
        r1_penalty(flat, pictures), flat.weight.square().sum() / 64, msg="a plane has the slope of its weights"
    )


def test_entropy_loss_by_numbers() -> None:
    far = torch.full((8, 4), 100.0)
    spread = far.clone()
    spread[torch.arange(8), torch.arange(8) % 4] = 0
    assert entropy_loss(spread, 1.0).item() == pytest.approx(-torch.tensor(4.0).log().item()), "all codes, each clearly"
    collapsed = far.clone()
    collapsed[:, 2] = 0
    assert entropy_loss(collapsed, 1.0).item() == pytest.approx(0, abs=1e-6), "one code for all"
    assert entropy_loss(far, 1.0).item() == pytest.approx(0, abs=1e-6), "no choice at all"
    distances = torch.rand(8, 4)
    choices = (-distances / 0.3).softmax(-1)
    each = torch.distributions.Categorical(probs=choices).entropy().mean()
    together = torch.distributions.Categorical(probs=choices.mean(0)).entropy()
    torch.testing.assert_close(entropy_loss(distances, 0.3), each - together)
    latents, vectors = torch.zeros(8, 2) + 0.01 * torch.randn(8, 2), torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    latents.requires_grad_()
    for _ in range(200):
        (pull,) = torch.autograd.grad(entropy_loss(torch.cdist(latents, vectors).square(), 0.1), latents)
        latents = (latents - 0.1 * pull).detach().requires_grad_()
    assert torch.cdist(latents, vectors).argmin(-1).bincount(minlength=4).min() >= 1, "latents spread over all codes"
