"""FLOPs of a forward pass from a model's weights and sizes: two a multiply-add of matrix products and convolutions.

``counted`` finds them by running a part without its weights, whatever the part is made of.

Norms, activations and softmaxes are left out, as ``torch.utils.flop_counter`` leaves them out. A backward pass takes
twice as much: a training step is ``TRAINING_FACTOR`` forward passes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rebus.models.encoders.transformer import EncoderBlock
from rebus.models.moe.layer import MoeLayer

TRAINING_FACTOR = 3
M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


class DecoderSizes(Protocol):
    """What the attention of a decoder is computed from."""

    @property
    def num_layers(self) -> int: ...

    @property
    def num_heads(self) -> int: ...

    @property
    def head_width(self) -> int: ...

    def window_of(self, layer: int, /) -> int: ...


class Decoder(Protocol):
    """Decoders as ``rebus.models.decoders`` has them."""

    layers: nn.ModuleList
    embed_tokens: nn.Embedding

    @property
    def config(self) -> DecoderSizes: ...


class Encoder(Protocol):
    """Image encoders as ``rebus.models.encoders`` has them: convolutions one after another, then transformer blocks."""

    image_size: int
    grid: tuple[int, int]
    width: int


def token_flops(module: nn.Module) -> float:
    """FLOPs a token takes in the linear layers of ``module``; of its experts, only those that the token chooses.

    With a capacity this is an upper bound. The token's attention over others is not in it.
    """
    if isinstance(module, MoeLayer):
        chosen = module.gate.choices_per_token / module.config.num_experts
        experts = chosen * sum(weight.numel() for weight in module.experts.parameters())
        router = sum(weight.numel() for weight in module.gate.parameters())
        shared = 0.0 if module.shared_experts is None else token_flops(module.shared_experts)
        return 2 * (experts + router) + shared
    if isinstance(module, nn.Linear):
        return 2 * module.weight.numel()
    return sum(token_flops(child) for child in module.children())


def attention_flops(width: int, context: float) -> float:
    """FLOPs of a query's scores with ``context`` keys and its sum of their values; ``width`` is that of all heads."""
    return 4 * width * context


def decoder_token_flops(decoder: Decoder, context: float, *, logits: bool = True) -> float:
    """FLOPs of a token that attends to ``context`` tokens, itself among them.

    Over a causal row of S tokens the mean context is (S + 1) / 2; kernels that compute masked scores too take S. Of it
    a layer with a sliding window sees no more than the window.
    """
    config = decoder.config
    layers = token_flops(decoder.layers)
    seen = sum(min(context, config.window_of(layer) or context) for layer in range(config.num_layers))
    attention = attention_flops(config.num_heads * config.head_width, seen)
    return layers + attention + (2 * decoder.embed_tokens.weight.numel() if logits else 0)


def encoder_image_flops(encoder: Encoder) -> float:
    """FLOPs of an image. Convolutions must follow each other, as in every encoder here: none beside another."""
    assert isinstance(encoder, nn.Module)
    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    num_attentions = sum(isinstance(module, EncoderBlock) for module in encoder.modules())
    tokens = math.prod(encoder.grid)
    a_token = token_flops(encoder) + num_attentions * attention_flops(encoder.width, tokens)
    return _convolution_flops(convolutions, encoder.image_size) + tokens * a_token


def _convolution_flops(convolutions: Sequence[nn.Conv2d], side: int) -> float:
    """FLOPs of convolutions that pad so that only their strides shrink the image."""
    total = 0
    for convolution in convolutions:
        side = math.ceil(side / convolution.stride[0])
        total += 2 * convolution.weight.numel() * side**2
    return total


def weightless(module: M) -> M:
    """A copy in evaluation mode whose weights have shapes and no values: they cost no memory, and it runs in no time.

    But for the first run in a process that has made no optimizer: torch then loads its compiler, which takes seconds.
    """
    memo: dict[int, Any] = {id(buffer): buffer.detach().to("meta") for buffer in module.buffers()}
    memo |= {id(weight): nn.Parameter(weight.detach().to("meta"), False) for weight in module.parameters()}
    return copy.deepcopy(module, memo).eval()


def counted(run: Callable[[], T]) -> tuple[T, int]:
    """What ``run`` returns, and the FLOPs that it took of this thread.

    ``run`` takes a module from ``weightless`` and inputs on the device ``meta``: there attention is made of products
    that are counted, on others it may be a kernel that is not. Raises what a module raises that decides by values.
    """
    with torch.no_grad(), _Counter() as counter:
        result = run()
    return result, counter.total


class _Counter(TorchDispatchMode):
    """``torch.utils.flop_counter.FlopCounterMode`` without its hooks, which all threads' modules would run into."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out
