"""The loader against decoding the samples of ``take`` one by one."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rebus.data.dataset import DatasetReader, derive_version, open_version, write_version
from rebus.data.images import decode_image
from rebus.data.loader import _GROUP_ROWS, LoaderConfig, _group_length, load_images, load_samples
from rebus.data.preprocess import ImageProcessor, ImageProcessorConfig
from rebus.data.rows import media_views
from rebus.data.sample import Sample, Segment
from rebus.errors import InvalidArgumentError
from rebus.store import Store

COUNT = 40
# Every mixture of stages in the caller's thread and in threads of their own, and blocks of one row.
CONFIGS = [
    LoaderConfig(decode_threads=decoders, read_threads=readers, **bounds)
    for decoders, readers in itertools.product([0, 1, 3], [0, 1, 2])
    for bounds in ({}, {"block_rows": 3, "read_bytes": 1, "decoded_bytes": 1}, {"block_bytes": 1})
]


def picture(number: int, format: str) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((20 + number, 50 - number)).save(buffer, format)
    return buffer.getvalue()


def samples() -> Iterator[Sample]:
    for n in range(COUNT):
        media = [picture(n, ("JPEG", "PNG")[(n + i) % 2]) for i in range(n % 3)]
        images = [Segment(type="image", media=i) for i in range(len(media))]
        yield Sample(id=f"s{n}", segments=[*images, Segment(text=f"row {n}")], media=media)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> DatasetReader:
    store = Store.open((tmp_path_factory.mktemp("loader") / "store").as_uri())
    return open_version(store, write_version(store, "datasets/x", samples(), batch_rows=7).name)


def plain(reader: DatasetReader, rows: list[int]) -> list[list[np.ndarray]]:
    return [[decode_image(data) for data in sample.media] for sample in reader.take(rows)]


def assert_same(found: list[list[np.ndarray]], expected: list[list[np.ndarray]]) -> None:
    assert [len(images) for images in found] == [len(images) for images in expected]
    for ours, theirs in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@given(rows=st.lists(st.integers(0, COUNT - 1), max_size=60), config=st.sampled_from(CONFIGS))
@settings(max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_images_come_in_the_order_asked_for(reader: DatasetReader, rows: list[int], config: LoaderConfig) -> None:
    assert_same(list(load_images(reader, iter(rows), config=config)), plain(reader, rows))


@pytest.mark.parametrize("config", CONFIGS[::4])
def test_samples_come_in_the_order_asked_for(reader: DatasetReader, config: LoaderConfig) -> None:
    rows = np.random.default_rng(0).permutation(COUNT)

    found = load_samples(reader, rows, lambda sample: sample, size=lambda _: 1, config=config)

    assert list(found) == reader.take(rows)


def test_rows_that_were_dropped_stay_out(reader: DatasetReader) -> None:
    fewer = derive_version(reader.store, reader.version.name, drop=[0, 5, 6])
    kept = open_version(reader.store, fewer.name)

    assert_same(list(load_images(kept, range(kept.num_samples))), plain(kept, list(range(kept.num_samples))))


def test_a_processor_gives_its_own_pixels(reader: DatasetReader) -> None:
    processor = ImageProcessor(ImageProcessorConfig(image_size=16))

    found = list(load_images(reader, [4, 8, 2], decode=processor))

    expected = [[processor(data) for data in sample.media] for sample in reader.take([4, 8, 2])]
    assert_same(found, expected)


def test_an_endless_order_is_read_only_so_far_ahead(reader: DatasetReader) -> None:
    asked = itertools.count()
    config = LoaderConfig(block_rows=4, read_bytes=1, decoded_bytes=1, decode_threads=2)
    images = load_images(reader, (next(asked) % COUNT for _ in itertools.count()), config=config)

    assert_same(list(itertools.islice(images, 90)), plain(reader, [n % COUNT for n in range(90)]))
    images.close()
    # Blocks: the one under decoding, one that waits, one that is read.
    assert 90 <= next(asked) <= 90 + 3 * 4 + 4


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_no_more_is_loaded_than_the_bound_and_a_group_of_rows_a_thread(reader: DatasetReader, threads: int) -> None:
    loaded: list[str] = []
    config = LoaderConfig(decode_threads=threads, decoded_bytes=1)
    images = load_samples(
        reader, itertools.cycle(range(COUNT)), lambda s: loaded.append(s.id), size=lambda _: 1, config=config
    )

    for consumed in range(1, 60):
        next(images)
        assert len(loaded) <= consumed + _GROUP_ROWS * (1 + threads)
    images.close()


@pytest.mark.parametrize(
    ("rows", "held", "threads", "length"),
    [
        (256, 256 * 70_000, 2, 7),  # by their bytes
        (256, 256, 2, 8),
        (8, 8, 2, 4),  # some for every thread
        (8, 8, 64, 1),
        (3, 300 << 20, 0, 1),
        (0, 0, 2, 1),
    ],
)
def test_a_group_is_small_and_leaves_rows_for_every_thread(rows: int, held: int, threads: int, length: int) -> None:
    assert _group_length(rows, held, threads) == length


def test_closing_early_leaves_no_thread(reader: DatasetReader) -> None:
    images = load_images(reader, itertools.cycle(range(COUNT)), config=LoaderConfig(decode_threads=3, read_threads=2))
    next(images)
    assert len([t for t in threading.enumerate() if t.name.startswith("prefetch-")]) == 5

    images.close()

    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch-")]


@pytest.mark.parametrize("config", [LoaderConfig(decode_threads=0, read_threads=0), LoaderConfig(decode_threads=3)])
def test_a_bad_image_is_named_at_its_place(store: Store, config: LoaderConfig) -> None:
    rows = list(samples())[:10]
    bad = Sample(id="bad", segments=rows[4].segments, media=[*rows[4].media[:-1], rows[4].media[-1][:60]])
    version = write_version(store, "datasets/x", [*rows, bad]).name
    images = load_images(open_version(store, version), [4, 5, 10, 7], config=config)

    assert [len(next(images)), len(next(images))] == [1, 2]
    with pytest.raises(InvalidArgumentError) as caught:
        next(images)
    assert caught.value.violations[0].field == f"{version}.rows[10].media[0]"
    assert list(images) == []


def test_a_row_outside_is_refused(reader: DatasetReader) -> None:
    with pytest.raises(InvalidArgumentError, match=f"row {COUNT} is outside the {COUNT} rows"):
        list(load_images(reader, [0, COUNT]))


@given(
    rows=st.lists(st.lists(st.binary(max_size=9), max_size=3), max_size=9),
    start=st.integers(0, 9),
    length=st.integers(0, 9),
)
@settings(max_examples=60, derandomize=True)
def test_views_are_the_media_of_any_slice(rows: list[list[bytes]], start: int, length: int) -> None:
    column = pa.chunked_array([rows[:4], rows[4:]], type=pa.list_(pa.large_binary())).slice(start, length)

    assert media_views(column) == [[memoryview(data) for data in media] for media in column.to_pylist()]


@pytest.mark.parametrize("bad", [{"decode_threads": -1}, {"read_threads": -1}, {"block_rows": 0}, {"read_bytes": 0}])
def test_settings_outside_their_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        LoaderConfig(**bad)


@pytest.mark.slow
def test_images_come_in_order_from_s3(s3_store: Store) -> None:
    version = write_version(s3_store, "datasets/x", samples(), batch_rows=7)
    reader = open_version(s3_store, version.name)
    rows = np.random.default_rng(1).integers(0, COUNT, 100).tolist()

    assert_same(
        list(load_images(reader, rows, config=LoaderConfig(read_threads=2, block_rows=16))), plain(reader, rows)
    )
