"""Training reads its media through the loader: the same rows as one by one, in threads, errors naming the sample."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rebus.data.encoding import Encoder, EncodingConfig
from rebus.data.preprocess import ImageProcessorConfig
from rebus.data.preprocess.media import MediaProcessor, MediaProcessorConfig
from rebus.data.preprocess.reading import MediaReader, Medium
from rebus.data.sample import Sample, Segment
from rebus.data.tokenizer import Tokenizer, TokenizerConfig
from rebus.errors import InvalidArgumentError
from rebus.training import prefetch
from rebus.training.prefetch import Prefetcher
from rebus.training.sources import SampleList
from rebus.training.task import Batch
from rebus.training.tasks import mllm
from tests.libs.training.scenes_run import Recorder, execute, recipe, samples

PROCESSOR = MediaProcessor(MediaProcessorConfig(image=ImageProcessorConfig(image_size=32)))
READER = MediaReader(PROCESSOR, image_tokens=4)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    texts = (segment.text for sample in samples() for segment in sample.segments if segment.text)
    tokenizer = Tokenizer.train(texts, TokenizerConfig(vocab_size=300))
    return Encoder(tokenizer, image_tokens=4, config=EncodingConfig())


class Watched(MediaReader):
    """Notes which threads decode; the first two images wait for each other, so that one thread would not do."""

    def __init__(self) -> None:
        super().__init__(PROCESSOR, image_tokens=4)
        self.threads: list[str] = []
        self._together = threading.Barrier(2)

    def read(self, segment: Segment, data: bytes, *, num_images: int, field: str) -> Medium:
        self.threads.append(threading.current_thread().name)
        if len(self.threads) <= 2:
            self._together.wait(timeout=20)
        return super().read(segment, data, num_images=num_images, field=field)


def test_rows_are_prepared_in_threads_and_are_those_of_one_by_one(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rebus.data.loader.available_cpus", lambda: 2)
    rows, watched = samples(), Watched()
    prepared = mllm._PreparedRows(SampleList(rows), (), encoder, watched)
    wanted = np.array([7, 2, 2, 11, 0, 5, 7])

    found = prepared.take(wanted, mllm._Budget(0))

    assert set(watched.threads) == {"prefetch-0", "prefetch-1"}
    for item, index in zip(found, wanted, strict=True):
        row = encoder.encode(rows[index])
        np.testing.assert_array_equal(item.row.input_ids, row.input_ids)
        expected = [PROCESSOR.image_processor(rows[index].media[number]) for number in row.images]
        np.testing.assert_array_equal(np.concatenate([medium.values for medium in item.media]), np.array(expected))


def test_rows_that_are_kept_are_not_read_again(encoder: Encoder) -> None:
    class Once(SampleList):
        def take(self, indices: Any, /) -> list[Sample]:
            taken.extend(indices)
            return super().take(indices)

    taken: list[int] = []
    prepared, budget = mllm._PreparedRows(Once(samples()), (), encoder, READER), mllm._Budget(1 << 30)

    for _ in range(2):
        prepared.take(np.array([3, 1, 3]), budget)

    assert taken == [3, 1]


def test_a_bad_image_names_its_sample(encoder: Encoder) -> None:
    rows = samples()
    rows[4] = replace(rows[4], media=[rows[4].media[0][:60], *rows[4].media[1:]])
    prepared = mllm._PreparedRows(SampleList(rows), (), encoder, READER)

    with pytest.raises(InvalidArgumentError) as caught:
        prepared.take(np.arange(8), mllm._Budget(0))
    assert caught.value.violations[0].field == f"sample[{rows[4].id}].media[0]"


def test_losses_do_not_depend_on_threads_or_on_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uncached = {"task": {**recipe().task, "cache_mib": 0}}
    one, many = Recorder(tmp_path / "one"), Recorder(tmp_path / "many")
    monkeypatch.setattr("rebus.data.loader.available_cpus", lambda: 1)
    execute(recipe(), one)
    monkeypatch.setattr("rebus.data.loader.available_cpus", lambda: 3)
    execute(recipe(**uncached), many)

    assert many.losses == one.losses


@pytest.mark.parametrize(("num_bytes", "ahead"), [(0, 2), (prefetch._AHEAD_BYTES, 1), (10 * prefetch._AHEAD_BYTES, 1)])
def test_batches_made_ahead_are_bounded_in_number_and_in_bytes(num_bytes: int, ahead: int) -> None:
    made = 0
    more = threading.Semaphore(0)

    def batches() -> Any:
        nonlocal made
        while True:
            made += 1
            more.release()
            yield Batch(data=made, num_bytes=num_bytes)

    with Prefetcher(batches(), 100) as prefetched:
        assert next(iter(prefetched)).data == 1
        for _ in range(1 + ahead):
            assert more.acquire(timeout=60)
        assert not more.acquire(timeout=0.2)
    assert made == 1 + ahead
