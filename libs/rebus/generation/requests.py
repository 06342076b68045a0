"""What generation is asked for and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rebus import registry
from rebus.data.sample import Segment
from rebus.errors import invalid
from rebus.generation.samplers import Sampler

FinishReason = Literal["", "stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Segments to answer; ``segment.media`` indexes into ``media``, the encoded images, videos and sounds."""

    segments: Sequence[Segment]
    media: Sequence[bytes] = ()


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. ``temperature`` 0 is greedy; see ``CategoricalConfig`` for the others."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 0.0
    seed: int = 0

    def sampler(self) -> Sampler:
        """The registered sampler that these settings name; raises ``InvalidArgumentError`` for a bad one."""
        if self.temperature == 0:
            return registry.build("sampler", {"name": "greedy"})
        spec: dict[str, Any] = {
            "name": "categorical",
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
        }
        return registry.build("sampler", spec, field="sampling")


@dataclass(frozen=True, kw_only=True)
class GenerationLimits:
    """Bounds on one request and on what is kept between requests."""

    max_prompt_tokens: int = 8192
    max_new_tokens: int = 4096
    # Videos and sounds among them.
    max_images: int = 16
    # Images (videos, sounds) whose decoder embeddings are kept, by content, up to this many bytes.
    image_cache_bytes: int = 256 << 20

    def check(self, sampling: Sampling) -> None:
        """Raises ``InvalidArgumentError`` naming what is out of bounds."""
        sampling.sampler()
        if not 1 <= sampling.max_new_tokens <= self.max_new_tokens:
            raise invalid("sampling.max_new_tokens", f"{sampling.max_new_tokens} is outside 1..{self.max_new_tokens}")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of an answer; the last one has a ``finish_reason``."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    # ``stop``: the model ended its turn; ``length``: ``max_new_tokens`` was reached; empty: more follows.
    finish_reason: FinishReason = ""
    # Tokens of the prompt, image tokens included.
    num_prompt_tokens: int
    # Tokens made so far; the token that ends the turn is not counted.
    num_generated_tokens: int


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
