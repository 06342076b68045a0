"""Asks a generator all items of a benchmark, with their images and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rebus.evaluation.benchmark import Context
from rebus.evaluation.items import Item
from rebus.generation import Prompt, Sampling


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Texts, in the order of the items."""

    seeing: list[str]
    # The same model's answers with the images removed.
    blind: list[str]


def ask(context: Context, items: Sequence[Item], *, max_new_tokens: int) -> Answers:
    """Greedy answers; prompts that occur more than once (most do, without their images) are answered once."""
    sampling = Sampling(max_new_tokens=max_new_tokens)
    seeing = _ask(context, [item.prompt for item in items], sampling, 0.0, "answering")
    blind = _ask(context, [item.blind_prompt for item in items], sampling, 0.5, "answering without images")
    return Answers(seeing=seeing, blind=blind)


def _ask(context: Context, prompts: Sequence[Prompt], sampling: Sampling, start: float, message: str) -> list[str]:
    keys = [(tuple(prompt.segments), tuple(prompt.media)) for prompt in prompts]
    distinct = dict(zip(keys, prompts, strict=True))

    def progress(done: int) -> None:
        context.progress(start + done / len(distinct) / 2, f"{message}: {done} of {len(distinct)}")

    completions = context.models.generator.generate(
        list(distinct.values()), sampling, progress=progress, cancelled=context.cancelled
    )
    texts = {key: completion.text for key, completion in zip(distinct, completions, strict=True)}
    return [texts[key] for key in keys]
