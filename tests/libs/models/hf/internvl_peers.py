"""Tiny random InternVLs of transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from tests.libs.models.hf.llava_peers import IMAGE, SIDE, VISION
from tests.libs.models.hf.peers import PEERS, redraw

# A grid of 4 x 4 patches, four to a token.
IMAGE_TOKENS = 4
# What differs from ``VISION``: as InternViT-300M, and as InternViT-6B.
FORMS: dict[str, dict[str, Any]] = {
    "300m": {"attention_bias": True},
    "6b": {"norm_type": "rms_norm", "use_qk_norm": True},
}
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "GotOcr2ImageProcessorFast",
    "processor_class": "InternVLProcessor",
    "size": {"height": SIDE, "width": SIDE},
    "crop_to_patches": False,
    "min_patches": 1,
    "max_patches": 6,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def internvl(form: str, text: str, *, vision: dict[str, Any] | None = None, seed: int = 0, **changes: Any) -> Any:
    """An InternVL with that tower and a text model of ``PEERS``, every weight drawn; its rows hold up to 192 tokens."""
    model_type, values = PEERS[text]
    specials = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    text_config = CONFIG_MAPPING[model_type](**{**values, "max_position_embeddings": 192, **specials})
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**VISION | FORMS[form] | (vision or {})),
        text_config=text_config,
        **{
            "image_token_id": IMAGE,
            "image_seq_length": IMAGE_TOKENS,
            "tie_word_embeddings": text_config.tie_word_embeddings,
            **changes,
        },
    )
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(config).eval()
    redraw(model)
    return model
