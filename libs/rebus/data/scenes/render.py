"""Draws a scene: supersampled with Pillow, then averaged down, so edges are anti-aliased.

Metal bodies carry a white highlight and a dark foot; rubber bodies are evenly lit.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from rebus.data.scenes.graph import Scene, SceneObject

RGB = tuple[int, int, int]
Point = tuple[float, float]
PALETTE: Mapping[str, RGB] = {
    "red": (205, 40, 40),
    "green": (40, 150, 50),
    "blue": (45, 75, 205),
    "yellow": (235, 215, 50),
    "purple": (135, 50, 165),
    "cyan": (60, 200, 205),
    "orange": (240, 135, 35),
    "gray": (120, 120, 120),
}
_SUPERSAMPLE = 4
_LIGHT, _DARK = 1.25, 0.7


def render(scene: Scene, image_size: int, background: int = 225) -> Image.Image:
    """Draws ``scene`` on a square of ``image_size`` pixels over a gray of ``background`` (0-255)."""
    side = image_size * _SUPERSAMPLE
    canvas = Image.new("RGB", (side, side), (background,) * 3)
    draw = ImageDraw.Draw(canvas)
    for item in sorted(scene, key=lambda o: o.y):
        _BODIES[item.shape](_Brush(draw, item, side))
    return canvas.reduce(_SUPERSAMPLE)


def encode_png(image: Image.Image) -> bytes:
    """PNG bytes; a fast compression level, since these images are tiny."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


class _Brush:
    """Draws in an object's own coordinates: its box is the square from -1 to 1, ``y`` downwards."""

    def __init__(self, draw: ImageDraw.ImageDraw, item: SceneObject, side: int) -> None:
        x1, y1, x2, y2 = (value * side for value in item.box)
        self._draw = draw
        self._centre = ((x1 + x2) / 2, (y1 + y2) / 2)
        self._half = (x2 - x1) / 2
        self._color = PALETTE[item.color]
        self.metal = item.material == "metal"

    def polygon(self, points: Sequence[Point], light: float = 1.0) -> None:
        self._draw.polygon([self._at(p) for p in points], fill=_lit(self._color, light))

    def ellipse(self, x1: float, y1: float, x2: float, y2: float, light: float = 1.0) -> None:
        self._draw.ellipse([self._at((x1, y1)), self._at((x2, y2))], fill=_lit(self._color, light))

    def highlight(self, x: float, y: float, radius: float = 0.22) -> None:
        """The white spot that tells metal from rubber."""
        if self.metal:
            box = [self._at((x - radius, y - radius)), self._at((x + radius, y + radius))]
            self._draw.ellipse(box, fill=(255, 255, 255))

    def _at(self, point: Point) -> Point:
        return (self._centre[0] + point[0] * self._half, self._centre[1] + point[1] * self._half)


def _lit(color: RGB, light: float) -> RGB:
    red, green, blue = (min(255, round(channel * light)) for channel in color)
    return (red, green, blue)


def _sphere(brush: _Brush) -> None:
    if brush.metal:
        brush.ellipse(-0.95, -0.95, 0.95, 0.95, _DARK)
    brush.ellipse(-0.95, -0.95, 0.95, 0.75 if brush.metal else 0.95)
    brush.highlight(-0.35, -0.4)


def _cube(brush: _Brush) -> None:
    """A front face with a lighter top and a darker side."""
    brush.polygon([(-0.95, -0.5), (-0.5, -0.95), (0.95, -0.95), (0.5, -0.5)], _LIGHT)
    brush.polygon([(0.5, -0.5), (0.95, -0.95), (0.95, 0.5), (0.5, 0.95)], _DARK)
    brush.polygon([(-0.95, -0.5), (0.5, -0.5), (0.5, 0.95), (-0.95, 0.95)])
    if brush.metal:
        brush.polygon([(-0.95, 0.7), (0.5, 0.7), (0.5, 0.95), (-0.95, 0.95)], _DARK)
    brush.highlight(-0.5, -0.1)


def _cylinder(brush: _Brush) -> None:
    """An upright body, narrower than its box, with a lighter lid."""
    brush.ellipse(-0.6, 0.45, 0.6, 0.95, _DARK if brush.metal else 1.0)
    brush.polygon([(-0.6, -0.7), (0.6, -0.7), (0.6, 0.7), (-0.6, 0.7)])
    brush.ellipse(-0.6, -0.95, 0.6, -0.45, _LIGHT)
    brush.highlight(-0.2, -0.1)


def _cone(brush: _Brush) -> None:
    brush.ellipse(-0.9, 0.45, 0.9, 0.95, _DARK if brush.metal else 1.0)
    brush.polygon([(0.0, -0.95), (0.9, 0.7), (-0.9, 0.7)])
    brush.highlight(-0.15, 0.15)


_BODIES = {"sphere": _sphere, "cube": _cube, "cylinder": _cylinder, "cone": _cone}
