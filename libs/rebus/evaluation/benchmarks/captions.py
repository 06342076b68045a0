"""Captions of single images, scored by CIDEr-D."""

from __future__ import annotations

from dataclasses import dataclass

from rebus.errors import invalid
from rebus.evaluation.answering import ask
from rebus.evaluation.benchmark import Context, Outcome
from rebus.evaluation.benchmarks.questions import predictions
from rebus.evaluation.items import CAPTION, Item, items_of, num_images, training_answers
from rebus.evaluation.metrics import CiderDConfig, cider_d
from rebus.evaluation.scoring import Measured, gain, score
from rebus.registry import register

NAME, METRIC = "scene-captions", "cider_d"


@dataclass(frozen=True, kw_only=True)
class CaptionsConfig:
    """How captions are made."""

    # Longest caption, in tokens.
    max_new_tokens: int = 160

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")


@register("benchmark", NAME, config=CaptionsConfig)
class SceneCaptions:
    """CIDEr-D of captions; its document frequencies come from the references of the items scored.

    Chance is not defined for free text. Majority always gives the commonest training caption.
    """

    version = "1"
    architectures = ("mllm",)

    def __init__(self, config: CaptionsConfig) -> None:
        self.config = config

    def run(self, context: Context) -> Outcome:
        """Scores the captions as a whole."""
        items = _caption_items(context)
        answers = ask(context, items, max_new_tokens=self.config.max_new_tokens)
        told = training_answers(context.rows, (1,)).get(CAPTION)
        constant = min(told, key=lambda text: (-told[text], text)) if told else ""
        references = [item.references for item in items]
        settings = CiderDConfig()
        measured = Measured(
            values=cider_d(settings, answers.seeing, references),
            majority=cider_d(settings, [constant] * len(items), references),
            text_only=cider_d(settings, answers.blind, references),
            clusters=[item.family for item in items],
            clean=context.clean([item.sample_id for item in items]),
        )
        scores = [
            score(NAME, "", METRIC, measured, seed=context.seed),
            gain(NAME, "", METRIC, measured, seed=context.seed),
        ]
        return Outcome(scores=scores, predictions=predictions(NAME, items, answers, measured.values))


def _caption_items(context: Context) -> list[Item]:
    samples = (sample for sample in context.samples() if num_images(sample) == 1)
    items = [item for sample in samples for item in items_of(sample) if item.group == CAPTION]
    if not items:
        name = context.rows.version.name
        raise invalid("benchmarks", f"{name} has no captions of single images in its {context.split!r} rows")
    return items[: context.max_items or None]
