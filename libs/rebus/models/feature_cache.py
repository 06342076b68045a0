"""Features of a frozen image encoder, computed once for the images of a dataset version.

A cache is a folder ``features/<key>/`` of parts, each for a range of the version's rows, which fills up as rows are
asked for: training computes those of its split, an index of the whole version later only the others. The key is a
digest of everything that the features depend on, so that a stale cache cannot be found. The folder holds each part's
SHA-256; its bytes (safetensors) lie in the cache of stored objects, within the same bound (``REBUS_CACHE_BYTES``). A
part that was removed or damaged is computed anew, since losing it costs time and never results.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from rebus import config as configs
from rebus.data.loader import DEFAULT as LOADER
from rebus.data.prefetch import ordered_prefetch
from rebus.data.preprocess import ImageProcessor
from rebus.errors import NotFoundError, ResourceExhaustedError
from rebus.store import manifests
from rebus.store.cache import CachedObject, LocalCache

# Images encoded together. More would not be faster on a CPU: the activations would leave its caches.
ENCODE_BATCH = 8
# Rows a part; what an interrupted build may have to repeat.
PART_ROWS = 256
# Decoded batches that wait for the encoder.
_DECODED_BYTES = 64 << 20

# ``pooled``: one vector an image, ``tokens``: one a place on the encoder's grid.
Layout = Literal["pooled", "tokens"]
# The encoded images of the dataset version's rows named, in that order.
TakeImages = Callable[[Sequence[int]], list[bytes]]


@dataclass(frozen=True, kw_only=True)
class FeatureKey:
    """Everything that features depend on."""

    # Digest of the dataset version. Of each row, the first image is encoded.
    dataset: str
    # ``module_digest`` of the encoder, ``ImageProcessor.digest``.
    encoder: str
    preprocess: str
    layout: Layout = "pooled"

    @property
    def folder(self) -> str:
        """Where the features lie below a cache's folder."""
        return f"features/{configs.digest(asdict(self))[:32]}"


class Features:
    """The features of N images, mapped from files: memory holds what is taken, not what lies there."""

    def __init__(self, parts: Sequence[tuple[Tensor, NDArray[np.int64]]]) -> None:
        """``parts``: each with its features and, for each image it gives, the place among them."""
        self._parts = parts
        self._starts = np.cumsum([0, *(len(places) for _, places in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, indices: NDArray[np.int64] | Sequence[int]) -> Tensor:
        """float32 ``[n, ...]`` of the images at ``indices``, in that order."""
        wanted = np.asarray(indices, dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"indices {wanted.min()}..{wanted.max()} are outside the {len(self)} images")
        out = torch.empty(len(wanted), *self._parts[0][0].shape[1:])
        owners = np.searchsorted(self._starts, wanted, side="right") - 1
        for owner in np.unique(owners):
            features, places = self._parts[owner]
            mine = np.flatnonzero(owners == owner)
            out[mine] = features[places[wanted[mine] - self._starts[owner]]]
        return out


def cached_features(
    cache_dir: Path,
    key: FeatureKey,
    rows: NDArray[np.int64],
    take_images: TakeImages,
    encoder: nn.Module,
    processor: ImageProcessor,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
    """The features of the images of ``rows`` (ascending, at least one), computed where the cache has them not yet.

    ``progress`` is told images done and in all, and may raise to stop; what was done so far is kept. An image that
    cannot be decoded is an ``InvalidArgumentError`` naming ``rows[i]``, the dataset version's row.
    """
    kept = _Parts(cache_dir, key)
    parts: list[tuple[Tensor, NDArray[np.int64]]] = []
    done = 0
    for number in np.unique(rows // PART_ROWS):
        wanted = rows[rows // PART_ROWS == number]
        progress(done, len(rows))
        part = kept.read(number)
        missing = np.setdiff1d(wanted, part.rows)
        if len(missing):
            images = take_images(missing.tolist())
            names = [f"rows[{row}]" for row in missing]
            part = part.with_rows(missing, encode_images(encoder, processor, images, layout=key.layout, names=names))
            kept.write(number, part)
        parts.append((part.features, np.searchsorted(part.rows, wanted)))
        done += len(wanted)
    progress(done, len(rows))
    return Features(parts)


def encode_images(
    encoder: nn.Module,
    processor: ImageProcessor,
    images: Sequence[bytes],
    *,
    layout: Layout = "pooled",
    names: Sequence[str] = (),
) -> Tensor:
    """float32 features of encoded images: ``[N, width]`` pooled, or ``[N, T, width]`` tokens.

    Threads decode ahead of the encoder. An error names the image by ``names``, or as ``images[i]``.
    """
    encoder.eval()
    compute = pooled if layout == "pooled" else type(encoder).__call__
    device = next(encoder.parameters()).device
    decoded = _decoded(processor, images, names or [f"images[{i}]" for i in range(len(images))])
    with torch.inference_mode(), closing(decoded):
        parts = [
            compute(encoder, torch.from_numpy(processor.normalise(pixels)).to(device)).float().cpu()
            for pixels in decoded
        ]
    return torch.cat(parts)


def pooled(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """One vector an image, ``[N, pooled_width]``: the encoder's own ``pool``, else the mean of its tokens."""
    pool = getattr(encoder, "pool", None)
    return encoder(pixels).mean(1) if pool is None else pool(pixels)


def pooled_width(encoder: nn.Module) -> int:
    """Width of what ``pooled`` returns."""
    return getattr(encoder, "pooled_width", None) or encoder.width  # pyright: ignore[reportReturnType]


def module_digest(module: nn.Module) -> str:
    """SHA-256 (hex) over a module's class, and the names, dtypes, shapes and bytes of its weights and buffers."""
    sha = hashlib.sha256(type(module).__name__.encode())
    for name, tensor in sorted(module.state_dict().items()):
        sha.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


@dataclass(frozen=True)
class _Part:
    """Features of some rows, ascending."""

    rows: NDArray[np.int64]
    features: Tensor

    @classmethod
    def empty(cls) -> _Part:
        return cls(np.empty(0, np.int64), torch.empty(0))

    def with_rows(self, rows: NDArray[np.int64], features: Tensor) -> _Part:
        together = np.concatenate([self.rows, rows])
        order = np.argsort(together)
        return _Part(together[order], torch.cat([self.features, features])[order] if len(self.rows) else features)


class _Parts:
    """The parts of one key: their content in the machine's bounded cache, and what they are named there."""

    def __init__(self, cache_dir: Path, key: FeatureKey) -> None:
        self._folder = cache_dir / key.folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._cache = LocalCache(cache_dir / manifests.CACHE)

    def write(self, number: int, part: _Part) -> None:
        """Keeps a part where there is room for it."""
        data = save({"features": part.features.contiguous(), "rows": torch.from_numpy(part.rows)})
        kept = self._object(number, len(data), hashlib.sha256(data).hexdigest())
        try:
            with self._cache.folder([kept], lambda _: [data]):
                pass
        except ResourceExhaustedError:
            return  # readers use the room that there is: the next one computes it again
        with tempfile.NamedTemporaryFile("w", dir=self._folder, delete=False) as file:
            json.dump([kept.size, kept.sha256], file)
        os.replace(file.name, self._folder / kept.name)

    def read(self, number: int) -> _Part:
        """The part, mapped; an empty one if there is none, or it was removed or damaged."""
        try:
            wanted = self._object(number, *json.loads((self._folder / self._name(number)).read_text()))
            # What is mapped stays when the file goes.
            with self._cache.folder([wanted], _gone) as folder, safe_open(folder / wanted.path, framework="pt") as file:
                return _Part(file.get_tensor("rows").numpy(), file.get_tensor("features"))
        except (FileNotFoundError, NotFoundError, ResourceExhaustedError, SafetensorError, ValueError, TypeError):
            return _Part.empty()

    def _object(self, number: int, size: int, sha256: str) -> CachedObject:
        return CachedObject(name=self._name(number), path="part.safetensors", size=size, sha256=sha256)

    def _name(self, number: int) -> str:
        return f"part-{number:09d}.json"


def _gone(name: str) -> Iterator[bytes]:
    raise NotFoundError(f"{name} is not in the cache")


def _decoded(
    processor: ImageProcessor, images: Sequence[bytes], names: Sequence[str]
) -> Generator[NDArray[np.uint8], None, None]:
    """uint8 ``[n, H, W, 3]`` batches in order, decoded ahead by threads."""

    def decode(start: int) -> NDArray[np.uint8]:
        batch = slice(start, start + ENCODE_BATCH)
        return np.stack([processor(data, field=name) for data, name in zip(images[batch], names[batch], strict=True)])

    starts = range(0, len(images), ENCODE_BATCH)
    return ordered_prefetch(
        starts, decode, workers=LOADER.decoders, max_bytes=_DECODED_BYTES, size=lambda pixels: pixels.nbytes
    )
