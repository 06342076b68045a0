"""Connectors against closed forms, inside the whole model, and with bad settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus import registry
from rebus.errors import InvalidArgumentError
from rebus.models import load_model, save_model
from rebus.models.connectors.attention_pool import AttentionPoolConfig, AttentionPoolConnector
from rebus.models.connectors.average_pool import AveragePoolConfig, AveragePoolConnector
from rebus.models.connectors.c_abstractor import CAbstractor, CAbstractorConfig, ResidualBlock
from rebus.models.connectors.dense import DenseConnector, DenseConnectorConfig
from rebus.models.connectors.mlp import MlpConfig, MlpConnector
from rebus.models.connectors.pixel_shuffle import PixelShuffleConfig, PixelShuffleConnector
from rebus.models.cross_attention import CrossAttention
from rebus.models.mllm import Mllm, MllmConfig
from rebus.registry import NoSettings

SIZES = {"width_in": 6, "width_out": 5, "grid": (4, 4)}


def same_gradients(got: Tensor, want: Tensor, weights: Sequence[Tensor]) -> None:
    """Both outputs, and their gradients with respect to ``weights``, are equal."""
    torch.testing.assert_close(got, want)
    direction = torch.randn_like(want)
    left, right = (torch.autograd.grad((out * direction).sum(), weights) for out in (got, want))
    torch.testing.assert_close(left, right)


def test_linear_projects_each_token() -> None:
    torch.manual_seed(0)
    connector = registry.build("connector", {"name": "linear"}, **SIZES)
    features = torch.randn(2, 16, 6)
    want = torch.einsum("ntd,ed->nte", features, connector.proj.weight) + connector.proj.bias
    same_gradients(connector(features), want, list(connector.parameters()))
    assert (connector.num_tokens, connector.grid) == (16, (4, 4))


def test_attention_pool_matches_torch_multihead_attention() -> None:
    torch.manual_seed(0)
    pool = AttentionPoolConnector(AttentionPoolConfig(num_tokens=3, num_heads=2), **SIZES)
    features = torch.randn(2, 16, 6)
    attention = pool.attention
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    want, _ = F.multi_head_attention_forward(
        pool.queries[:, None].expand(-1, 2, -1),
        *[features.transpose(0, 1)] * 2,
        embed_dim_to_check=6,
        num_heads=2,
        in_proj_weight=torch.cat([projection.weight for projection in projections]),
        in_proj_bias=torch.cat([projection.bias for projection in projections]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=attention.o_proj.weight,
        out_proj_bias=attention.o_proj.bias,
    )
    same_gradients(pool(features), pool.proj(want.transpose(0, 1)), list(pool.parameters()))
    assert (pool.num_tokens, pool.grid) == (3, None)


def without_branches(connector: CAbstractor) -> None:
    """What the residual blocks add becomes 0, and positions too."""
    with torch.no_grad():
        connector.position.zero_()
        for block in connector.modules():
            if isinstance(block, ResidualBlock):
                block.norm3.weight.zero_()


def test_c_abstractor_of_identity_blocks_is_average_pooling() -> None:
    torch.manual_seed(0)
    connector = CAbstractor(CAbstractorConfig(grid_side=2, num_blocks=2, mlp_depth=1), **SIZES)
    without_branches(connector)
    pool = AveragePoolConnector(AveragePoolConfig(grid_side=2), **SIZES)
    pool.proj.load_state_dict(connector.readout[0].state_dict())
    features = torch.randn(2, 16, 6)
    activated = F.silu(F.silu(features))  # Honeybee's blocks end in an activation
    torch.testing.assert_close(connector(features), connector.readout(F.silu(F.silu(pooled(activated)))))
    for block in [*connector.before, *connector.after]:
        block.act = nn.Identity()
    torch.testing.assert_close(connector(features), pool(features))
    assert (connector.num_tokens, connector.grid) == (4, (2, 2))


def pooled(features: Tensor) -> Tensor:
    """Means of the four quarters of a 4 x 4 grid, written out."""
    quarters = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    return torch.stack([features[:, quarter].mean(1) for quarter in quarters], dim=1)


def test_c_abstractor_without_blocks_pools_and_projects() -> None:
    torch.manual_seed(0)
    connector = CAbstractor(CAbstractorConfig(grid_side=2, num_blocks=0, hidden_width=9), **SIZES)
    features = torch.randn(2, 16, 6)
    first, _, second = connector.readout
    want = second(F.silu(first(pooled(features + connector.position))))
    same_gradients(connector(features), want, list(connector.parameters()))


def test_residual_block_matches_sums_over_places() -> None:
    """RegNet's bottleneck, place by place in plain tensor operations."""
    torch.manual_seed(0)
    block = ResidualBlock(4, 6)
    for norm in (block.norm1, block.norm2, block.norm3, block.shortcut[1]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 4, 3, 5)

    def norm(values: Tensor, by: nn.LayerNorm) -> Tensor:  # channels last
        centred = values - values.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * by.weight + by.bias

    places = x.permute(0, 2, 3, 1)
    y = F.silu(norm(places @ block.conv1.weight[:, :, 0, 0].T, block.norm1))
    padded = F.pad(y, (0, 0, 1, 1, 1, 1))
    y = sum(padded[:, i : i + 3, j : j + 5] * block.conv2.weight[:, 0, i, j] for i in range(3) for j in range(3))
    y = F.silu(norm(y, block.norm2))
    squeezed = F.silu(y.mean((1, 2)) @ block.excite.fc1.weight.T + block.excite.fc1.bias)
    y = y * torch.sigmoid(squeezed @ block.excite.fc2.weight.T + block.excite.fc2.bias)[:, None, None]
    y = norm(y @ block.conv3.weight[:, :, 0, 0].T, block.norm3)
    want = F.silu(y + norm(places @ block.shortcut[0].weight[:, :, 0, 0].T, block.shortcut[1])).permute(0, 3, 1, 2)
    assert block.excite.fc1.out_features == 1  # a quarter of the block's input channels
    same_gradients(block(x), want, list(block.parameters()))


def layers_of(count: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, 16, 6) for _ in range(count)]


def dense(integration: str, layers: list[int], last_layer: int, **settings: int) -> DenseConnector:
    torch.manual_seed(0)
    config = DenseConnectorConfig(integration=integration, layers=layers, last_layer=last_layer, **settings)
    return DenseConnector(config, **SIZES)


@pytest.mark.paper("dense-connector")
def test_sparse_token_integration_appends_averaged_tokens() -> None:
    connector = dense("sti", [1, 3], 5, pool_tokens=8)
    first, third, last = layers_of(3)
    extra = [torch.stack([x[:, :8].mean(1), x[:, 8:].mean(1)], dim=1) for x in (first, third)]
    want = connector.mlp(torch.cat([last, *extra], dim=1))
    same_gradients(connector([first, third, last]), want, list(connector.parameters()))
    assert connector.feature_layers == (1, 3, 5)
    assert (connector.num_tokens, connector.grid) == (16 + 2 * 2, None)


@pytest.mark.paper("dense-connector")
def test_sparse_channel_integration_appends_channels() -> None:
    connector = dense("sci", [1, 3], 5)
    first, third, last = layers_of(3)
    want = connector.mlp(torch.cat([last, first, third], dim=2))
    same_gradients(connector([first, third, last]), want, list(connector.parameters()))
    assert (connector.num_tokens, connector.grid) == (16, (4, 4))


@pytest.mark.paper("dense-connector")
def test_dense_channel_integration_appends_means_of_groups() -> None:
    connector = dense("dci", [0, 1, 2, 3], 3, num_groups=2)  # the last layer also belongs to a group, as in the paper
    a, b, c, d = layers_of(4)
    want = connector.mlp(torch.cat([d, (a + b) / 2, (c + d) / 2], dim=2))
    same_gradients(connector([a, b, c, d]), want, list(connector.parameters()))
    assert connector.feature_layers == (0, 1, 2, 3)
    assert (connector.num_tokens, connector.grid) == (16, (4, 4))


@pytest.mark.paper("dense-connector")
def test_dense_channel_integration_of_single_layers_is_the_sparse_one() -> None:
    features = layers_of(3)
    torch.testing.assert_close(dense("dci", [1, 3], 5, num_groups=2)(features), dense("sci", [1, 3], 5)(features))


@pytest.mark.paper("dense-connector")
def test_without_weights_for_added_channels_it_is_the_mlp_connector() -> None:
    connector = dense("dci", [0, 1], 2)
    with torch.no_grad():
        connector.mlp.fc1.weight[:, 6:] = 0
    plain = MlpConnector(MlpConfig(), **SIZES)
    plain.load_state_dict({**connector.mlp.state_dict(), "fc1.weight": connector.mlp.fc1.weight[:, :6]})
    features = layers_of(3)
    torch.testing.assert_close(connector(features), plain(features[-1]))


class LastOnly(nn.Module):
    """Patches, then blocks; what they hold on the way stays inside."""

    image_size, width, grid = 64, 8, (4, 4)

    def __init__(self, config: NoSettings) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 16, stride=16)
        self.blocks = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])

    def states(self, pixels: Tensor) -> list[Tensor]:
        states = [self.patch_embed(pixels).flatten(2).mT]
        for block in self.blocks:
            states.append(states[-1] + block(states[-1]).tanh())
        return states

    def forward(self, pixels: Tensor) -> Tensor:
        return self.states(pixels)[-1]


class Layered(LastOnly):
    """The same, which can be asked for any of its states."""

    num_layers = 3

    def forward_layers(self, inputs: Tensor, layers: Sequence[int]) -> list[Tensor]:
        return [self.states(inputs)[layer] for layer in layers]


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> MllmConfig:
    """A model of encoder ``layered`` and a connector that reads its layers 0, 2 and 3; there is ``last-only`` too."""
    registry.components("encoder")
    for name, encoder in (("layered", Layered), ("last-only", LastOnly)):
        found = registry.Component("encoder", name, encoder, NoSettings, ())
        monkeypatch.setitem(registry._COMPONENTS["encoder"], name, found)
    torch.manual_seed(0)
    return MllmConfig(
        encoder={"name": "layered"},
        connector={"name": "dense", "layers": [0, 2], "last_layer": 3, "integration": "dci"},
        decoder={"name": "llama", "width": 8, "num_heads": 2, "num_kv_heads": 2, "hidden_width": 8, "num_layers": 1},
        vocab_size=9,
        image_token_id=3,
    )


def test_the_model_hands_layers_to_a_connector_that_reads_them(config: MllmConfig) -> None:
    model = Mllm(config).eval()
    pixels = torch.randn(2, 3, 64, 64)
    first, _, second, last = model.vision_encoder.states(pixels)
    want = model.connector.mlp(torch.cat([last, first, second], dim=2))
    torch.testing.assert_close(model.encode_images(pixels), want)
    assert model.image_tokens == 16


def test_an_encoder_that_gives_only_its_last_layer_is_refused(config: MllmConfig) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"'dense' reads layers \[0, 2, 3\], but encoder 'last-only' gives only"
    ):
        Mllm(dataclasses.replace(config, encoder={"name": "last-only"}))


def test_layers_that_the_encoder_has_not_are_refused(config: MllmConfig) -> None:
    with pytest.raises(InvalidArgumentError, match=r"reads layers \[0, 2, 4\], but encoder 'layered' has 3"):
        Mllm(dataclasses.replace(config, connector={**config.connector, "last_layer": 4}))


@pytest.mark.parametrize(
    "connector",
    [
        {"name": "linear"},
        {"name": "attention-pool", "num_tokens": 2, "hidden_width": 4},
        {"name": "c-abstractor", "grid_side": 2, "num_blocks": 1, "hidden_width": 6},
        {"name": "perceiver-resampler", "num_tokens": 2, "num_heads": 4, "head_width": 2},
        {"name": "pixel-shuffle"},
        {"name": "q-former", "num_tokens": 2, "width": 4, "num_layers": 2, "num_heads": 2, "hidden_width": 4},
        {"name": "dense", "layers": [0, 2], "last_layer": 3, "integration": "sti", "pool_tokens": 4},
    ],
    ids=lambda spec: str(spec["name"]),
)
def test_a_saved_model_shows_images_the_same(config: MllmConfig, connector: dict[str, object], tmp_path: Path) -> None:
    model = Mllm(dataclasses.replace(config, connector=connector)).eval()
    pixels = torch.randn(2, 3, 64, 64)
    want = model.encode_images(pixels)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, Mllm)
    assert torch.equal(loaded.encode_images(pixels), want)
    assert want.shape == (2, model.image_tokens, 8)


def test_a_connector_without_places_has_no_grid_to_ask_for(config: MllmConfig) -> None:
    config = dataclasses.replace(config, connector={"name": "attention-pool", "num_tokens": 2})
    model = Mllm(config)
    assert model.image_tokens == model.encode_images(torch.zeros(1, 3, 64, 64)).shape[1] == 2
    with pytest.raises(InvalidArgumentError, match="'attention-pool' have no places in the image"):
        _ = model.image_grid
    pooling = dataclasses.replace(config, connector={"name": "average-pool", "grid_side": 2})
    assert Mllm(pooling).image_grid == (2, 2)


@pytest.mark.paper("mm1")
@pytest.mark.parametrize("side", [2, 3, 8])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("average-pool", {"grid_side": 2}),
        ("attention-pool", {"num_tokens": 4, "num_heads": 2}),
        ("c-abstractor", {"grid_side": 2, "num_blocks": 1}),
        ("perceiver-resampler", {"num_tokens": 4, "num_layers": 1, "num_heads": 4, "head_width": 2}),
        ("q-former", {"num_tokens": 4, "width": 8, "num_layers": 1, "num_heads": 2, "hidden_width": 8}),
    ],
)
def test_pooling_connectors_return_their_number_of_tokens_for_any_grid(name: str, settings: dict, side: int) -> None:
    grid = (side, side + 1)
    connector = registry.build("connector", {"name": name, **settings}, width_in=6, width_out=5, grid=grid)
    out = connector(torch.randn(1, grid[0] * grid[1], 6))
    assert out.shape == (1, 4, 5)
    assert connector.num_tokens == 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "attention-pool", "num_tokens": 0}, "num_tokens=0 >= 1"),
        ({"name": "attention-pool", "num_heads": 4}, "num_heads=4 must divide width=6"),
        ({"name": "c-abstractor", "grid_side": 5}, r"grid_side=5 exceeds the encoder's grid \(4, 4\)"),
        ({"name": "c-abstractor", "mlp_depth": 0}, "mlp_depth=0"),
        ({"name": "c-abstractor", "num_blocks": -1}, "num_blocks=-1"),
        ({"name": "perceiver-resampler", "head_width": 0}, "head_width=0 must be at least 1"),
        ({"name": "perceiver-resampler", "num_heads": 6}, "num_heads=6 must be divisible by num_kv_heads=4"),
        ({"name": "q-former", "num_tokens": 0, "num_layers": 0}, "num_tokens=0, num_layers=0 must be at least 1"),
        ({"name": "q-former", "width": 7}, "width=7 must be divisible by num_heads=12"),
        ({"name": "pixel-shuffle", "merge_side": 0}, "merge_side=0 must be at least 1"),
        ({"name": "pixel-shuffle", "merge_side": 3}, r"merge_side=3 does not divide the encoder's grid \(4, 4\)"),
        ({"name": "pixel-shuffle", "projection": "conv"}, "projection"),
        ({"name": "dense", "layers": [], "last_layer": 1}, r"layers=\[\] must be ascending"),
        ({"name": "dense", "layers": [2, 1], "last_layer": 2}, r"layers=\[2, 1\] must be ascending"),
        ({"name": "dense", "layers": [1, 2], "last_layer": 1}, "last_layer=1 lies before"),
        ({"name": "dense", "layers": [1, 2, 3], "last_layer": 3}, "num_groups=2 does not divide the 3 layers"),
        (
            {"name": "dense", "integration": "sti", "layers": [1, 2], "last_layer": 2, "pool_tokens": 17},
            "pool_tokens=17 exceeds the 16 tokens",
        ),
    ],
)
def test_bad_settings_are_named(spec: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, InvalidArgumentError), match=message):
        registry.build("connector", spec, **SIZES)


def test_features_of_another_grid_or_number_of_layers_are_refused() -> None:
    pixels = PixelShuffleConnector(PixelShuffleConfig(), **SIZES)
    with pytest.raises(ValueError, match="17 features an image do not fill a grid of 4 x 4"):
        pixels(torch.randn(1, 17, 6))
    with pytest.raises(ValueError, match=r"got features of 2 layers, expected those of \(1, 3, 5\)"):
        dense("sci", [1, 3], 5)(layers_of(2))


def test_cross_attention_sees_only_what_the_mask_shows() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(8, context_width=6, num_heads=4, num_kv_heads=2)
    x, context = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
    mask = torch.tensor([True, False, True, True, False])
    torch.testing.assert_close(attention(x, context, mask[None, None, None]), attention(x, context[:, mask]))
