"""What a row's segments show, as encoders read it, and how many tokens each takes before it is decoded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from rebus.data.encoding import MediumSize, Row
from rebus.data.preprocess.any_resolution import cut
from rebus.data.preprocess.media import MediaProcessor
from rebus.data.preprocess.splitters import Grid
from rebus.data.sample import Segment, SegmentType
from rebus.errors import invalid


@dataclass(frozen=True, eq=False)
class Medium:
    """One prepared image, video or sound."""

    type: SegmentType
    # uint8 [N, S, S, 3]: tiles or frames, [H, W, 3] each where images keep their shapes; or float32
    # [P, mels, frames]: pieces of sound
    values: NDArray[Any] | tuple[NDArray[Any], ...]
    # Height and width of an image before it was cut into tiles that are put together again; else None.
    size: tuple[int, int] | None = None

    @property
    def num_bytes(self) -> int:
        """Memory that the values take."""
        return sum(piece.nbytes for piece in self.values)

    @property
    def num_images(self) -> int:
        """Squares that the image encoder reads."""
        return 0 if self.type == "audio" else len(self.values)


class TileLayout(Protocol):
    """Knows how many tokens an image's tiles have together; sizes are height and width, tiles of ``side`` pixels."""

    def tiles(self, size: tuple[int, int], *, side: int) -> tuple[int, int]:
        """Rows and columns of the tiles of an image of ``size``; an overview comes before them."""
        ...

    def count(self, size: tuple[int, int], *, side: int) -> int:
        """Tokens of an image of ``size``."""
        ...


class MediaReader:
    """Reads segments as one model does; ``Encoder`` asks it for sizes."""

    def __init__(
        self,
        processor: MediaProcessor,
        *,
        image_tokens: int,
        audio_tokens: int | None = None,
        max_frames: int | None = None,
        layout: TileLayout | None = None,
    ) -> None:
        """Tokens of a square and of a piece of sound, ``None`` of a model that hears nothing; the longest video.

        With ``layout`` images are cut as it says, and there are no other media.
        """
        self.processor = processor
        self._image_tokens, self._audio_tokens, self._max_frames = image_tokens, audio_tokens, max_frames
        self._layout = layout

    @property
    def types(self) -> Collection[SegmentType]:
        """Types of media that the model reads."""
        if self._layout is not None:
            return ("image",)
        return ("image", "video") if self._audio_tokens is None else ("image", "video", "audio")

    def size(self, segment: Segment, data: bytes, *, num_images: int, field: str) -> MediumSize:
        """Tokens and squares of ``segment``; see ``rebus.data.encoding.MediaSizes``."""
        if segment.type == "audio" and self._audio_tokens is not None:
            pieces = self.processor.num_pieces(data, **_times(segment), field=field)
            return MediumSize(pieces * self._audio_tokens, 0)
        if self._layout is not None:
            size = self.processor.image_processor.open(data, field=field).size
            rows, columns = self._layout.tiles(size, side=self._side)
            return MediumSize(self._layout.count(size, side=self._side), 1 + rows * columns)
        if segment.type == "video":
            self._check_squares(field)
            squares = self.processor.num_frames(data, **_times(segment), field=field)
            if self._max_frames is not None and squares > self._max_frames:
                raise invalid(field, f"gives {squares} frames, the model tells {self._max_frames} apart")
        else:
            squares = self.processor.num_tiles(data, num_images=num_images, field=field)
        return MediumSize(squares * self._image_tokens, squares)

    def tokens(self, medium: Medium) -> int:
        """Tokens that a prepared medium takes."""
        if self._layout is not None and medium.size is not None:
            return self._layout.count(medium.size, side=self._side)
        return len(medium.values) * ((self._audio_tokens or 0) if medium.type == "audio" else self._image_tokens)

    def read(self, segment: Segment, data: bytes, *, num_images: int, field: str) -> Medium:
        """``segment``, prepared, of a row with ``num_images``; raises ``InvalidArgumentError`` naming ``field``."""
        if segment.type == "audio":
            return Medium("audio", self.processor.audio(data, **_times(segment), field=field))
        if segment.type == "video":
            return Medium("video", self.processor.video(data, **_times(segment), field=field)[0])
        if self._layout is not None:
            return self._cut(self._layout, data, field)
        return Medium("image", self.processor.pieces(data, num_images=num_images, field=field))

    @property
    def _side(self) -> int:
        return self.processor.config.image.image_size

    def _cut(self, layout: TileLayout, data: bytes, field: str) -> Medium:
        """The overview and the tiles; decoded whole, since where they lie is rounded from the image's own size."""
        images = self.processor.image_processor
        opened = images.open(data, field=field)
        rows, columns = layout.tiles(opened.size, side=self._side)
        pixels = opened.decode(background=images.config.background)
        return Medium("image", cut(images, pixels, Grid(rows, columns, "first")), size=opened.size)

    def _check_squares(self, field: str) -> None:
        image = self.processor.config.image
        if not image.is_square:
            raise invalid(field, f"a video's frames are squares, which resize={image.resize!r} does not make")

    def read_row(self, row: Row, media: Sequence[bytes], *, field: str) -> list[Medium]:
        """All media of an encoded row, in order of their placeholders; errors name ``field[i]``."""
        return [
            self.read(
                medium.segment,
                media[medium.segment.media],
                num_images=row.num_images,
                field=f"{field}[{medium.segment.media}]",
            )
            for medium in row.media
        ]


def _times(segment: Segment) -> dict[str, Any]:
    return {"start_seconds": segment.start_seconds or 0.0, "end_seconds": segment.end_seconds}
