"""The feature cache: equal to encoding directly, computed once, resumable, self-healing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rebus.data.preprocess import ImageProcessor, ImageProcessorConfig
from rebus.errors import InvalidArgumentError
from rebus.models import feature_cache
from rebus.models.feature_cache import FeatureKey, Features, cached_features, encode_images, module_digest

PROCESSOR = ImageProcessor(ImageProcessorConfig(image_size=8))
KEY = FeatureKey(dataset="d", encoder="e", preprocess="p")
COUNT = 11


class Encoder(nn.Module):
    """Four tokens of three features; counts the images it sees."""

    image_size, width = 8, 3

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 4, stride=4)
        self.seen = 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen += len(pixels)
        return self.conv(pixels).flatten(2).transpose(1, 2)


@dataclass
class Pictures:
    """Encoded images in memory; notes which were asked for."""

    images: list[bytes]
    asked: list[int] = field(default_factory=list)

    def take(self, indices: Sequence[int]) -> list[bytes]:
        self.asked += indices
        return [self.images[index] for index in indices]


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder()


@pytest.fixture
def pictures() -> Pictures:
    rng = np.random.default_rng(0)
    return Pictures([png(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(COUNT)])


@pytest.fixture
def build(
    pictures: Pictures, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Features]:
    monkeypatch.setattr(feature_cache, "PART_ROWS", 4)

    def run(
        rows: Sequence[int] = range(COUNT),
        key: FeatureKey = KEY,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Features:
        return cached_features(tmp_path, key, np.array(rows), pictures.take, encoder, PROCESSOR, progress=progress)

    return run


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def expected(encoder: Encoder, pictures: Pictures) -> Tensor:
    """One image at a time, without the cache's machinery."""
    with torch.no_grad():
        return torch.cat([encoder(torch.from_numpy(PROCESSOR.normalise(PROCESSOR(p)[None]))) for p in pictures.images])


def test_equals_encoding_directly_and_is_computed_once(
    build: Callable[..., Features], encoder: Encoder, pictures: Pictures
) -> None:
    wanted = expected(encoder, pictures).mean(1)
    encoder.seen = 0
    torch.testing.assert_close(build().take(range(COUNT)), wanted)
    assert encoder.seen == COUNT
    torch.testing.assert_close(build().take([9, 0, 4, 4]), wanted[[9, 0, 4, 4]])
    assert encoder.seen == COUNT


def test_tokens_are_another_cache(build: Callable[..., Features], encoder: Encoder, pictures: Pictures) -> None:
    build()
    tokens = build(key=replace(KEY, layout="tokens"))
    torch.testing.assert_close(tokens.take(range(COUNT)), expected(encoder, pictures))


@pytest.mark.parametrize("name", ["dataset", "encoder", "preprocess", "layout"])
def test_every_field_of_the_key_counts(name: str) -> None:
    assert replace(KEY, **{name: "tokens"}).folder != KEY.folder


def test_rows_asked_for_later_are_added(build: Callable[..., Features], encoder: Encoder, pictures: Pictures) -> None:
    wanted = expected(encoder, pictures).mean(1)
    for rows, asked in (([1, 3, 9], [1, 3, 9]), (range(COUNT), [0, 2, 4, 5, 6, 7, 8, 10]), ([2, 9], [])):
        pictures.asked = []
        torch.testing.assert_close(build(rows).take(range(len(rows))), wanted[list(rows)])
        assert pictures.asked == asked


def test_an_interrupted_build_goes_on_after_its_last_part(
    build: Callable[..., Features], encoder: Encoder, pictures: Pictures, tmp_path: Path
) -> None:
    def stop_late(done: int, total: int) -> None:
        if done == 8:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        build(progress=stop_late)
    assert encoder.seen == 8

    pictures.asked = []
    torch.testing.assert_close(build().take(range(COUNT)), expected(encoder, pictures).mean(1))
    assert pictures.asked == [8, 9, 10]


@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_part_is_computed_anew(
    build: Callable[..., Features], encoder: Encoder, pictures: Pictures, tmp_path: Path, cut: bool
) -> None:
    build()
    _, sha256 = json.loads((tmp_path / KEY.folder / "part-000000001.json").read_text())
    path = tmp_path / "objects" / "objects" / sha256
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data[:40] if cut else data)
    pictures.asked = []
    torch.testing.assert_close(build().take(range(COUNT)), expected(encoder, pictures).mean(1))
    assert pictures.asked == [4, 5, 6, 7]
    assert not list((tmp_path / KEY.folder).glob("tmp*"))


def test_parts_share_the_bound_of_the_machines_cache(
    build: Callable[..., Features],
    encoder: Encoder,
    pictures: Pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = expected(encoder, pictures).mean(1)
    torch.testing.assert_close(build().take(range(COUNT)), wanted)
    objects = list((tmp_path / "objects" / "objects").iterdir())
    assert len(objects) == 3
    largest = max(path.stat().st_size for path in objects)
    monkeypatch.setenv("REBUS_CACHE_BYTES", str(largest))
    torch.testing.assert_close(build().take(range(COUNT)), wanted)
    assert [path.stat().st_size <= largest for path in (tmp_path / "objects" / "objects").iterdir()] == [True]
    monkeypatch.setenv("REBUS_CACHE_BYTES", "10")  # no room for any part
    torch.testing.assert_close(build().take(range(COUNT)), wanted)


def test_a_broken_image_is_named_by_its_row(build: Callable[..., Features], pictures: Pictures) -> None:
    pictures.images[9] = pictures.images[9][:40]
    with pytest.raises(InvalidArgumentError, match=r"rows\[9\]"):
        build([1, 9])


def test_many_images_come_in_order(encoder: Encoder, pictures: Pictures) -> None:
    many = pictures.images * 5
    found = encode_images(encoder, PROCESSOR, many, layout="tokens")
    torch.testing.assert_close(found, expected(encoder, Pictures(many)))
    found.requires_grad_(True)  # an ordinary tensor, fit for training on


def test_a_row_outside_is_refused(build: Callable[..., Features]) -> None:
    features = build()
    for index in (-1, COUNT):
        with pytest.raises(IndexError, match="outside the 11 images"):
            features.take([index])


def test_the_digest_of_a_module_sees_every_weight(encoder: Encoder) -> None:
    before = module_digest(encoder)
    assert module_digest(encoder) == before
    with torch.no_grad():
        encoder.conv.bias[2] += 1e-3  # pyright: ignore[reportOptionalSubscript]
    assert module_digest(encoder) != before
