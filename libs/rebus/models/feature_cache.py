"""Features of a frozen image encoder, computed once for the images of a dataset version.

A cache is a folder ``features/<key>/`` of safetensors parts and, written last, a manifest with their SHA-256. The key
is a digest of everything that the features depend on, so that a stale cache cannot be found. A build that was
interrupted goes on after its last intact part; a damaged cache is built anew, since losing it costs time and never
results.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from rebus import config as configs
from rebus.data.preprocess import ImageProcessor
from rebus.errors import AlreadyExistsError, DataLossError, NotFoundError
from rebus.store import Store, manifests

# Images encoded together. More would not be faster on a CPU: the activations would leave its caches.
ENCODE_BATCH = 8
# Images a part; what an interrupted build may have to repeat.
PART_IMAGES = 256
_DECODE_THREADS = 2
_TENSOR = "features"

# ``pooled``: one vector an image, ``tokens``: one a place on the encoder's grid.
Layout = Literal["pooled", "tokens"]


class ImageSource(Protocol):
    """Random access to encoded images."""

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int], /) -> list[bytes]:
        """The images at ``indices``, in that order."""
        ...


@dataclass(frozen=True, kw_only=True)
class FeatureKey:
    """Everything that features depend on."""

    # Digest of the dataset version, and which of its images in which order.
    dataset: str
    selection: str
    # ``module_digest`` of the encoder, ``ImageProcessor.digest``.
    encoder: str
    preprocess: str
    layout: Layout = "pooled"

    @property
    def folder(self) -> str:
        """Where the features lie in a store."""
        return f"features/{configs.digest(asdict(self))[:32]}"


class Features:
    """The features of N images, mapped from files: memory holds what is taken, not what lies there."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, indices: NDArray[np.int64] | Sequence[int]) -> Tensor:
        """float32 ``[n, ...]`` of the images at ``indices``, in that order."""
        wanted = np.asarray(indices, dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"indices {wanted.min()}..{wanted.max()} are outside the {len(self)} images")
        out = torch.empty(len(wanted), *self._parts[0].shape[1:])
        owners = np.searchsorted(self._starts, wanted, side="right") - 1
        for owner in np.unique(owners):
            places = np.flatnonzero(owners == owner)
            out[places] = self._parts[owner][wanted[places] - self._starts[owner]]
        return out


def cached_features(
    store: Store,
    key: FeatureKey,
    images: ImageSource,
    encoder: nn.Module,
    processor: ImageProcessor,
    *,
    cache_dir: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
    """The features of ``images`` under ``key``, computed where the store does not have them yet.

    ``progress`` is told images done and in all, and may raise to stop; what was done so far is kept. An image that
    cannot be decoded is an ``InvalidArgumentError`` naming ``images[i]``.
    """
    folder = key.folder
    try:
        return _fetch(store, folder, cache_dir, len(images))
    except NotFoundError:
        pass
    except DataLossError:
        store.delete_prefix(folder)
    _build(store, folder, key.layout, images, encoder, processor, progress)
    return _fetch(store, folder, cache_dir, len(images))


def encode_images(
    encoder: nn.Module,
    processor: ImageProcessor,
    images: Sequence[bytes],
    *,
    layout: Layout = "pooled",
    first: int = 0,
) -> Tensor:
    """float32 features of encoded images: ``[N, width]`` pooled, or ``[N, T, width]`` tokens.

    Threads decode ahead of the encoder. An error names ``images[first + i]``.
    """
    encoder.eval()
    compute = pooled if layout == "pooled" else type(encoder).__call__
    device = next(encoder.parameters()).device
    with torch.inference_mode():
        parts = [
            compute(encoder, torch.from_numpy(processor.normalise(pixels)).to(device)).float().cpu()
            for pixels in _decoded(processor, images, first)
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


def _fetch(store: Store, folder: str, cache_dir: Path, count: int) -> Features:
    local = manifests.fetch(store, folder, cache_dir / "features")
    features = Features([load_file(path)[_TENSOR] for path in sorted(local.glob("*.safetensors"))])
    if len(features) != count:
        raise DataLossError(f"{folder} holds features of {len(features)} images, {count} were expected")
    return features


def _build(
    store: Store,
    folder: str,
    layout: Layout,
    images: ImageSource,
    encoder: nn.Module,
    processor: ImageProcessor,
    progress: Callable[[int, int], None],
) -> None:
    names: list[str] = []
    for start in range(0, len(images), PART_IMAGES):
        stop = min(start + PART_IMAGES, len(images))
        names.append(f"part-{start:09d}.safetensors")
        path = f"{folder}/{names[-1]}"
        progress(start, len(images))
        if not _intact(store, path, stop - start):
            features = encode_images(encoder, processor, images.take(range(start, stop)), layout=layout, first=start)
            store.put(path, save({_TENSOR: features}, {"sha256": _sha256(features)}))
    progress(len(images), len(images))
    try:
        manifests.publish(store, folder, names)
    except AlreadyExistsError:
        return  # another process built the same features meanwhile


def _intact(store: Store, path: str, count: int) -> bool:
    """Whether an unfinished build left this part whole."""
    if not store.exists(path):
        return False
    data = store.get(path)
    try:
        features = load(data)[_TENSOR]
    except (SafetensorError, KeyError):
        return False
    return len(features) == count and _sha256(features).encode() in data[: 8 + int.from_bytes(data[:8], "little")]


def _sha256(features: Tensor) -> str:
    return hashlib.sha256(features.contiguous().numpy().tobytes()).hexdigest()


def _decoded(processor: ImageProcessor, images: Sequence[bytes], first: int) -> Iterator[NDArray[np.uint8]]:
    """uint8 ``[n, H, W, 3]`` batches in order; at most a few are held."""

    def decode(start: int) -> NDArray[np.uint8]:
        batch = images[start : start + ENCODE_BATCH]
        return np.stack([processor(data, field=f"images[{first + start + i}]") for i, data in enumerate(batch)])

    pending: deque[Future[NDArray[np.uint8]]] = deque()
    with ThreadPoolExecutor(_DECODE_THREADS) as pool:
        for start in range(0, len(images), ENCODE_BATCH):
            pending.append(pool.submit(decode, start))
            if len(pending) > _DECODE_THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
