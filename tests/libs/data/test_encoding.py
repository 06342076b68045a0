"""Rows worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rebus.data.encoding import IGNORE_INDEX, Encoder, EncodingConfig, Row, attention_allowed
from rebus.data.sample import Sample, Segment
from rebus.data.tokenizer import SPECIAL_TOKENS, Tokenizer, TokenizerConfig
from rebus.errors import InvalidArgumentError, NotFoundError

TOKENIZER = Tokenizer.train(["is it red? yes no a cube", "is it red? yes no a cube"], TokenizerConfig(vocab_size=300))
T = TOKENIZER
QUESTION, YES, CUBE = T.encode("is it red?"), T.encode("yes"), T.encode("a cube")
IMAGE = [T.image_token_id] * 2


def encoder(**bounds: int) -> Encoder:
    return Encoder(TOKENIZER, image_tokens=2, config=EncodingConfig(**bounds))


def sample(*segments: Segment, images: int = 1) -> Sample:
    return Sample(id="x", segments=segments, media=[b""] * images)


PACKED = sample(
    Segment(type="image", media=0),
    Segment(text="a cube", role="assistant", loss=True, branch=1, task="caption", regions=((0.1, 0.2, 0.3, 0.4),)),
    Segment(text="is it red?", branch=2, task="color"),
    Segment(text="yes", role="assistant", loss=True, branch=2, task="color"),
)


def check_consistent(row: Row) -> None:
    assert len(row.input_ids) == len(row.labels) == len(row.positions) == len(row.branches)
    labelled = row.labels != IGNORE_INDEX
    assert (row.labels[labelled] == row.input_ids[labelled]).all()


def test_a_packed_row_by_hand() -> None:
    row = encoder().encode(PACKED)
    caption = [T.assistant_token_id, *CUBE, T.eos_token_id]
    asked = [T.user_token_id, *QUESTION, T.assistant_token_id, *YES, T.eos_token_id]
    assert row.input_ids.tolist() == [T.bos_token_id, *IMAGE, *caption, *asked]
    none = IGNORE_INDEX
    expected = [none] * 3 + [none, *CUBE, T.eos_token_id] + [none] * (len(QUESTION) + 2) + [*YES, T.eos_token_id]
    assert row.labels.tolist() == expected
    assert row.branches.tolist() == [0] * 3 + [1] * len(caption) + [2] * len(asked)
    assert row.positions.tolist() == [0, 1, 2, *range(3, 3 + len(caption)), *range(3, 3 + len(asked))]
    assert row.images == (0,)
    (phrase,) = row.phrases
    assert (phrase.image, phrase.region, phrase.token_ids) == (0, (0.1, 0.2, 0.3, 0.4), tuple(CUBE))
    check_consistent(row)


def test_tasks_choose_branches_and_keep_the_shared_prefix() -> None:
    row = encoder().encode(PACKED, tasks=["color"])
    asked = [T.user_token_id, *QUESTION, T.assistant_token_id, *YES, T.eos_token_id]
    assert row.input_ids.tolist() == [T.bos_token_id, *IMAGE, *asked]
    assert row.phrases == ()


def test_a_conversation_closes_each_answer_and_learns_only_marked_ones() -> None:
    row = encoder().encode(
        sample(
            Segment(text="is it red?"),
            Segment(text="yes", role="assistant"),
            Segment(text="is it red?"),
            Segment(text="yes", role="assistant", loss=True),
        )
    )
    turn = [T.user_token_id, *QUESTION, T.assistant_token_id, *YES, T.eos_token_id]
    assert row.input_ids.tolist() == [T.bos_token_id, *turn, *turn]
    assert (row.labels[: 1 + len(turn)] == IGNORE_INDEX).all()
    assert row.labels[-2:].tolist() == [*YES, T.eos_token_id][-2:]


def test_a_prompt_is_the_training_row_up_to_the_answer() -> None:
    whole = encoder().encode(sample(*(s for s in PACKED.segments if s.branch in (0, 2))))
    prompt = encoder().encode_prompt([PACKED.segments[0], PACKED.segments[2]])
    answer = len(YES) + 1
    for name in ("input_ids", "positions", "branches"):
        assert (getattr(prompt, name) == getattr(whole, name)[:-answer]).all()
    assert (prompt.labels == IGNORE_INDEX).all()


def test_a_prompt_that_ends_in_an_answer_goes_on_from_it() -> None:
    prompt = encoder().encode_prompt([Segment(text="is it red?"), Segment(text="yes", role="assistant")])
    ids = [T.bos_token_id, T.user_token_id, *QUESTION, T.assistant_token_id, *YES]
    assert prompt.input_ids.tolist() == ids


def test_attention_of_branches_by_hand() -> None:
    #                              prefix  branch 1  branch 2  padding
    allowed = attention_allowed(np.array([0, 0, 1, 1, 2, -1]))
    assert allowed.astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_bounds_name_the_sample_and_the_numbers() -> None:
    with pytest.raises(InvalidArgumentError, match=r"sample\[x\]: takes \d+ tokens, more than max_length_tokens=8"):
        encoder(max_length_tokens=8).encode(PACKED)
    with pytest.raises(InvalidArgumentError, match="more than max_images=0"):
        encoder(max_images=0).encode(PACKED)
    with pytest.raises(InvalidArgumentError, match=r"ordered by branch, found branches \[1, 0\]"):
        encoder().encode(sample(Segment(text="a", branch=1), Segment(text="a")))
    with pytest.raises(InvalidArgumentError, match="at least one segment"):
        encoder().encode_prompt([])
    with pytest.raises(InvalidArgumentError, match="expected text or image, found video") as caught:
        encoder().encode_prompt([Segment(text="a"), Segment(type="video", media=0)])
    assert caught.value.violations[0].field == "prompt.segments[1].type"


@pytest.mark.parametrize("text", ["a red cube", "Übermaß 日本 🙂", "tabs\tand\nlines", "<image> <eos>"])
def test_any_text_survives_the_tokenizer(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert not set(ids) & {T.image_token_id, T.eos_token_id, T.bos_token_id}
    assert TOKENIZER.encode_batch([text, "yes"]) == [ids, YES]


def test_a_saved_tokenizer_is_the_same_and_training_repeats(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.digest == TOKENIZER.digest
    assert loaded.encode("is it red?") == QUESTION
    texts = ["is it red? yes no a cube"] * 2
    assert Tokenizer.train(texts, TokenizerConfig(vocab_size=300)).digest == TOKENIZER.digest
    assert Tokenizer.train(["other words"] * 2, TokenizerConfig(vocab_size=300)).digest != TOKENIZER.digest


def test_special_tokens_have_ids_of_their_own_and_decode_to_nothing() -> None:
    ids = [T.pad_token_id, T.bos_token_id, T.eos_token_id, T.image_token_id, T.user_token_id, T.assistant_token_id]
    assert ids == list(range(len(SPECIAL_TOKENS)))
    assert T.decode([*ids, *YES]) == "yes"


def test_a_bad_tokenizer_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidArgumentError, match="not a tokenizer"):
        Tokenizer.load(tmp_path)
