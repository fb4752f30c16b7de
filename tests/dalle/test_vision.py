"""The Vision Transformer against timm's and Hugging Face's, with random weights of the same shape."""

from typing import Any

import pytest
import torch
import transformers

from dalle.clip.classifier import Classifier, ClassifierConfig, LabelSet
from dalle.clip.vision import VisionTransformer
from dalle.errors import ConfigError
from tests.support.clips import renamed, renamed_transformers, vision_config
from tests.support.golden import distance, vectors


@pytest.mark.parametrize(("name", "pooling"), [("token", "class_token"), ("avg", "mean")])
def test_vectors_are_those_of_timm(name: str, pooling: str) -> None:
    network = VisionTransformer(vision_config(pooling=pooling, norm_epsilon=1e-6, mlp_width=96)).eval()
    network.load_state_dict(renamed(vectors("open_clip", f"timm.{name}.weights.")))
    golden = vectors("open_clip")
    with torch.no_grad():
        assert distance(network(golden["images"] * 2 - 1), golden[f"timm.{name}.vectors"]) < 1e-5


def test_vectors_are_those_of_transformers() -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    }
    settings = transformers.ViTConfig(image_size=32, patch_size=8, layer_norm_eps=1e-6, hidden_act="gelu", **sizes)
    torch.manual_seed(0)
    peer = transformers.ViTModel(settings, add_pooling_layer=False)
    peer.requires_grad_(False)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    shape = {"width": 48, "depth": 3, "num_heads": 4, "mlp_width": 96, "image_size": 32, "norm_epsilon": 1e-6}
    network = VisionTransformer(vision_config(**shape)).eval()
    network.load_state_dict(renamed_transformers(peer.state_dict()))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert distance(network(images), peer(images).last_hidden_state[:, 0]) < 1e-5


def test_positions_may_be_sinusoids_without_weights() -> None:
    network = VisionTransformer(vision_config(positions="sinusoidal", pooling="mean"))
    assert not any("position" in name for name, _ in network.named_parameters())
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    turned = images.flip(2)
    assert distance(network(images), network(turned)) > 1e-6, "the place of a patch counts"


def test_a_classifier_has_a_head_for_each_set_of_labels() -> None:
    sets = (LabelSet(name="style", labels=("flat", "round")), LabelSet(name="group", labels=("a", "b", "c")))
    network = Classifier(ClassifierConfig(vision=vision_config(), label_sets=sets))
    found = network(torch.zeros(5, 3, 16, 16))
    assert [tuple(one.shape) for one in found] == [(5, 2), (5, 3)]


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="image_size is 16; it must be a multiple of 5"):
        vision_config(patch_size=5)
    with pytest.raises(ConfigError, match="width is 24; it must be a multiple of 5"):
        vision_config(num_heads=5)
    with pytest.raises(ConfigError, match="pixel_mean has 2 numbers, not 1 or 3"):
        vision_config(pixel_mean=(0.5, 0.5))
    with pytest.raises(ConfigError, match="style has 1 labels; it needs at least 2"):
        LabelSet(name="style", labels=("flat",))
