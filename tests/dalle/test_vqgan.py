"""VQGAN: shapes of every configuration, rejected values, and the contract of encode and decode."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.errors import ConfigError, ImageError
from dalle.images import composite
from dalle.vq.matting import NEARLY_WHITE
from dalle.vq.quantize import CodebookAverage
from dalle.vq.vqgan import ImageTokenizer, ImageTokenizerConfig
from dalle.vq.vqgan_blocks import AttentionBlock, Downsample, ResidualBlock


def config(**changes: object) -> ImageTokenizerConfig:
    """A small tokenizer of 32 x 32 pixels."""
    values: dict[str, object] = {
        "image_size": 32,
        "patch_size": 1,
        "widths": (8, 16),
        "num_res_blocks": 1,
        "norm_groups": 4,
        "codebook_size": 64,
        "codebook_dim": 4,
    }
    return ImageTokenizerConfig(**(values | changes))  # type: ignore[arg-type]


VARIANTS: dict[str, tuple[dict[str, object], int]] = {
    "plain VQGAN": ({}, 2),
    "patches of 2": ({"patch_size": 2}, 4),
    "patches of 4, one level": ({"patch_size": 4, "widths": (8,)}, 4),
    "four levels of different widths": ({"widths": (4, 8, 8, 12)}, 8),
    "patches of 4 and three levels": ({"patch_size": 4, "widths": (8, 8, 16), "image_size": 64}, 16),
    "two blocks a level": ({"num_res_blocks": 2}, 2),
    "attention at both levels": ({"attention_levels": (0, 1)}, 2),
    "no attention at all": ({"middle_attention": False}, 2),
    "codes of any length": ({"normalize_codes": False}, 2),
    "codes of one number": ({"codebook_dim": 1, "normalize_codes": False}, 2),
    "convolutions around the codebook": ({"z_channels": 6, "patch_size": 2}, 4),
    "twice the channels before them": ({"z_channels": 6, "double_z": True}, 2),
    "a narrow beginning": ({"base_width": 4, "widths": (8, 12)}, 2),
    "means and repeated pixels": ({"resample_with_conv": False}, 2),
    "pixels in [0, 1] inside": ({"pixel_range": "unit"}, 2),
    "four channels": ({"channels": 4, "patch_size": 2}, 4),
    "a network for alpha": ({"channels": 4, "alpha_widths": (4, 8), "patch_size": 2}, 4),
    "a wider and deeper way back": ({"decoder_widths": (12, 20), "num_decoder_blocks": 3}, 2),
}


def lively(changes: dict[str, object]) -> ImageTokenizer:
    """An untrained tokenizer whose codebook covers the encoder's latents, so that pictures have many codes."""
    tokenizer = ImageTokenizer(config(**changes)).eval()
    with torch.no_grad():
        images = pictures(8, tokenizer.config.image_size, channels=tokenizer.config.channels)
        latents = tokenizer.latents(images).flatten(0, 2)
    average = CodebookAverage(tokenizer.quantizer, decay=0.9, restart_below=0.0)
    average.start(tokenizer.quantizer, latents, torch.Generator().manual_seed(0))
    return tokenizer


def pictures(num: int, size: int, width: int | None = None, *, channels: int = 3) -> Tensor:
    """Pictures (num, channels, size, width or size) in [-1, 1]: a square on a ground of another colour."""
    width = size if width is None else width
    colours = 2 * torch.rand(2, num, channels) - 1
    images = colours[0, :, :, None, None].expand(-1, -1, size, width).clone()
    for image, colour in zip(images, colours[1], strict=True):
        side = int(torch.randint(size // 4, size // 2 + 1, ()))
        top, left = (int(torch.randint(extent - side + 1, ())) for extent in (size, width))
        image[:, top : top + side, left : left + side] = colour[:, None, None]
    return images


@pytest.mark.parametrize(("changes", "factor"), VARIANTS.values(), ids=VARIANTS.keys())
def test_shapes_and_ranges(changes: dict[str, object], factor: int) -> None:
    tokenizer = lively(changes)
    size = tokenizer.config.image_size
    grid = size // factor
    assert (tokenizer.config.factor, tokenizer.config.grid_size) == (factor, grid)
    images = pictures(3, size, channels=tokenizer.config.channels)
    codes = tokenizer.encode(images)
    assert codes.shape == (3, grid, grid) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < 64 and len(codes.unique()) > 4
    drawn = tokenizer.decode(codes)
    assert drawn.shape == images.shape and drawn.dtype == torch.float32
    assert drawn.abs().max() <= 1
    assert tokenizer.latents(images).shape == (3, grid, grid, tokenizer.config.codebook_dim)


@pytest.mark.parametrize(("changes", "factor"), VARIANTS.values(), ids=VARIANTS.keys())
def test_any_size_that_is_a_multiple_of_the_factor(changes: dict[str, object], factor: int) -> None:
    tokenizer = lively(changes)
    channels = tokenizer.config.channels
    codes = tokenizer.encode(pictures(2, 3 * factor, 5 * factor, channels=channels))
    assert codes.shape == (2, 3, 5)
    assert tokenizer.decode(codes).shape == (2, channels, 3 * factor, 5 * factor)
    assert tokenizer.encode(pictures(1, factor, channels=channels)).shape == (1, 1, 1)


@pytest.mark.parametrize("changes", [changes for changes, _ in VARIANTS.values()], ids=VARIANTS.keys())
def test_the_picture_beside_it_changes_nothing(changes: dict[str, object]) -> None:
    tokenizer = lively(changes)
    images = pictures(5, tokenizer.config.image_size, channels=tokenizer.config.channels)
    codes = tokenizer.encode(images)
    assert torch.equal(codes, torch.cat([tokenizer.encode(image[None]) for image in images]))
    together, alone = tokenizer.decode(codes), torch.cat([tokenizer.decode(rows[None]) for rows in codes])
    assert (together - alone).abs().max() < 1e-5


def test_training_pass_is_encode_and_decode() -> None:
    tokenizer = lively({})
    images = pictures(2, 32)
    drawn, quantized = tokenizer(images)
    assert torch.equal(quantized.codes, tokenizer.encode(images))
    assert (drawn.clamp(-1, 1) - tokenizer.decode(quantized.codes)).abs().max() < 1e-5
    drawn.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in tokenizer.encoder[1].parameters()), "straight through"


def test_downsampling_pads_right_and_below() -> None:
    """The first tap of the kernel meets every second pixel from the first on, as in taming-transformers."""
    layer = Downsample(1)
    with torch.no_grad():
        layer.conv.weight.zero_()[0, 0, 0, 0] = 1
        layer.conv.bias.zero_()  # type: ignore[union-attr]
        image = torch.arange(24.0).reshape(1, 1, 4, 6)
        assert torch.equal(layer(image), image[:, :, ::2, ::2])


def test_attention_is_where_it_was_asked_for() -> None:
    def count(**changes: object) -> tuple[int, int]:
        tokenizer = ImageTokenizer(config(num_res_blocks=2, **changes))
        encoder, decoder = (
            sum(isinstance(layer, AttentionBlock) for layer in half.modules())
            for half in (tokenizer.encoder, tokenizer.decoder)
        )
        return encoder, decoder

    assert count(middle_attention=False) == (0, 0)
    assert count() == (1, 1)
    assert count(attention_levels=(1,)) == (3, 4), "the decoder has one block more for each level"
    assert count(attention_levels=(0, 1), middle_attention=False) == (4, 6)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 4, 32, 32), (1, 3, 30, 32), (1, 3, 32, 6)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    tokenizer = ImageTokenizer(config(patch_size=2))
    with pytest.raises(ImageError) as caught:
        tokenizer.encode(torch.zeros(shape))
    assert str(caught.value) == f"images of shape {shape}; expected (B, 3, H, W), H and W multiples of 4"


@pytest.mark.parametrize("codes", [torch.full((1, 2, 2), 64), torch.tensor([[[3, -1]]]), torch.zeros(2, 2).long()])
def test_codes_out_of_range_are_refused(codes: Tensor) -> None:
    with pytest.raises(ImageError, match=r"expected \(B, h, w\) with values in \[0, 64\)"):
        ImageTokenizer(config()).decode(codes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 33}, "image_size is 33; it must be a multiple of 2"),
        ({"image_size": 0}, "image_size is 0; it must be a multiple of 2"),
        ({"image_size": -32}, "image_size is -32; it must be a multiple of 2"),
        ({"patch_size": 8, "widths": (8, 8, 8, 8)}, "image_size is 32; it must be a multiple of 64"),
        ({"patch_size": 0}, "patch_size is 0; it must be at least 1"),
        ({"widths": ()}, "widths needs at least one level"),
        ({"widths": (8, 10)}, "width 10 is not a multiple of norm_groups 4"),
        ({"widths": (0, 8)}, "width 0 is not a multiple of norm_groups 4"),
        ({"widths": (8, -8)}, "width -8 is not a multiple of norm_groups 4"),
        ({"norm_groups": 0}, "norm_groups is 0; it must be at least 1"),
        ({"num_res_blocks": 0}, "num_res_blocks is 0; it must be at least 1"),
        ({"codebook_size": 1}, "codebook_size is 1; it must be at least 2"),
        ({"codebook_dim": 0}, "codebook_dim is 0; it must be at least 1"),
        ({"attention_levels": (2,)}, "attention level 2 is not in 0..1"),
        ({"attention_levels": (-1,)}, "attention level -1 is not in 0..1"),
        ({"base_width": 6}, "width 6 is not a multiple of norm_groups 4"),
        ({"z_channels": 0}, "z_channels is 0; it must be at least 1"),
        ({"double_z": True}, "double_z needs z_channels"),
        ({"channels": 1}, "channels is 1; it must be 3 (RGB) or 4 (RGBA)"),
        ({"channels": 4, "wavelet_head": True}, "a wavelet_head draws RGB: channels must be 3"),
        ({"decoder_widths": (8,)}, "decoder_widths has 1 levels; widths has 2"),
        ({"decoder_widths": (8, 10)}, "width 10 is not a multiple of norm_groups 4"),
        ({"alpha_widths": (8, 8)}, "alpha_widths needs RGBA: channels must be 4"),
        ({"channels": 4, "alpha_widths": (8,)}, "alpha_widths has 1 levels; widths has 2"),
        ({"channels": 4, "alpha_widths": (8, 6)}, "width 6 is not a multiple of norm_groups 4"),
        ({"num_decoder_blocks": 0}, "num_decoder_blocks is 0; it must be at least 1"),
        ({"quantizer": "gumbel"}, "normalize_codes compares codes with latents; the gumbel quantizer does not"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert str(caught.value) == message


@pytest.mark.parametrize("changes", [changes for changes, _ in VARIANTS.values()], ids=VARIANTS.keys())
def test_config_round_trip(changes: dict[str, object]) -> None:
    before = config(**changes)
    assert ImageTokenizerConfig.from_dict(before.to_dict()) == before


def palette_squares(num: int) -> Tensor:
    """Pictures (num, 3, 16, 16) that are learnt in seconds: squares on grounds of eight colours, on a raster of 4."""
    corners = torch.cartesian_prod(*[torch.tensor([-0.8, 0.8])] * 3)
    images = torch.empty(num, 3, 4, 4)
    for image in images:
        ground, colour = corners[torch.randperm(8)[:2]]
        side = int(torch.randint(1, 3, ()))
        top, left = torch.randint(4 - side + 1, (2,)).tolist()
        image[:] = ground[:, None, None]
        image[:, top : top + side, left : left + side] = colour[:, None, None]
    return F.interpolate(images, scale_factor=4.0, mode="nearest")


@pytest.fixture(scope="module")
def trained() -> ImageTokenizer:
    """A tokenizer trained on the squares with the plain recipe of VQ-VAE."""
    torch.manual_seed(0)
    changes = {"image_size": 16, "patch_size": 4, "widths": (32,), "middle_attention": False, "norm_groups": 8}
    tokenizer = ImageTokenizer(config(codebook_size=32, codebook_dim=8, **changes))
    average = CodebookAverage(tokenizer.quantizer, decay=0.9, restart_below=0.05)
    optimizer = torch.optim.AdamW([*tokenizer.encoder.parameters(), *tokenizer.decoder.parameters()])
    generator = torch.Generator().manual_seed(0)
    num_steps, num_unquantized = 300, 30
    for step in range(num_steps):
        images = palette_squares(16)
        latents = tokenizer.latents(images)
        if step == num_unquantized:
            average.start(tokenizer.quantizer, latents.flatten(0, 2), generator)
        quantized = tokenizer.quantizer(latents)
        if step < num_unquantized:
            loss = F.mse_loss(tokenizer.pixels(quantized.latents), images)
        else:
            loss = F.mse_loss(tokenizer.pixels(quantized.vectors), images) + 0.25 * quantized.commitment_loss
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, 2 - 2 * step / num_steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= num_unquantized:
            average.update(tokenizer.quantizer, quantized, generator)
    return tokenizer.eval()


def test_trained_encode_and_decode_are_inverses_but_for_a_few_codes(trained: ImageTokenizer) -> None:
    images = palette_squares(64)
    codes = trained.encode(images)
    drawn = trained.decode(codes)
    variance = (images - images.mean((2, 3), keepdim=True)).square().mean()
    assert (drawn - images).square().mean() < variance / 5

    codes_again = trained.encode(drawn)
    assert (codes_again == codes).float().mean() > 0.85
    drawn_again = trained.decode(codes_again)
    assert (drawn_again - drawn).square().mean() < variance / 30
    assert (trained.encode(drawn_again) == codes_again).float().mean() > 0.9


def test_a_code_is_about_the_pixels_at_its_place(trained: ImageTokenizer) -> None:
    red, green = torch.tensor([0.8, -0.8, -0.8]), torch.tensor([-0.8, 0.8, -0.8])
    ground = red[None, :, None, None].expand(1, 3, 16, 16)
    for row, column in ((0, 0), (1, 3), (2, 1), (3, 3)):
        place = (..., slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
        images = ground.clone()
        images[place] = green[:, None, None]
        codes = trained.encode(images)
        assert (codes[0] == codes[0, row, column]).sum() == 1, "the square has a code of its own"
        drawn = trained.decode(codes)
        assert (drawn - images)[place].norm() < (drawn - ground)[place].norm(), "and its colour is drawn there"
        moved = F.avg_pool2d((drawn - trained.decode(trained.encode(ground))).norm(dim=1), 4)
        assert divmod(int(moved.argmax()), 4) == (row, column)


def test_white_patches_have_one_code_where_configured() -> None:
    images = torch.rand(2, 3, 16, 16) * 1.8 - 0.9
    images[0, :, :4, 4:8] = 1.0
    images[1, :, 12:, :] = 0.99
    images[1, 0, 12, 15] = 0.9  # one speck
    config = ImageTokenizerConfig(
        image_size=16, patch_size=2, widths=(8, 16), num_res_blocks=1, norm_groups=4, codebook_size=32, codebook_dim=4
    )
    torch.manual_seed(3)
    plain = ImageTokenizer(config).eval()
    blank = ImageTokenizer(dataclasses.replace(config, blank_code=31)).eval()
    blank.load_state_dict(plain.state_dict())
    expected = plain.encode(images)
    expected[0, 0, 1] = 31
    expected[1, 3, :3] = 31
    assert torch.equal(blank.encode(images), expected)
    with pytest.raises(ConfigError, match=r"blank_code is 32; it must be in \[0, 32\)"):
        dataclasses.replace(config, blank_code=32)


def test_transparent_patches_have_one_code_where_configured() -> None:
    tokenizer = lively({"channels": 4, "patch_size": 2, "blank_code": 9})
    images = pictures(2, 32, channels=4) * 0.9
    images[0, :, :4, 4:8] = -1.0
    images[1, :, 28:, :12] = -0.99
    images[1, 3, 28, 0] = -0.9  # one speck, hardly visible
    images[:, :, 8:12, 8:12] = 1.0  # white is not blank with 4 channels
    blank = torch.zeros(2, 8, 8, dtype=torch.bool)
    blank[0, 0, 1] = blank[1, 7, 1:3] = True
    assert torch.equal(tokenizer.blank_patches(images), blank)
    assert (tokenizer.encode(images)[blank] == 9).all()
    assert (tokenizer.encode(torch.full((1, 4, 32, 32), -1.0)) == 9).all()


def test_images_of_another_number_of_channels_are_refused() -> None:
    tokenizer = ImageTokenizer(config(channels=4))
    with pytest.raises(ImageError, match=r"images of shape \(1, 3, 32, 32\); expected \(B, 4, H, W\)"):
        tokenizer.encode(pictures(1, 32))


def test_the_decoder_may_have_its_own_widths_and_blocks() -> None:
    def widths(half: torch.nn.Module) -> list[int]:
        return [layer.conv2.out_channels for layer in half.modules() if isinstance(layer, ResidualBlock)]

    plain = ImageTokenizer(config())
    wide = ImageTokenizer(config(decoder_widths=(12, 20), num_decoder_blocks=3))
    assert widths(plain.decoder) == [16, 16, 16, 16, 8, 8], "two in the middle; then each level, one more than before"
    assert widths(wide.decoder) == [20, 20, 20, 20, 20, 12, 12, 12]
    assert widths(wide.encoder) == widths(plain.encoder) == [8, 16, 16, 16]
    shapes = [{name: value.shape for name, value in one.encoder.state_dict().items()} for one in (plain, wide)]
    assert shapes[0] == shapes[1]


def test_alpha_that_is_found_in_a_picture_leaves_it_as_it_is_over_white() -> None:
    tokenizer = lively({"channels": 4, "alpha_widths": (4, 8)})
    with torch.no_grad():  # all kinds of alpha and colours, beyond [-1, 1] too
        tokenizer.get_parameter("matting.alpha.2.weight").mul_(30)
        tokenizer.get_parameter(f"decoder.{len(tokenizer.decoder) - 2}.weight").mul_(3)
    rgb = ImageTokenizer(config()).eval()
    rgb.load_state_dict({name: value for name, value in tokenizer.state_dict().items() if "matting" not in name})
    codes = torch.randint(64, (4, 16, 16))
    expected, drawn = rgb.decode(codes), tokenizer.decode(codes)
    alpha = drawn[:, 3:]
    assert (alpha == 1).any() and (alpha < -0.5).any()
    assert (drawn[:, :3] <= alpha + 1e-6).all() and drawn.min() >= -1, "premultiplied"
    difference = (composite(drawn) - expected).abs().amax(1)
    nearly_white = expected.amin(1) > 1 - NEARLY_WHITE
    assert nearly_white.any() and difference[~nearly_white].max() < 1e-5
    assert difference[nearly_white].max() < NEARLY_WHITE / 2 + 1e-5
    images = pictures(2, 32, channels=4)
    assert torch.equal(tokenizer.encode(images), rgb.encode(composite(images)))


def test_a_gumbel_code_is_the_likeliest() -> None:
    tokenizer = ImageTokenizer(config(quantizer="gumbel", normalize_codes=False)).eval()
    images = pictures(3, 32)
    with torch.no_grad():
        logits = tokenizer.quantizer.get_submodule("to_logits")(tokenizer.latents(images))
    codes = tokenizer.encode(images)
    assert torch.equal(codes, logits.argmax(-1)) and torch.equal(codes, tokenizer.encode(images))


def test_a_wavelet_head_draws_twice_as_large() -> None:
    tokenizer = ImageTokenizer(config(wavelet_head=True)).eval()
    codes = tokenizer.encode(pictures(2, 32))
    assert codes.shape == (2, 16, 16) and tokenizer.decode(codes).shape == (2, 3, 64, 64)
    assert (tokenizer.config.factor, tokenizer.config.picture_factor) == (2, 4)
    assert (config().factor, config().picture_factor) == (2, 2)


def test_one_that_only_decodes_has_no_encoder() -> None:
    tokenizer = ImageTokenizer(config(decode_only=True)).eval()
    assert not any(name.startswith("encoder") for name in tokenizer.state_dict())
    assert tokenizer.decode(torch.zeros(1, 4, 4).long()).shape == (1, 3, 8, 8)
    with pytest.raises(ImageError, match="this image tokenizer only decodes: its checkpoint came without an encoder"):
        tokenizer.encode(pictures(1, 32))
