"""One loader over part of the corpus, in a process of its own: ``python -m tools.bench.loading.contenders``.

The window to read comes as JSON; one line of JSON comes back. The clock runs from after the imports, of which each
makes its own, to the last sample, so opening the data and starting workers count.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SIDE = 224  # of what the resizing contenders give
_WORKERS = 2
_BATCH = 64
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Window:
    """The same samples for both sides: whole shards, and the rows that hold what they hold."""

    store: str
    version: str
    shards: list[str]
    first_row: int
    num_rows: int


# (samples, pixels) of each item that a loader yields; READY first, when its clock is to start.
Pixels = Iterator[tuple[int, int]]
READY = (0, 0)


def rebus(window: Window) -> Pixels:
    """Our loader with its default settings, in random order."""
    from rebus.data.images import decode_image

    return _rebus(window, _shuffled(window), decode_image)


def rebus_in_sequence(window: Window) -> Pixels:
    """Our loader in the order of the rows, which is that of the shards."""
    from rebus.data.images import decode_image

    return _rebus(window, range(window.first_row, window.first_row + window.num_rows), decode_image)


def rebus_resize(window: Window) -> Pixels:
    """The same through the processor that models are trained and served with."""
    import torch  # noqa: F401  # which the processor would import at its first picture; the peer imports it too

    from rebus.data.preprocess import ImageProcessor, ImageProcessorConfig

    return _rebus(window, _shuffled(window), ImageProcessor(ImageProcessorConfig(image_size=SIDE)))


def _rebus(window: Window, rows: Sequence[int], decode: Any) -> Pixels:
    from rebus.data.loader import load_images

    yield READY
    for images in load_images(_reader(window), rows, decode=decode):
        yield len(images), sum(_area(pixels) for pixels in images)


def rebus_decode_only(window: Window) -> Pixels:
    """The decoder alone over bytes in memory, in as many threads as the loader has. Reading is not timed."""
    from rebus.data.images import decode_image
    from rebus.data.loader import DEFAULT

    media = [sample.media[0] for sample in _reader(window).take(_shuffled(window))]
    parts: list[list[int]] = [[] for _ in range(DEFAULT.decoders)]

    def work(part: int) -> None:
        parts[part] += [_area(decode_image(data)) for data in media[part :: len(parts)]]

    yield READY
    threads = [threading.Thread(target=work, args=(part,)) for part in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield len(media), sum(map(sum, parts))


def webdataset(window: Window, *, workers: int, decoder: str, resize: bool = False) -> Pixels:
    """WebDataset as its documentation sets it up."""
    import webdataset as wds
    from torch.utils.data import DataLoader

    yield READY
    dataset = wds.WebDataset(window.shards, shardshuffle=False)  # pyright: ignore[reportAttributeAccessIssue]
    dataset = dataset.decode(_simplejpeg if decoder == "simplejpeg" else decoder).to_tuple("jpg")
    dataset = dataset.map_tuple(_resized) if resize else dataset
    if workers:
        dataset = dataset.batched(_BATCH) if resize else dataset
        dataset = DataLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=4 if resize else 16)
    for (pixels,) in dataset:
        samples = pixels.shape[0] if pixels.ndim == 4 else 1
        yield samples, samples * _area(pixels)


def _simplejpeg(key: str, data: bytes) -> np.ndarray | None:
    """A decoder that a user of WebDataset may write."""
    import simplejpeg

    return simplejpeg.decode_jpeg(data) if key.endswith("jpg") else None


def _resized(image: Any) -> np.ndarray:
    from PIL import Image

    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _area(pixels: Any) -> int:
    return int(pixels.shape[-3]) * int(pixels.shape[-2])


def _reader(window: Window) -> Any:
    from rebus.data.dataset import open_version
    from rebus.store import Store

    return open_version(Store.open(window.store), window.version)


def _shuffled(window: Window) -> list[int]:
    return (window.first_row + np.random.default_rng(_SEED).permutation(window.num_rows)).tolist()


CONTENDERS: dict[str, Callable[[Window], Pixels]] = {
    "rebus": rebus,
    "rebus, in sequence": rebus_in_sequence,
    "rebus, 224": rebus_resize,
    "decode only": rebus_decode_only,
    "webdataset": lambda window: webdataset(window, workers=0, decoder="rgb8"),
    "webdataset, 2 workers": lambda window: webdataset(window, workers=_WORKERS, decoder="rgb8"),
    "webdataset, 224": lambda window: webdataset(window, workers=0, decoder="pil", resize=True),
    "webdataset, 224, 2 workers": lambda window: webdataset(window, workers=_WORKERS, decoder="pil", resize=True),
    "webdataset + simplejpeg": lambda window: webdataset(window, workers=0, decoder="simplejpeg"),
    "webdataset + simplejpeg, 2 workers": lambda window: webdataset(window, workers=_WORKERS, decoder="simplejpeg"),
}


def main() -> None:
    """Runs one contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(CONTENDERS))
    parser.add_argument("window", help="JSON")
    options = parser.parse_args()
    window = Window(**json.loads(options.window))
    warnings.simplefilter("ignore")  # of the peer: forked beside other threads, arrays that are not writable
    started, samples, area = 0.0, 0, 0
    for more, pixels in CONTENDERS[options.name](window):
        if (more, pixels) == READY:
            started = time.perf_counter()
        samples, area = samples + more, area + pixels
    print(json.dumps({"samples": samples, "pixels": area, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
