"""Families of encoders beside transformers' classes, at tiny random sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    ASTConfig,
    ASTModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    WhisperConfig,
)
from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLVisionModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder as HfWhisperEncoder

from rebus.models.encoders.audio_spectrogram import AudioSpectrogramTransformer
from rebus.models.encoders.clip import ClipVision
from rebus.models.encoders.dinov2 import Dinov2
from rebus.models.encoders.hf import audio_spectrogram, clip, dinov2, idefics2, internvit, siglip, siglip2, whisper
from rebus.models.encoders.internvit import InternVit
from rebus.models.encoders.layered import LayeredEncoder
from rebus.models.encoders.siglip import Siglip2Vision, SiglipNavit, SiglipVision
from rebus.models.encoders.whisper import WhisperEncoder

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
}
DINO = {name: value for name, value in SIZES.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
# Two thirds of 3 * 30 are no multiple of 8, to which a SwiGLU's inner width is rounded up.
SWIGLU = DINO | {"hidden_size": 30, "mlp_ratio": 3}
NAFLEX = {name: value for name, value in SIZES.items() if name != "image_size"} | {"num_patches": 16}
WHISPER = {"d_model": 24, "encoder_layers": 3, "encoder_attention_heads": 3, "encoder_ffn_dim": 40}
SOUND = {"num_mel_bins": 12, "max_length": 22, "patch_size": 6, "frequency_stride": 3, "time_stride": 4}


@dataclass(frozen=True)
class Family:
    """One family of encoders on both sides."""

    hf: ModuleType
    encoder: type[LayeredEncoder]
    reference: Callable[[], PreTrainedModel]
    input_shape: tuple[int, ...] = (2, 3, 32, 32)
    # What transformers reads, from what the encoder does.
    their_inputs: Callable[[Tensor], tuple[Tensor, ...]] = lambda x: (x,)
    pools: bool = True

    def build(self) -> PreTrainedModel:
        """The reference with no weight at a value that would hide a mistake, such as zero."""
        torch.manual_seed(0)
        model = self.reference().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter) * 0.2
        return model

    def convert(self, model: PreTrainedModel, state: dict[str, Tensor] | None = None) -> LayeredEncoder:
        """Our encoder with the reference's weights."""
        config, weights = self.hf.from_hf(model.config.to_dict(), model.state_dict() if state is None else state)
        encoder = self.encoder(config).eval()  # pyright: ignore[reportCallIssue]
        encoder.load_state_dict(weights)
        return encoder

    def inputs(self) -> Tensor:
        return torch.randn(self.input_shape, generator=torch.Generator().manual_seed(1))

    def outputs(self, encoder: Any) -> list[Tensor]:
        x = self.inputs()
        return [encoder.forward_tokens(x), *([encoder.pool(x)] if self.pools else [])]

    def their_outputs(self, model: PreTrainedModel) -> list[Tensor]:
        found = model(*self.their_inputs(self.inputs()))
        return [found.last_hidden_state, *([found.pooler_output] if self.pools else [])]


def channels_last_patches(image: Tensor, patch_size: int) -> Tensor:
    """Patches ``[T, p * p * 3]`` of an image ``[3, H, W]``, as SigLIP 2's image processor lays them out."""
    rows, columns = (side // patch_size for side in image.shape[1:])
    cells = image.reshape(3, rows, patch_size, columns, patch_size)
    return cells.permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)


def naflex(images: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Padded patches, which of them are any, and the grids of images ``[3, H, W]``, as SigLIP 2 reads them."""
    patches = [channels_last_patches(image, SIZES["patch_size"]) for image in images]
    padded = nn.utils.rnn.pad_sequence(patches, batch_first=True)
    lengths = torch.tensor([len(part) for part in patches])
    shapes = torch.tensor([[side // SIZES["patch_size"] for side in image.shape[1:]] for image in images])
    return padded, (torch.arange(padded.shape[1]) < lengths[:, None]).long(), shapes


FAMILIES = {
    "clip": Family(clip, ClipVision, lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES))),
    "siglip": Family(siglip, SiglipVision, lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES))),
    "siglip-leftover-pixels": Family(
        siglip, SiglipVision, lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES | {"patch_size": 9}))
    ),
    "siglip-without-head": Family(
        siglip,
        SiglipVision,
        lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES, vision_use_head=False)),
        pools=False,
    ),
    "siglip2": Family(
        siglip2,
        Siglip2Vision,
        lambda: Siglip2VisionModel(Siglip2VisionConfig(**NAFLEX)),
        their_inputs=lambda x: naflex(list(x)),
    ),
    "dinov2": Family(dinov2, Dinov2, lambda: Dinov2Model(Dinov2Config(**DINO))),
    "dinov2-swiglu": Family(
        dinov2, Dinov2, lambda: Dinov2Model(Dinov2Config(**SWIGLU, use_swiglu_ffn=True, qkv_bias=False))
    ),
    "dinov2-registers": Family(
        dinov2, Dinov2, lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO, num_register_tokens=3))
    ),
    "idefics2": Family(
        idefics2, SiglipNavit, lambda: Idefics2VisionTransformer(Idefics2VisionConfig(**SIZES)), pools=False
    ),
    "internvit": Family(
        internvit,
        InternVit,
        lambda: InternVLVisionModel(InternVLVisionConfig(**SIZES, attention_bias=True)),
        pools=False,
    ),
    "internvit-6b": Family(
        internvit,
        InternVit,
        lambda: InternVLVisionModel(
            InternVLVisionConfig(**SIZES, norm_type="rms_norm", use_qk_norm=True, use_mean_pooling=False)
        ),
        pools=False,
    ),
    "whisper": Family(
        whisper,
        WhisperEncoder,
        lambda: HfWhisperEncoder(WhisperConfig(**WHISPER, num_mel_bins=10, max_source_positions=7)),
        input_shape=(2, 10, 14),
        pools=False,
    ),
    "ast": Family(
        audio_spectrogram,
        AudioSpectrogramTransformer,
        lambda: ASTModel(ASTConfig(**{**SIZES, **SOUND})),
        input_shape=(2, 12, 22),
        their_inputs=lambda x: (x.transpose(1, 2),),
    ),
}
