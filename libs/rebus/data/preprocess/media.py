"""One processor for every kind of media: images as tiles, videos as frames, sound as log-mel pieces."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from rebus import config as configs
from rebus import registry
from rebus.data.images import ImageBytes
from rebus.data.preprocess.augment import JpegNoise
from rebus.data.preprocess.frames import FrameSampler, Relevance
from rebus.data.preprocess.image import CODE_VERSION as IMAGE_CODE_VERSION
from rebus.data.preprocess.image import ImageProcessor, ImageProcessorConfig, check_digest, digested
from rebus.data.preprocess.log_mel import LogMel, LogMelConfig
from rebus.data.preprocess.resize import Area, patch_mask
from rebus.data.preprocess.splitters import ANY_SHAPE, CutsOriginal, Grid, Splitter
from rebus.data.video import DEFAULT_VIDEO_LIMITS, Video, VideoLimits
from rebus.errors import invalid
from rebus.registry import Spec

# Part of every digest, beside the image processor's: raise it whenever the same config would give other values.
CODE_VERSION = "media-processor-2"


@dataclass(frozen=True, kw_only=True)
class MediaSettings:
    """What becomes of media beside how one square is made of an image."""

    splitter: Spec = registry.component("splitter", "single")
    frames: Spec = registry.component("frame-sampler", "uniform")
    audio: LogMelConfig = field(default_factory=LogMelConfig)


@dataclass(frozen=True, kw_only=True)
class MediaProcessorConfig(MediaSettings):
    """How each kind of media becomes an encoder's input."""

    # Of one tile or frame. Images, or their quarters, may keep their shapes; then there are no videos.
    image: ImageProcessorConfig = field(default_factory=ImageProcessorConfig)

    def __post_init__(self) -> None:
        if not self.image.is_square and self.splitter["name"] not in ANY_SHAPE:
            raise ValueError(f"image.resize={self.image.resize!r} makes no squares, which tiles and frames are")


@dataclass(frozen=True)
class Tile:
    """Where a tile comes from: its place in the image's grid, counted from 1; the overview is at (0, 0)."""

    row: int
    column: int
    # What of it is picture; the rest is background.
    area: Area


@dataclass(frozen=True)
class TiledImage:
    """An image as its encoder reads it."""

    # uint8 [N, S, S, 3]
    pixels: NDArray[np.uint8]
    # N of them, in the order of the pixels.
    tiles: tuple[Tile, ...]
    grid: Grid

    def __len__(self) -> int:
        return len(self.tiles)

    def positions(self, image: int = 0) -> list[tuple[int, int, int]]:
        """MM1.5's ``(k, i, j)`` of each tile: the image's number in the prompt, row and column, 0 for the overview."""
        return [(image, tile.row, tile.column) for tile in self.tiles]

    def patch_masks(self, patch_size: int) -> NDArray[np.bool_]:
        """bool ``[N, S / p, S / p]``: the patches that hold some of the picture; others need not be attended to."""
        side = self.pixels.shape[1]
        return np.stack([patch_mask(tile.area, side, side, patch_size) for tile in self.tiles])


class MediaProcessor:
    """Processes media as one config says; ``digest`` names how."""

    def __init__(
        self,
        config: MediaProcessorConfig,
        *,
        digest: str = "",
        video_limits: VideoLimits = DEFAULT_VIDEO_LIMITS,
    ) -> None:
        """``digest`` is a trained model's; ``FailedPreconditionError`` if this code would process otherwise."""
        self.config = config
        self.image_processor = ImageProcessor(config.image)
        self._splitter: Splitter = registry.build("splitter", config.splitter, field="preprocess.splitter")
        self._sampler: FrameSampler = registry.build("frame-sampler", config.frames, field="preprocess.frames")
        self._log_mel = LogMel(config.audio)
        self._video_limits = video_limits
        check_digest(self.digest, digest)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the settings, defaults filled in, and the code's versions."""
        config = self.config
        return configs.digest(
            {
                "code": [CODE_VERSION, IMAGE_CODE_VERSION],
                "image": digested(config.image),
                "splitter": _settings("splitter", config.splitter),
                "frames": _settings("frame-sampler", config.frames),
                "audio": config.audio,
            }
        )

    def image(
        self,
        data: ImageBytes,
        *,
        num_images: int = 1,
        noise: JpegNoise | None = None,
        key: tuple[int, ...] = (),
        field: str = "image",
    ) -> TiledImage:
        """An encoded image as tiles, one of the prompt's ``num_images``.

        ``noise`` is training's alone, drawn by ``key``. Raises ``InvalidArgumentError`` naming ``field``, and
        ``ValueError`` where images are no tiles of one canvas; see ``pieces``.
        """
        image = self.image_processor.open(data, field=field)
        grid = self.grid(*image.size, num_images=num_images)
        if noise is None:
            return self._tiles(self.image_processor.decode(image, *self._canvas(grid)), grid)
        whole = image.decode(background=self.config.image.background)  # what JPEG does depends on the scale
        return self._tiles(noise(whole, *key), grid)

    def pieces(
        self, data: ImageBytes, *, num_images: int = 1, field: str = "image"
    ) -> NDArray[np.uint8] | tuple[NDArray[np.uint8], ...]:
        """What an encoder reads of an image: tiles uint8 ``[N, S, S, 3]``, or ``[H, W, 3]`` each where shapes are kept.

        Errors as ``image``.
        """
        if not isinstance(self._splitter, CutsOriginal):
            if self.config.image.is_square:
                return self.image(data, num_images=num_images, field=field).pixels
            return (self.image_processor(data, field=field),)
        whole = self.image_processor.open(data, field=field).decode(background=self.config.image.background)
        try:
            pieces = self._splitter.cut(whole)
        except ValueError as error:
            raise invalid(field, str(error)) from None
        return tuple(self.image_processor.resize(piece) for piece in pieces)

    def num_tiles(self, data: ImageBytes, *, num_images: int = 1, field: str = "image") -> int:
        """How many tiles ``image`` makes, told by the header alone; errors as ``image``."""
        return self.grid(*self.image_processor.open(data, field=field).size, num_images=num_images).num_tiles

    def grid(self, height: int, width: int, *, num_images: int = 1) -> Grid:
        """The grid of an image of that size, known before it is decoded: so many tiles, so many tokens."""
        return self._splitter(height, width, side=self.config.image.image_size, num_images=num_images)

    def tile(self, pixels: NDArray[np.uint8], *, num_images: int = 1) -> TiledImage:
        """uint8 ``[H, W, 3]`` to tiles, row by row, with the overview where the splitter wants it."""
        return self._tiles(pixels, self.grid(*pixels.shape[:2], num_images=num_images))

    def _canvas(self, grid: Grid) -> tuple[int, int]:
        """Height and width of all the grid's tiles together."""
        side = self.config.image.image_size
        return grid.rows * side, grid.columns * side

    def _tiles(self, pixels: NDArray[np.uint8], grid: Grid) -> TiledImage:
        """The tiles of ``grid``, which is that of the whole image; ``pixels`` may be the image at a fraction."""
        if isinstance(self._splitter, CutsOriginal):
            raise ValueError(f"{self.config.splitter['name']!r} makes no tiles of one canvas")
        side = self.config.image.image_size
        canvas, area = self.image_processor.onto(pixels, *self._canvas(grid))
        single = grid.rows * grid.columns == 1
        tiles: list[tuple[NDArray[np.uint8], Tile]] = []
        for row, column in product(range(grid.rows), range(grid.columns)):
            frame = Area(row * side, column * side, (row + 1) * side, (column + 1) * side)
            place = (0, 0) if single and grid.overview == "none" else (row + 1, column + 1)
            cut = canvas[frame.top : frame.bottom, frame.left : frame.right]
            tiles.append((cut, Tile(*place, area.within(frame))))
        if grid.overview != "none":
            whole, whole_area = self.image_processor.onto(pixels, side, side)
            tiles.insert(0 if grid.overview == "first" else len(tiles), (whole, Tile(0, 0, whole_area)))
        return TiledImage(np.stack([cut for cut, _ in tiles]), tuple(tile for _, tile in tiles), grid)

    def video(
        self,
        data: bytes,
        *,
        start_seconds: float = 0.0,
        end_seconds: float | None = None,
        relevance: Relevance | None = None,
        field: str = "video",
    ) -> tuple[NDArray[np.uint8], list[float]]:
        """The sampled frames of the part between two moments: uint8 ``[F, S, S, 3]``, and their times in seconds.

        Frames are never split into tiles. ``relevance`` scores frames of the part, by their numbers in it, for samplers
        that ask. Raises ``InvalidArgumentError`` naming ``field``.
        """
        video, numbers = self._sampled(data, start_seconds, end_seconds, relevance, field)
        frames = np.stack([self.image_processor.resize(frame) for frame in video.frames(numbers)])
        return frames, [number / video.info.fps for number in numbers]

    def num_frames(
        self, data: bytes, *, start_seconds: float = 0.0, end_seconds: float | None = None, field: str = "video"
    ) -> int:
        """How many frames ``video`` gives, without reading them; errors as ``video``."""
        return len(self._sampled(data, start_seconds, end_seconds, None, field)[1])

    def _sampled(
        self, data: bytes, start_seconds: float, end_seconds: float | None, relevance: Relevance | None, field: str
    ) -> tuple[Video, list[int]]:
        """The opened video and the numbers of the frames to look at."""
        video = Video(data, limits=self._video_limits, field=field)
        info = video.info
        first = round(start_seconds * info.fps)
        last = info.num_frames if end_seconds is None else min(info.num_frames, round(end_seconds * info.fps))
        if first >= last:
            until = "the end" if end_seconds is None else f"{end_seconds:g} s"
            raise invalid(field, f"has no frames from {start_seconds:g} s to {until}")
        return video, [first + number for number in self._sampler(last - first, info.fps, relevance)]

    def audio(
        self, data: bytes, *, start_seconds: float = 0.0, end_seconds: float | None = None, field: str = "audio"
    ) -> NDArray[np.float32]:
        """The part between two moments as log-mel pieces, float32 ``[pieces, mels, frames]``."""
        return self._log_mel(data, start_seconds=start_seconds, end_seconds=end_seconds, field=field)

    def num_pieces(
        self, data: bytes, *, start_seconds: float = 0.0, end_seconds: float | None = None, field: str = "audio"
    ) -> int:
        """How many pieces ``audio`` gives; errors as ``audio``."""
        return self._log_mel.num_pieces(data, start_seconds=start_seconds, end_seconds=end_seconds, field=field)


def preprocess_digest(image: ImageProcessorConfig, media: MediaSettings | None) -> str:
    """The digest of a model's preprocessing; one without ``media`` sees single squares alone."""
    return ImageProcessor(image).digest if media is None else MediaProcessor(media_config(image, media)).digest


def media_config(image: ImageProcessorConfig, media: MediaSettings) -> MediaProcessorConfig:
    """Both settings as one config."""
    return MediaProcessorConfig(image=image, splitter=media.splitter, frames=media.frames, audio=media.audio)


def _settings(kind: str, spec: Spec) -> list[object]:
    """A component's name and its settings whole, so that leaving out a default changes no digest."""
    component, settings = registry.settings(kind, spec, field=f"preprocess.{kind}")
    return [component.name, settings]
