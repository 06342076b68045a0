"""Flamingo's gated cross-attention (arXiv 2204.14198, section 2.2): a decoder reads images beside its text, not in it.

New layers stand before layers of a decoder that is left as it is. Their gates start shut, so that the decoder answers
bit for bit as before. The layers are built and named as those of IDEFICS: RMSNorm, SwiGLU, no biases::

    add_cross_attention(model.layers, config, width=..., image_width=...)
    with looking_at(model.layers, Images(features=..., visible=visible_images(starts, num_images))):
        hidden = model(embeds, positions)
"""

# Shape suffixes: B rows, S tokens, M images a row, V tokens an image, D decoder width, C image width.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rebus.models.cross_attention import CrossAttention
from rebus.models.gated_mlp import GatedMlp


@dataclass(frozen=True, kw_only=True)
class GatedCrossAttentionConfig:
    """Sizes of the layers that are added."""

    # Decoder layers 0, this, twice this, ... get a cross-attention before them.
    every: int = 4
    num_heads: int = 4
    # Inner width of the feed-forward blocks; 0 takes 4 times the decoder's width.
    hidden_width: int = 0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.every < 1 or self.num_heads < 1 or self.hidden_width < 0:
            raise ValueError(
                f"need every={self.every} >= 1, num_heads={self.num_heads} >= 1 "
                f"and hidden_width={self.hidden_width} >= 0"
            )


@dataclass(frozen=True, kw_only=True)
class Images:
    """What the text of a batch may look at."""

    # [B, M, V, C]; rows with fewer images are padded at their end
    features: Tensor
    # bool [B, S, M]; see ``visible_images``
    visible: Tensor

    @property
    def at_last(self) -> Images:
        """What the last token sees, for the one that follows it."""
        return Images(features=self.features, visible=self.visible[:, -1:])


# Of the calling thread: a served model reads the images of several requests at once.
_LOOKED_AT: ContextVar[Images | None] = ContextVar("images", default=None)


def visible_images(
    starts_BS: Tensor, num_images: int, *, last_only: bool = True, documents_BS: Tensor | None = None
) -> Tensor:
    """Which images each token sees, bool ``[B, S, num_images]``: the last that began, or with ``last_only`` off all.

    ``starts`` (bool) is True where an image's placeholder begins; the row's images are counted from there. Of packed
    rows, ``documents`` (int) says which document a token belongs to: it sees none of another one.
    """
    number_BS1 = starts_BS.cumsum(1)[:, :, None]
    index_M = torch.arange(1, num_images + 1, device=starts_BS.device)
    visible = number_BS1 == index_M if last_only else number_BS1 >= index_M
    if documents_BS is None:
        return visible
    start_BSM = starts_BS[:, :, None] & (number_BS1 == index_M)
    document_BM = (start_BSM * documents_BS[:, :, None]).sum(1)
    return visible & (documents_BS[:, :, None] == document_BM[:, None])


class GatedCrossAttention(nn.Module):
    """Cross-attention to images and a feed-forward block, each added through a gate ``tanh(a)``; ``a`` starts at 0."""

    def __init__(self, config: GatedCrossAttentionConfig, *, width: int, image_width: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width, eps=config.norm_eps)
        self.cross_attn = CrossAttention(width, context_width=image_width, num_heads=config.num_heads)
        self.alpha_cross_attn = nn.Parameter(torch.zeros(1))
        self.post_attention_layernorm = nn.RMSNorm(width, eps=config.norm_eps)
        self.mlp = GatedMlp(width, config.hidden_width or 4 * width, width)
        self.alpha_dense = nn.Parameter(torch.zeros(1))

    def forward(self, x_BSD: Tensor, images: Images) -> Tensor:
        """Maps ``[B, S, D]`` to ``[B, S, D]``; a token that sees no image passes the attention by."""
        sees_BS1 = images.visible.any(-1, keepdim=True)
        # A softmax over nothing is no number: such tokens look at everything, and what they find is dropped.
        mask_BSM = images.visible | ~sees_BS1
        mask_B1ST = mask_BSM.repeat_interleave(images.features.shape[2], dim=2)[:, None]
        found_BSD = self.cross_attn(self.input_layernorm(x_BSD), images.features.flatten(1, 2), mask_B1ST)
        x_BSD = x_BSD + self.alpha_cross_attn.tanh() * found_BSD.masked_fill(~sees_BS1, 0.0)
        return x_BSD + self.alpha_dense.tanh() * self.mlp(self.post_attention_layernorm(x_BSD))


class CrossAttendingLayer(nn.Module):
    """A decoder layer whose input has read the images; without images it is the decoder layer alone."""

    def __init__(self, cross_attention: GatedCrossAttention, layer: nn.Module) -> None:
        super().__init__()
        self.cross_attention = cross_attention
        self.layer = layer

    def forward(self, x_BSD: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the decoder layer returns for ``[B, S, D]`` and the arguments that it takes."""
        if (images := _LOOKED_AT.get()) is not None:
            x_BSD = self.cross_attention(x_BSD, images)
        return self.layer(x_BSD, *args, **kwargs)


def add_cross_attention(
    layers: nn.ModuleList, config: GatedCrossAttentionConfig, *, width: int, image_width: int
) -> None:
    """Puts a shut cross-attention before every ``config.every``-th of a decoder's ``layers``.

    A wrapped layer's weights lie under ``layer``; load the decoder's before wrapping it.
    """
    for index in range(0, len(layers), config.every):
        cross_attention = GatedCrossAttention(config, width=width, image_width=image_width)
        layers[index] = CrossAttendingLayer(cross_attention, layers[index])


def cross_attentions(layers: nn.ModuleList) -> nn.ModuleList:
    """What ``add_cross_attention`` put before ``layers``; empty where it was not called."""
    return nn.ModuleList([layer.cross_attention for layer in layers if isinstance(layer, CrossAttendingLayer)])


@contextmanager
def unwrapped(layers: nn.ModuleList) -> Iterator[None]:
    """While it is entered, ``layers`` are the decoder's own, named as before ``add_cross_attention``."""
    wrapped = {at: layer for at, layer in enumerate(layers) if isinstance(layer, CrossAttendingLayer)}
    for at, layer in wrapped.items():
        layers[at] = layer.layer
    try:
        yield
    finally:
        for at, layer in wrapped.items():
            layers[at] = layer


@contextmanager
def looking_at(layers: Sequence[nn.Module] | nn.ModuleList, images: Images) -> Iterator[None]:
    """While it is entered, those of ``layers`` that can do so read ``images``, in this thread."""
    if not any(isinstance(layer, CrossAttendingLayer) for layer in layers):
        raise ValueError("none of the layers reads images; see add_cross_attention")
    token = _LOOKED_AT.set(images)
    try:
        yield
    finally:
        _LOOKED_AT.reset(token)
