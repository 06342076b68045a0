"""Turns of a conversation as segments, in the shapes in which public datasets store them.

A turn is ``{"from", "value"}`` (LLaVA), ``{"role", "content"}`` (chat templates; the content a text, or a list of
``{"type": "text" | "image"}`` parts), or a question and its answer in one, ``{"user", "assistant"}``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rebus.data.readers.base import ReaderLimits, clean_text
from rebus.data.sample import Role, Segment
from rebus.errors import invalid

IMAGE_MARK = "<image>"
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def conversation_segments(turns: Any, num_images: int, task: str, limits: ReaderLimits) -> list[Segment]:
    """Turns as segments, an image segment wherever a turn says ``<image>``; assistant turns carry the loss.

    ``InvalidArgumentError`` if the marks do not match the images or nobody answers.
    """
    if not isinstance(turns, list) or not turns:
        raise invalid("conversations", "expected a list of turns")
    segments: list[Segment] = []
    for where, speaker, text in _spoken(turns):
        segments += _turn_segments(where, speaker, text, task, limits)
    if len(segments) > limits.max_segments:
        raise invalid("conversations", f"{len(segments)} segments, more than the limit of {limits.max_segments}")
    if not any(segment.loss for segment in segments):
        raise invalid("conversations", "no turn of the assistant")
    marked = sum(segment.type == "image" for segment in segments)
    if marked == 0:
        return [Segment(type="image", media=i, task=task) for i in range(num_images)] + segments
    if marked != num_images:
        raise invalid("conversations", f"{marked} {IMAGE_MARK} marks for {num_images} images")
    return _numbered(segments)


def _spoken(turns: list[Any]) -> Iterator[tuple[str, Any, Any]]:
    """``(where, speaker, text)`` of each turn, whatever its shape."""
    for index, turn in enumerate(turns):
        where = f"conversations[{index}]"
        if not isinstance(turn, dict):
            yield f"{where}.from", None, None
        elif turn.get("user") is not None and turn.get("assistant") is not None:
            yield f"{where}.user", "user", turn["user"]
            yield f"{where}.assistant", "assistant", turn["assistant"]
        elif turn.get("role") is not None:
            yield f"{where}.content", turn["role"], _content_text(turn.get("content"))
        else:
            yield f"{where}.value", turn.get("from"), turn.get("value")


def _content_text(content: Any) -> Any:
    """A list of parts as the text that says the same with marks; anything else as it is."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "image", "image_url"):
            raise invalid("content", f"expected parts of type text or image, found {kind!r}")
        text = part.get("text") if kind == "text" else IMAGE_MARK
        if not isinstance(text, str):
            raise invalid("content", f"expected the text of a part, found {type(text).__name__}")
        texts.append(text)
    return "\n".join(texts)


def _turn_segments(where: str, speaker: Any, value: Any, task: str, limits: ReaderLimits) -> list[Segment]:
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise invalid(where.rpartition(".")[0] + ".from", f"expected one of {', '.join(_ROLES)}, found {speaker!r}")
    role = _ROLES[speaker]
    text = clean_text(value, where, limits)
    pieces = [piece.strip() for piece in text.split(IMAGE_MARK)]
    if role == "assistant" and not any(pieces):
        raise invalid(where, "is empty")
    segments: list[Segment] = []
    for index, piece in enumerate(pieces):
        if index:
            segments.append(Segment(type="image", media=0, role=role, task=task))
        if piece:
            segments.append(Segment(text=piece, role=role, loss=role == "assistant", task=task))
    return segments


def _numbered(segments: list[Segment]) -> list[Segment]:
    """Image segments refer to the images in the order in which both stand."""
    numbered: list[Segment] = []
    images = 0
    for segment in segments:
        if segment.type == "image":
            segment = Segment(type="image", media=images, role=segment.role, task=segment.task)
            images += 1
        numbered.append(segment)
    return numbered
