"""The decoder's tokenizer: byte-level BPE trained on the data, so any text is encodable and decoding is lossless."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as BackendTokenizer

from rebus.errors import InvalidArgumentError, NotFoundError, invalid

PAD, BOS, EOS, IMAGE, USER, ASSISTANT = "<pad>", "<bos>", "<eos>", "<image>", "<user>", "<assistant>"
SPECIAL_TOKENS = (PAD, BOS, EOS, IMAGE, USER, ASSISTANT)
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How the tokenizer is trained."""

    # Upper bound; a small corpus ends with fewer. At least 256 bytes and the special tokens.
    vocab_size: int = 1024
    # Pairs seen less often are not merged.
    min_frequency: int = 2
    # Texts read from the data to train on.
    max_texts: int = 50_000

    def __post_init__(self) -> None:
        if self.vocab_size < 256 + len(SPECIAL_TOKENS):
            raise ValueError(f"vocab_size={self.vocab_size} is below {256 + len(SPECIAL_TOKENS)}")
        if self.min_frequency < 1 or self.max_texts < 1:
            raise ValueError("min_frequency and max_texts must be at least 1")


class Tokenizer:
    """Text to token ids and back. Special tokens in user text are encoded as plain text, never as themselves."""

    def __init__(self, backend: BackendTokenizer) -> None:
        missing = [token for token in SPECIAL_TOKENS if backend.token_to_id(token) is None]
        if missing:
            raise invalid("tokenizer", f"lacks the special tokens {missing}")
        self._backend = backend
        self._backend.encode_special_tokens = True
        (
            self.pad_token_id,
            self.bos_token_id,
            self.eos_token_id,
            self.image_token_id,
            self.user_token_id,
            self.assistant_token_id,
        ) = (self.token_id(token) for token in SPECIAL_TOKENS)

    def token_id(self, token: str) -> int:
        """Id of a token; ``InvalidArgumentError`` for one that is not in the vocabulary."""
        found = self._backend.token_to_id(token)
        if found is None:
            raise invalid("tokenizer", f"has no token {token!r}")
        return found

    @classmethod
    def train(cls, texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
        """Learns merges from ``texts``; the same texts in the same order give the same tokenizer."""
        backend = BackendTokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            min_frequency=config.min_frequency,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def adopt(cls, folder: Path) -> tuple[Tokenizer, list[str]]:
        """The tokenizer of another language model, the special tokens that it lacks added behind its own.

        Returns those too. What its file says of padding and truncation is dropped: rows have bounds of their own.
        Raises as ``load`` does.
        """
        backend = _read(folder)
        backend.no_padding()
        backend.no_truncation()
        lacking = [token for token in SPECIAL_TOKENS if backend.token_to_id(token) is None]
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
        return cls(backend), lacking

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self._backend.get_vocab_size()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the serialised tokenizer: part of a model version's identity."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without special tokens."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [item.ids for item in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; special tokens are dropped, and the space before the first word too."""
        return self._backend.decode(list(ids), skip_special_tokens=True).removeprefix(" ")

    def save(self, folder: Path) -> None:
        """Writes ``tokenizer.json`` (readable by Hugging Face ``tokenizers``)."""
        (folder / TOKENIZER_FILE).write_text(self._backend.to_str(), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Reads ``tokenizer.json``; raises ``NotFoundError`` or ``InvalidArgumentError`` naming the file."""
        return cls(_read(folder))


def _read(folder: Path) -> BackendTokenizer:
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise NotFoundError(f"no {TOKENIZER_FILE} in {folder}")
    text = path.read_text(encoding="utf-8")
    try:
        json.loads(text)
        return BackendTokenizer.from_str(text)
    except Exception as error:  # the binding raises bare Exception for a malformed file
        raise InvalidArgumentError(f"{path.name}: not a tokenizer: {error}") from None
