"""Connectors against transformers': outputs, gradients of every weight and of the input, weights there and back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel, SiglipVisionConfig
from transformers.models.idefics2.configuration_idefics2 import Idefics2Config
from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector
from transformers.models.idefics3.configuration_idefics3 import Idefics3Config
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.configuration_internvl import InternVLConfig
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector
from transformers.models.llava.configuration_llava import LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from rebus.errors import DataLossError
from rebus.models.connectors.attention_pool import AttentionPoolConfig, AttentionPoolConnector
from rebus.models.connectors.average_pool import AveragePoolConfig, AveragePoolConnector
from rebus.models.connectors.hf import load_hf, to_hf
from rebus.models.connectors.mlp import MlpConfig, MlpConnector
from rebus.models.connectors.perceiver_resampler import PerceiverResampler, PerceiverResamplerConfig
from rebus.models.connectors.pixel_shuffle import PixelShuffleConfig, PixelShuffleConnector, pixel_shuffle
from rebus.models.connectors.q_former import QFormer, QFormerConfig

WIDTH_IN, WIDTH_OUT = 12, 16
TEXT = {"model_type": "llama", "hidden_size": WIDTH_OUT, "intermediate_size": 20, "num_attention_heads": 2}


def randomised(module: nn.Module) -> nn.Module:
    """Every weight drawn anew, so that none hides behind a zero or a one that both sides start with."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def assert_same(ours: nn.Module, theirs: nn.Module, got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    """Outputs, and gradients of all weights and of the inputs; ``got`` and ``want`` hold input and output."""
    torch.testing.assert_close(got[1], want[1])
    weights = torch.randn_like(want[1])
    (got[1] * weights).sum().backward()
    (want[1] * weights).sum().backward()
    torch.testing.assert_close(got[0].grad, want[0].grad)
    gradients = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter, source in zip(gradients.parameters(), ours.parameters(), strict=True):
            assert source.grad is not None
            parameter.copy_(source.grad)
    torch.testing.assert_close(to_hf(gradients), {name: p.grad for name, p in theirs.named_parameters()})


def inputs(tokens: int, width: int = WIDTH_IN) -> tuple[Tensor, Tensor]:
    features = torch.randn(2, tokens, width)
    return features.clone().requires_grad_(), features.clone().requires_grad_()


def test_mlp_matches_llava() -> None:
    config = LlavaConfig(vision_config={"model_type": "siglip_vision_model", "hidden_size": WIDTH_IN}, text_config=TEXT)
    theirs = randomised(LlavaMultiModalProjector(config))
    ours = MlpConnector(MlpConfig(), width_in=WIDTH_IN, width_out=WIDTH_OUT, grid=(2, 3))
    load_hf(ours, theirs.state_dict())
    x, y = inputs(6)
    assert_same(ours, theirs, (x, ours(x)), (y, theirs(y)))


@pytest.mark.parametrize("padded", [False, True])
def test_perceiver_resampler_matches_idefics2(padded: bool) -> None:
    config = Idefics2Config(
        vision_config={"hidden_size": WIDTH_IN},
        text_config={**TEXT, "hidden_act": "silu"},
        perceiver_config={
            "hidden_size": WIDTH_OUT,
            "resampler_n_latents": 5,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 6,
            "num_key_value_heads": 2,
        },
    )
    theirs = randomised(Idefics2Connector(config))
    ours = PerceiverResampler(
        PerceiverResamplerConfig(
            num_tokens=5, num_layers=2, num_heads=4, num_kv_heads=2, head_width=6, projection_hidden_width=20
        ),
        width_in=WIDTH_IN,
        width_out=WIDTH_OUT,
        grid=(2, 3),
    )
    load_hf(ours, theirs.state_dict())
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = not padded
    x, y = inputs(6)
    got = ours(x, mask) if padded else ours(x)
    assert_same(ours, theirs, (x, got), (y, theirs(y, attention_mask=mask)))
    assert got.shape[1] == ours.num_tokens == 5
    assert ours.grid is None


class Blip2(nn.Module):
    """The three parts of ``Blip2Model`` that make the connector, called as it calls them."""

    def __init__(self) -> None:
        super().__init__()
        config = Blip2QFormerConfig(
            hidden_size=8,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=10,
            encoder_hidden_size=WIDTH_IN,
            cross_attention_frequency=2,
        )
        self.query_tokens = nn.Parameter(torch.zeros(1, 3, 8))
        self.qformer = Blip2QFormerModel(config)
        self.language_projection = nn.Linear(8, WIDTH_OUT)

    def forward(self, image_embeds: Tensor) -> Tensor:
        outputs = self.qformer(
            query_embeds=self.query_tokens.expand(len(image_embeds), -1, -1),
            encoder_hidden_states=image_embeds,
            encoder_attention_mask=torch.ones(image_embeds.shape[:2], dtype=torch.long),
        )
        return self.language_projection(outputs.last_hidden_state)


def q_former(**settings: int) -> QFormer:
    sizes = {"num_tokens": 3, "width": 8, "num_layers": 3, "num_heads": 2, "hidden_width": 10, **settings}
    return QFormer(QFormerConfig(**sizes), width_in=WIDTH_IN, width_out=WIDTH_OUT, grid=(2, 3))


def test_q_former_matches_blip2() -> None:
    theirs, ours = randomised(Blip2()), q_former()
    load_hf(ours, theirs.state_dict())
    x, y = inputs(6)
    got = ours(x)
    assert_same(ours, theirs, (x, got), (y, theirs(y)))
    assert got.shape[1] == ours.num_tokens == 3
    assert ours.grid is None


@pytest.mark.parametrize("grid", [(4, 4), (4, 6)])
def test_pixel_shuffle_and_mlp_match_internvl(grid: tuple[int, int]) -> None:
    vision = {"hidden_size": WIDTH_IN, "image_size": [32, 32], "patch_size": [8, 8], "intermediate_size": 8}
    config = InternVLConfig(vision_config=vision, text_config=TEXT, downsample_ratio=0.5)
    theirs = randomised(InternVLMultiModalProjector(config))
    ours = PixelShuffleConnector(PixelShuffleConfig(), width_in=WIDTH_IN, width_out=WIDTH_OUT, grid=grid)
    load_hf(ours, theirs.state_dict())
    x, y = inputs(grid[0] * grid[1])
    # The method reads nothing of the model; a whole one takes seconds to build.
    shuffled = InternVLModel.pixel_shuffle(None, y.unflatten(1, grid), scale_factor=0.5).flatten(1, 2)
    got = ours(x)
    assert_same(ours, theirs, (x, got), (y, theirs(shuffled)))
    assert ours.grid == (grid[0] // 2, grid[1] // 2)
    assert got.shape[1] == ours.num_tokens


@pytest.mark.parametrize("side", [2, 3])
def test_pixel_shuffle_and_linear_match_idefics3(side: int) -> None:
    config = Idefics3Config(vision_config={"hidden_size": WIDTH_IN}, text_config=TEXT, scale_factor=side)
    theirs = randomised(Idefics3Connector(config))
    ours = PixelShuffleConnector(
        PixelShuffleConfig(merge_side=side, projection="linear"), width_in=WIDTH_IN, width_out=WIDTH_OUT, grid=(6, 6)
    )
    load_hf(ours, theirs.state_dict())
    x, y = inputs(36)
    assert_same(ours, theirs, (x, ours(x)), (y, theirs(y)))


def test_both_pixel_shuffles_keep_one_channel_order() -> None:
    """A square's tokens row by row, each with all its channels: unlike torch's, channels by places."""
    features = torch.arange(2 * 4 * 4 * 3.0).view(2, 16, 3)
    got = pixel_shuffle(features, (4, 4), 2)
    torch.testing.assert_close(got, Idefics3Connector.pixel_shuffle(None, features, 2))
    torch.testing.assert_close(
        got, InternVLModel.pixel_shuffle(None, features.view(2, 4, 4, 3), scale_factor=0.5).flatten(1, 2)
    )
    torch.testing.assert_close(got[:, 1], features[:, [2, 3, 6, 7]].flatten(1))
    by_places = nn.functional.pixel_unshuffle(features.transpose(1, 2).unflatten(2, (4, 4)), 2).flatten(2).mT
    torch.testing.assert_close(by_places.unflatten(2, (3, 4)).mT.flatten(2), got)
    assert not torch.equal(by_places, got)


def test_attention_pool_with_feed_forward_matches_siglip() -> None:
    config = SiglipVisionConfig(
        hidden_size=WIDTH_IN, num_attention_heads=3, intermediate_size=20, hidden_act="gelu", layer_norm_eps=1e-6
    )
    theirs = randomised(SiglipMultiheadAttentionPoolingHead(config))
    ours = AttentionPoolConnector(
        AttentionPoolConfig(num_tokens=1, num_heads=3, hidden_width=20),
        width_in=WIDTH_IN,
        width_out=WIDTH_IN,
        grid=(2, 3),
    )
    ours.load_state_dict(
        {
            "queries": theirs.probe[0],
            **{f"attention.{k}": v for k, v in attention_state(theirs.attention).items()},
            **{f"mlp.norm.{k}": v for k, v in theirs.layernorm.state_dict().items()},
            **{f"mlp.{k}": v for k, v in theirs.mlp.state_dict().items()},
            "proj.weight": torch.eye(WIDTH_IN),
            "proj.bias": torch.zeros(WIDTH_IN),
        }
    )
    features = torch.randn(2, 6, WIDTH_IN)
    torch.testing.assert_close(ours(features)[:, 0], theirs(features))


def attention_state(attention: nn.MultiheadAttention) -> dict[str, Tensor]:
    """The weights of torch's attention by ``CrossAttention``'s names."""
    state = {f"o_proj.{kind}": getattr(attention.out_proj, kind) for kind in ("weight", "bias")}
    for kind, joined in (("weight", attention.in_proj_weight), ("bias", attention.in_proj_bias)):
        state |= {f"{letter}_proj.{kind}": part for letter, part in zip("qkv", joined.chunk(3), strict=True)}
    return state


def test_weights_of_a_whole_model_are_found_by_prefix() -> None:
    theirs, ours = randomised(Blip2()), q_former()
    state = {f"model.{name}": value for name, value in theirs.state_dict().items()}
    load_hf(ours, {**state, "model.language_model.norm.weight": torch.ones(3)}, prefix="model.")
    torch.testing.assert_close(to_hf(ours), dict(theirs.state_dict()))


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    state = to_hf(q_former())
    other = q_former(num_layers=2)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(DataLossError, match=r"has an unknown qformer.encoder.layer.2.attention.attention.key.bias"):
        load_hf(other, state)
    with pytest.raises(DataLossError, match=r"language_projection.bias is \[7\], expected \[16\]"):
        load_hf(q_former(), {**state, "language_projection.bias": torch.zeros(7)})
    del state["query_tokens"]
    with pytest.raises(DataLossError, match=r"lacks query_tokens"):
        load_hf(q_former(), state)
    torch.testing.assert_close(other.state_dict(), before)
    with pytest.raises(TypeError, match="no connector like AveragePoolConnector"):
        to_hf(AveragePoolConnector(AveragePoolConfig(), width_in=3, width_out=3, grid=(4, 4)))
