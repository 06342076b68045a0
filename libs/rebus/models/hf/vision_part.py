"""What ``config.json`` of a multimodal model says of its image encoder, checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rebus import config as configs
from rebus.errors import invalid
from rebus.models.hf.convert import check_sizes
from rebus.models.io import CONFIG_FILE

WHERE = f"{CONFIG_FILE}.vision_config"


@dataclass(frozen=True, kw_only=True)
class VisionFile:
    """What bears on the numbers of CLIP's, SigLIP's and Idefics2's vision configs; None is the class's default."""

    model_type: str = "clip_vision_model"
    image_size: int | list[int] | None = None
    patch_size: int | list[int] | None = None
    num_channels: int = 3
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    hidden_act: str | None = None
    layer_norm_eps: float | None = None
    vision_use_head: bool | None = None


def read_vision(values: Mapping[str, Any]) -> VisionFile:
    """``vision_config`` without what does not bear on the numbers; ``InvalidArgumentError`` names what is no such."""
    known = {item.name for item in fields(VisionFile)}
    said = {key: value for key, value in values.items() if key in known}
    vision = configs.build(VisionFile, said, where=WHERE)
    check_sizes(vision, where=WHERE)
    if vision.num_channels != 3:
        raise invalid(f"{WHERE}.num_channels", f"{vision.num_channels} is not supported, only 3")
    return vision
