"""Incremental text equals the text of the whole, and is never half a character."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.data.tokenizer import Tokenizer
from rebus.generation.detokenizer import Detokenizer
from tests.tiny_model import tiny_tokenizer


@functools.cache
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


def pieces(ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer())
    return [*(detokenizer.push(token) for token in ids), detokenizer.finish()]


@given(st.text(max_size=20))
def test_any_text_comes_back_piece_by_piece(text: str) -> None:
    ids = tokenizer().encode(text)
    found = pieces(ids)
    assert "".join(found) == tokenizer().decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in found)


@given(st.lists(st.integers(min_value=6, max_value=261), max_size=30))
def test_any_bytes_join_to_the_decoding_of_all(ids: list[int]) -> None:
    assert "".join(pieces(ids)) == tokenizer().decode(ids)


@pytest.mark.parametrize("character", ["ß", "語", "\U0001f9ff"])
def test_a_character_of_several_tokens_comes_whole_with_its_last(character: str) -> None:
    ids = tokenizer().encode(f"a{character}b")
    assert len(ids) > 3, "the character must not be a token of its own"
    found = [piece for piece in pieces(ids) if piece]
    assert found == ["a", character, "b"]


def test_an_unfinished_character_is_told_at_the_end_only() -> None:
    ids = tokenizer().encode("a\U0001f9ff")[:-1]
    found = pieces(ids)
    assert found[-1].strip("\ufffd") == ""
    assert found[-1] != ""
    assert "".join(found[:-1]) == "a"
