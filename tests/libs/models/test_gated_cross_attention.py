"""Gated cross-attention: shut it changes no bit, open it equals IDEFICS', and tokens see only images before them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import IdeficsConfig
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer

from rebus.models.branches import branch_layout
from rebus.models.decoders.llama import Llama, LlamaConfig
from rebus.models.gated_cross_attention import (
    GatedCrossAttention,
    GatedCrossAttentionConfig,
    Images,
    add_cross_attention,
    looking_at,
    visible_images,
)

WIDTH, IMAGE_WIDTH = 16, 12
CONFIG = GatedCrossAttentionConfig(every=2, num_heads=2, hidden_width=20)
# Two rows; the first begins with two tokens before any image, the second with its image.
STARTS = torch.tensor([[0, 0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
LAST = torch.tensor(
    [
        [[0, 0], [0, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1]],
        [[1, 0], [1, 0], [1, 0], [1, 0], [1, 0], [1, 0], [1, 0]],
    ],
    dtype=torch.bool,
)
EVERY = torch.tensor(
    [
        [[0, 0], [0, 0], [1, 0], [1, 0], [1, 1], [1, 1], [1, 1]],
        [[1, 0], [1, 0], [1, 0], [1, 0], [1, 0], [1, 0], [1, 0]],
    ],
    dtype=torch.bool,
)


def decoder(num_layers: int = 3) -> Llama:
    torch.manual_seed(0)
    config = LlamaConfig(width=WIDTH, num_layers=num_layers, num_heads=2, num_kv_heads=2, hidden_width=20)
    return Llama(config, vocab_size=11).eval()


def reading(base: Llama, *, gate: float = 0.0) -> Llama:
    """A copy of ``base`` with cross-attention before layers 0 and 2, its gates at ``gate``."""
    model = copy.deepcopy(base)
    torch.manual_seed(1)
    add_cross_attention(model.layers, CONFIG, width=WIDTH, image_width=IMAGE_WIDTH)
    for module in model.modules():
        if isinstance(module, GatedCrossAttention):
            nn.init.constant_(module.alpha_cross_attn, gate)
            nn.init.constant_(module.alpha_dense, gate)
    return model


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings ``[2, 7, D]``, positions, and image features ``[2, 2, 3, C]``."""
    torch.manual_seed(2)
    return torch.randn(2, 7, WIDTH), torch.arange(7).expand(2, -1), torch.randn(2, 2, 3, IMAGE_WIDTH)


def test_tokens_see_the_images_that_began_before_them() -> None:
    assert torch.equal(visible_images(STARTS, 2), LAST)
    assert torch.equal(visible_images(STARTS, 2, last_only=False), EVERY)


@pytest.mark.parametrize("last_only", [True, False])
def test_tokens_of_a_packed_document_see_only_its_own_images(last_only: bool) -> None:
    """Documents of 4, 3 and 4 tokens with 2, 0 and 1 images in one row equal the same documents alone."""
    starts = [torch.tensor(s, dtype=torch.bool) for s in ([0, 1, 1, 0], [0, 0, 0], [0, 1, 0, 0])]
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor([4, 3, 4]))
    found = visible_images(torch.cat(starts)[None], 3, last_only=last_only, documents_BS=documents[None])[0]
    first, second = (visible_images(s[None], n, last_only=last_only)[0] for s, n in ((starts[0], 2), (starts[2], 1)))
    want = torch.zeros(11, 3, dtype=torch.bool)
    want[:4, :2], want[7:, 2:] = first, second
    assert torch.equal(found, want)


def test_shut_gates_leave_the_decoder_bit_for_bit() -> None:
    base = decoder()
    model = reading(base)
    embeds, positions, features = batch()
    want = base(embeds, positions)
    assert torch.equal(model(embeds, positions), want)
    with looking_at(model.layers, Images(features=features, visible=LAST)):
        got = model(embeds, positions)
    assert torch.equal(got, want)
    assert torch.equal(model.logits(got), base.logits(want))


def test_shut_gates_leave_packed_rows_bit_for_bit() -> None:
    base = decoder()
    model = reading(base)
    embeds, positions, features = batch()
    layout = branch_layout(np.array([7, 7]), np.array([], dtype=np.int64), np.array([], dtype=np.int64))
    flat = Images(features=features.reshape(1, 4, 3, IMAGE_WIDTH), visible=torch.ones(1, 14, 4, dtype=torch.bool))
    with looking_at(model.layers, flat):
        got = model.forward_packed(embeds.flatten(0, 1), positions.flatten(), layout)
    assert torch.equal(got, base.forward_packed(embeds.flatten(0, 1), positions.flatten(), layout))


def test_open_gates_equal_packed_and_padded() -> None:
    model = reading(decoder(), gate=0.7)
    embeds, positions, features = batch()
    with looking_at(model.layers, Images(features=features, visible=LAST)):
        want = model(embeds, positions)
    layout = branch_layout(np.array([7, 7]), np.array([], dtype=np.int64), np.array([], dtype=np.int64))
    documents = torch.repeat_interleave(torch.arange(2), 7)[None]
    # The second row has one image: of all that began in the flat row, its is the third.
    packed = torch.cat([features[0], features[1, :1]])[None]
    visible = visible_images(STARTS.reshape(1, -1), 3, documents_BS=documents)
    with looking_at(model.layers, Images(features=packed, visible=visible)):
        got = model.forward_packed(embeds.flatten(0, 1), positions.flatten(), layout)
    torch.testing.assert_close(got, want.flatten(0, 1))
    assert not torch.allclose(want, model(embeds, positions))  # left the context: no image is read any more


@pytest.mark.parametrize("last_only", [True, False])
def test_no_gradient_reaches_later_images(last_only: bool) -> None:
    model = reading(decoder(), gate=0.7)
    embeds, positions, features = batch()
    features.requires_grad_()
    visible = visible_images(STARTS, 2, last_only=last_only)
    with looking_at(model.layers, Images(features=features, visible=visible)):
        hidden = model(embeds, positions)
    reached = []
    for token in range(7):
        (gradient,) = torch.autograd.grad(hidden[0, token].square().sum(), features, retain_graph=True)
        assert not gradient[1].any()  # the other row's images
        reached.append(gradient[0].abs().sum((1, 2)) > 0)
    # Through earlier tokens a later one hears of every image before it, but of none after it.
    assert torch.equal(torch.stack(reached), EVERY[0])


def test_the_layer_alone_reads_no_image_but_the_visible_ones() -> None:
    torch.manual_seed(0)
    layer = GatedCrossAttention(CONFIG, width=WIDTH, image_width=IMAGE_WIDTH)
    nn.init.constant_(layer.alpha_cross_attn, 0.7)
    x, _, features = batch()
    features.requires_grad_()
    out = layer(x, Images(features=features, visible=LAST))
    for row in range(2):
        for token in range(7):
            (gradient,) = torch.autograd.grad(out[row, token].square().sum(), features, retain_graph=True)
            assert torch.equal(gradient[row].abs().sum((1, 2)) > 0, LAST[row, token])
    torch.testing.assert_close(out[0, :2], x[0, :2])  # they see no image


def test_layer_matches_idefics() -> None:
    config = IdeficsConfig(
        hidden_size=WIDTH,
        num_attention_heads=2,
        intermediate_size=20,
        rms_norm_eps=1e-6,
        alpha_type="float",
        vision_config={"embed_dim": IMAGE_WIDTH},
        attn_implementation="eager",
    )
    theirs = IdeficsGatedCrossAttentionLayer(config, layer_idx=0).eval()
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours = GatedCrossAttention(CONFIG, width=WIDTH, image_width=IMAGE_WIDTH)
    ours.load_state_dict(theirs.state_dict())
    x, _, features = batch()
    hidden = LAST.repeat_interleave(3, dim=2)[:, None]
    want = theirs(
        x,
        image_hidden_states=features.flatten(1, 2),
        image_attention_mask=torch.where(hidden, 0.0, torch.finfo(torch.float32).min),
        cross_attention_gate=LAST.any(-1).float(),
    )
    got = ours(x, Images(features=features, visible=LAST))
    torch.testing.assert_close(got, want)
    direction = torch.randn_like(want)
    gradients = [
        dict(
            zip(
                dict(m.named_parameters()),
                torch.autograd.grad((out * direction).sum(), list(m.parameters())),
                strict=True,
            )
        )
        for m, out in ((ours, got), (theirs, want))
    ]
    torch.testing.assert_close(*gradients)


def test_layers_that_read_nothing_are_refused() -> None:
    with (
        pytest.raises(ValueError, match="none of the layers reads images"),
        looking_at(decoder().layers, Images(features=torch.zeros(1, 1, 1, 1), visible=LAST)),
    ):
        pass
    with pytest.raises(ValueError, match="every=0 >= 1"):
        GatedCrossAttentionConfig(every=0)
