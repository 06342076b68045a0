from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import SiglipVisionConfig, SiglipVisionModel

from rebus.models.connectors.average_pool import AveragePoolConfig, AveragePoolConnector
from rebus.models.connectors.mlp import MlpConfig, MlpConnector
from rebus.models.encoders.conv_vit import ConvVit, ConvVitConfig
from rebus.models.encoders.vit import Vit, VitConfig


def test_vit_matches_transformers_siglip() -> None:
    torch.manual_seed(0)
    ours = Vit(VitConfig(image_size=32, patch_size=8, width=24, num_layers=2, num_heads=3, hidden_width=40)).eval()
    theirs = SiglipVisionModel(
        SiglipVisionConfig(
            image_size=32,
            patch_size=8,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            layer_norm_eps=1e-6,
            hidden_act="gelu",  # exact, as ours; Siglip's default is the tanh approximation
            vision_use_head=False,
        )
    ).eval()
    theirs.load_state_dict(_siglip_state(ours, prefix=_prefix(theirs)))
    pixels = torch.randn(2, 3, 32, 32)

    torch.testing.assert_close(ours(pixels), theirs(pixel_values=pixels).last_hidden_state)


def _prefix(model: SiglipVisionModel) -> str:
    """Releases differ in whether the vision model is nested."""
    return next(iter(model.state_dict())).split("embeddings")[0]


def _siglip_state(vit: Vit, prefix: str) -> dict[str, torch.Tensor]:
    state = {
        "embeddings.patch_embedding.weight": vit.patch_embed.weight,
        "embeddings.patch_embedding.bias": vit.patch_embed.bias,
        "embeddings.position_embedding.weight": vit.position,
        "post_layernorm.weight": vit.norm.weight,
        "post_layernorm.bias": vit.norm.bias,
    }
    names = {
        "layer_norm1": "norm1",
        "self_attn.out_proj": "out_proj",
        "layer_norm2": "norm2",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
    }
    for index, block in enumerate(vit.blocks):
        for theirs, ours in names.items():
            for kind in ("weight", "bias"):
                state[f"encoder.layers.{index}.{theirs}.{kind}"] = block.get_parameter(f"{ours}.{kind}")
        for kind in ("weight", "bias"):
            for letter, part in zip("qkv", block.get_parameter(f"qkv_proj.{kind}").chunk(3), strict=True):
                state[f"encoder.layers.{index}.self_attn.{letter}_proj.{kind}"] = part
    return {prefix + name: value for name, value in state.items()}


def test_conv_vit_tokens_lie_row_by_row() -> None:
    """A change of pixels in the image's top right corner shows in the token at the end of the first row most."""
    torch.manual_seed(0)
    model = ConvVit(ConvVitConfig(image_size=64, channels=[8, 8, 8, 16])).eval()
    pixels = torch.zeros(1, 3, 64, 64)
    changed = pixels.clone()
    changed[..., :8, 56:] = 2.0
    distance = (model(changed) - model(pixels)).norm(dim=-1)[0]
    assert model.grid == (4, 4)
    assert distance.argmax() == 3
    assert distance[8:].max() < distance[3] / 10


def test_average_pool_matches_hand_made_means() -> None:
    torch.manual_seed(0)
    pool = AveragePoolConnector(AveragePoolConfig(grid_side=2), width_in=5, width_out=7, grid=(4, 4))
    features = torch.randn(2, 16, 5)
    # Output token 1 is the top right quarter: rows 0-1, columns 2-3.
    mean = features[:, [2, 3, 6, 7]].mean(1)
    torch.testing.assert_close(pool(features)[:, 1], F.linear(mean, pool.proj.weight, pool.proj.bias))
    assert (pool.num_tokens, pool.grid) == (4, (2, 2))
    with pytest.raises(ValueError, match="grid_side=5"):
        AveragePoolConnector(AveragePoolConfig(grid_side=5), width_in=5, width_out=7, grid=(4, 4))


def test_mlp_projects_every_token_by_itself() -> None:
    torch.manual_seed(0)
    mlp = MlpConnector(MlpConfig(hidden_width=6), width_in=5, width_out=7, grid=(2, 2))
    features = torch.randn(3, 4, 5)
    one = mlp.fc2(F.gelu(mlp.fc1(features[1, 2])))
    torch.testing.assert_close(mlp(features)[1, 2], one)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: VitConfig(image_size=60), "image_size=60"),
        (lambda: ConvVitConfig(image_size=60), "image_size=60"),
        (lambda: ConvVitConfig(num_layers=1, num_heads=3), "num_heads=3"),
        (lambda: MlpConfig(hidden_width=-1), "hidden_width=-1"),
    ],
)
def test_bad_sizes_are_named(build: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build()  # pyright: ignore[reportCallIssue]
