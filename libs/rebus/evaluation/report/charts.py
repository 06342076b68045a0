"""Inline SVG: drawn by hand, so a page needs nothing from anywhere. Colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from rebus.v1.evaluation_pb2 import Score

_WIDTH, _LABELS, _VALUES = 1040, 270, 190
_ROW, _TOP = 27, 28
_PLOT = _WIDTH - _LABELS - _VALUES
# Baselines in the order drawn: field of the score, its name for people.
BASELINES = (("chance", "chance"), ("majority", "majority"), ("text_only", "text only"))
GAIN = "_gain_over_text_only"


def score_bars(scores: Sequence[Score], title: str) -> Markup:
    """One horizontal bar a score with its 95 % interval, the baselines as marks; differences are left out.

    The axis runs from 0 to 1, or to the next whole number above the highest value.
    """
    shown = [score for score in scores if not score.metric.endswith(GAIN)]
    top = max([1.0, *(math.ceil(max(score.value, score.high)) for score in shown)])
    height = _TOP + _ROW * len(shown) + 6
    parts = [
        Markup('<div class="scroll"><svg class="chart bars" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            _WIDTH, height, title
        ),
        Markup("<title>{}</title>").format(title),
    ]
    parts += [_gridline(top * step / 4, top, height) for step in range(5)]
    parts += [_bar(score, _TOP + _ROW * at, top) for at, score in enumerate(shown)]
    return Markup("").join([*parts, Markup("</svg></div>")])


def label_of(score: Score) -> str:
    """``color``, ``text to image · recall at 1``: the group, and the metric where it is not plain exact match."""
    metric = "" if score.metric == "exact_match" else score.metric.replace("_", " ")
    return " · ".join(part for part in (score.group.replace("_", " "), metric) if part) or score.benchmark


def _x(value: float, top: float) -> float:
    return round(_LABELS + _PLOT * min(max(value / top, 0.0), 1.0), 1)


def _gridline(value: float, top: float, height: int) -> Markup:
    return Markup(
        '<line class="grid" x1="{x}" x2="{x}" y1="{y1}" y2="{y2}"/>'
        '<text class="axis" x="{x}" y="14" text-anchor="middle">{value:g}</text>'
    ).format(x=_x(value, top), y1=_TOP - 6, y2=height, value=value)


def _bar(score: Score, y: int, top: float) -> Markup:
    middle = y + _ROW / 2
    parts = [
        Markup("<g><title>{}</title>").format(describe(score)),
        Markup('<text class="label" x="{}" y="{}" text-anchor="end">{}</text>').format(
            _LABELS - 12, middle + 4, label_of(score)
        ),
        Markup('<rect class="bar" x="{}" y="{}" width="{}" height="12" rx="3"/>').format(
            _LABELS, middle - 6, round(_x(score.value, top) - _LABELS, 1)
        ),
        Markup('<path class="whisker" d="M{a} {y1}V{y2}M{a} {m}H{b}M{b} {y1}V{y2}"/>').format(
            a=_x(score.low, top), b=_x(score.high, top), m=middle, y1=middle - 4, y2=middle + 4
        ),
        *(_shape(name, _x(getattr(score, name), top), middle) for name, _ in BASELINES if score.HasField(name)),
        Markup('<text class="value" x="{}" y="{}">{} <tspan class="axis">{}&ndash;{}</tspan></text>').format(
            _LABELS + _PLOT + 14, middle + 4, number(score.value), number(score.low), number(score.high)
        ),
    ]
    return Markup("").join([*parts, Markup("</g>")])


def _shape(baseline: str, x: float, y: float) -> Markup:
    """Chance is a line, majority a diamond, text only a ring: told apart without colour too."""
    if baseline == "chance":
        return Markup('<path class="mark chance" d="M{} {}v20"/>').format(x, y - 10)
    if baseline == "majority":
        return Markup('<path class="mark majority" d="M{} {}l5 6l-5 6l-5 -6z"/>').format(x, y - 6)
    return Markup('<circle class="mark text-only" cx="{}" cy="{}" r="5"/>').format(x, y)


def baselines_of(scores: Sequence[Score]) -> list[tuple[str, str]]:
    """The baselines that at least one of ``scores`` has: field and name."""
    return [(field, name) for field, name in BASELINES if any(score.HasField(field) for score in scores)]


def legend(scores: Sequence[Score]) -> Markup:
    """What the marks of ``score_bars`` mean."""
    item = Markup('<span><svg viewBox="0 0 24 24" aria-hidden="true">{}</svg>{}</span>')
    marks = Markup("").join(item.format(_shape(field, 12, 12), name) for field, name in baselines_of(scores))
    return Markup('<p class="legend"><span><i class="swatch"></i>model, 95 % interval</span>{}</p>').format(marks)


def number(value: float) -> str:
    """Three decimals, so that neighbours in a table can be compared."""
    return f"{value:.3f}"


def describe(score: Score) -> str:
    """A score in one sentence, for tooltips and screen readers."""
    told = [f"{label_of(score)}: {number(score.value)}, 95 % interval {number(score.low)} to {number(score.high)}"]
    told += [f"{text} {number(getattr(score, name))}" for name, text in BASELINES if score.HasField(name)]
    return "; ".join([*told, f"{score.num_items} items"])
