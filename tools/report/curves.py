"""Loss curves as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from tools.report.data import Curve, Stage

_WIDTH, _HEIGHT = 500, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 26, 30
_MAX_POINTS = 240
_COLORS = 6


def line_chart(curves: Sequence[Curve], title: str, stages: Sequence[Stage] = ()) -> Markup:
    """All curves over one pair of axes; long ones are thinned to the mean, lowest and highest of each bin of steps.

    Dotted lines mark where stages end.
    """
    shown = [curve for curve in curves if curve.points]
    if not shown:
        return Markup('<p class="soft">No values were recorded.</p>')
    scale = _Scale.of(shown)
    parts = [
        Markup('<svg class="chart lines" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>').format(
            _WIDTH, _HEIGHT, title, title
        ),
        *(_y_tick(scale, value) for value in ticks(scale.low, scale.high)),
        *(_x_tick(scale, value) for value in ticks(scale.first, scale.last)),
        *_stage_marks(scale, stages),
        *(_curve(scale, curve, at % _COLORS) for at, curve in enumerate(shown)),
        Markup("</svg>"),
        _legend(shown) if len(shown) > 1 else Markup(""),
    ]
    return Markup("").join(parts)


class _Scale:
    """From values to places in the drawing."""

    def __init__(self, first: float, last: float, low: float, high: float) -> None:
        self.first, self.last, self.low, self.high = first, last, low, high

    @classmethod
    def of(cls, curves: Sequence[Curve]) -> _Scale:
        steps = [step for curve in curves for step, _ in curve.points]
        values = [value for curve in curves for _, value in curve.points if math.isfinite(value)] or [0.0]
        low, high = min(0.0, min(values)), max(values)
        return cls(min(steps), max(steps), low, high if high > low else low + 1.0)

    def x(self, step: float) -> float:
        span = (self.last - self.first) or 1.0
        return round(_LEFT + (step - self.first) / span * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover ``low`` to ``high``, about ``wanted`` of them."""
    if high <= low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [round(at * step, 10) for at in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def thin(points: Sequence[tuple[float, float]], bins: int = _MAX_POINTS) -> list[tuple[float, float, float, float]]:
    """Step, mean, lowest and highest of each of at most ``bins`` runs of neighbouring points."""
    finite = [point for point in points if math.isfinite(point[1])]
    size = max(1, math.ceil(len(finite) / bins))
    groups = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [
        (
            sum(step for step, _ in group) / len(group),
            sum(value for _, value in group) / len(group),
            min(value for _, value in group),
            max(value for _, value in group),
        )
        for group in groups
    ]


def _curve(scale: _Scale, curve: Curve, color: int) -> Markup:
    thinned = thin(curve.points)
    line = " ".join(f"{scale.x(step)},{scale.y(mean)}" for step, mean, _, _ in thinned)
    above = [f"{scale.x(step)},{scale.y(high)}" for step, _, _, high in thinned]
    below = [f"{scale.x(step)},{scale.y(low)}" for step, _, low, _ in reversed(thinned)]
    last = thinned[-1][1] if thinned else 0.0
    return Markup(
        '<g style="--c: var(--c{})"><title>{}: {:.4g} at the end</title><polygon class="band" points="{}"/>'
        '<polyline class="line" points="{}"/></g>'
    ).format(color, curve.name, last, " ".join(above + below), line)


def _y_tick(scale: _Scale, value: float) -> Markup:
    y = scale.y(value)
    return Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
        '<text class="axis" x="{}" y="{}" text-anchor="end">{:g}</text>'
    ).format(_LEFT, _WIDTH - _RIGHT, y, y, _LEFT - 8, y + 4, value)


def _x_tick(scale: _Scale, value: float) -> Markup:
    return Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{:g}</text>').format(
        scale.x(value), _HEIGHT - _BOTTOM + 18, value
    )


def _stage_marks(scale: _Scale, stages: Sequence[Stage]) -> list[Markup]:
    """The names above the plot, each over its own stretch, and a line between two."""
    marks, start = [], scale.first
    for stage in stages:
        middle = round((scale.x(start) + scale.x(stage.end)) / 2, 1)
        text = Markup('<text class="axis" x="{}" y="14" text-anchor="middle">{}</text>')
        marks.append(text.format(middle, stage.name))
        if stage.end < scale.last:
            marks.append(
                Markup('<path class="stage" d="M{} {}V{}"/>').format(scale.x(stage.end), _TOP - 6, _HEIGHT - _BOTTOM)
            )
        start = stage.end
    return marks


def _legend(curves: Sequence[Curve]) -> Markup:
    items = Markup("").join(
        Markup('<span><i class="swatch" style="background: var(--c{}); border: 0"></i>{}</span>').format(
            at % _COLORS, curve.name
        )
        for at, curve in enumerate(curves)
    )
    return Markup('<p class="legend">{}</p>').format(items)
