"""Generation: prompts of text and images answered by a model version, streamed or in batches."""

from rebus.generation.generator import Generator
from rebus.generation.requests import Chunk, Completion, GenerationLimits, Prompt, Sampling

__all__ = ["Chunk", "Completion", "GenerationLimits", "Generator", "Prompt", "Sampling"]
