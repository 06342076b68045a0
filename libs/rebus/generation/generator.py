"""Answers from a model version's folder: one streamed, or many in batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rebus.config import build
from rebus.data.encoding import Encoder, Row
from rebus.data.preprocess import ImageProcessorConfig, check_digest
from rebus.data.preprocess.media import MediaSettings, preprocess_digest
from rebus.data.tokenizer import Tokenizer
from rebus.errors import CancelledError, DataLossError, FailedPreconditionError, invalid
from rebus.generation.decoding import PaddedRows, decode, suppress
from rebus.generation.detokenizer import Detokenizer
from rebus.generation.media import MediaFeatures
from rebus.generation.requests import Chunk, Completion, FinishReason, GenerationLimits, Prompt, Sampling
from rebus.models import load_model
from rebus.models.io import CONFIG_FILE
from rebus.models.media import encoder_of
from rebus.models.mllm import Mllm

Check = Callable[[], bool]
# Key in a model's ``config.json``: the digest of the preprocessing it was trained with.
PREPROCESS_DIGEST = "preprocess_digest"


def never() -> bool:
    """The check of a request that nobody cancels."""
    return False


class Generator:
    """Serves one model. Calls may run in several threads at once; each streams independently of the others."""

    def __init__(self, model: Mllm, encoder: Encoder, limits: GenerationLimits | None = None) -> None:
        self.limits = limits or GenerationLimits()
        self._model = model.eval()
        self._encoder = encoder
        self._tokenizer: Tokenizer = encoder.tokenizer
        self._media = MediaFeatures(self._model, self.limits.image_cache_bytes)
        self._device = next(model.parameters()).device
        special = {
            self._tokenizer.pad_token_id,
            self._tokenizer.bos_token_id,
            self._tokenizer.image_token_id,
            self._tokenizer.user_token_id,
            self._tokenizer.assistant_token_id,
        }
        # Of the special tokens an answer may hold only the one that ends it.
        self._never_made = sorted(special)

    @classmethod
    def load(cls, folder: Path, limits: GenerationLimits | None = None) -> Generator:
        """Serves the model version in ``folder``.

        Raises ``FailedPreconditionError`` for a model that does not generate, or whose images would be processed
        otherwise now than when it was trained; see ``load_model`` and ``Tokenizer.load`` for damaged folders.
        """
        _check_preprocessing(folder)
        model = load_model(folder)
        if not isinstance(model, Mllm):
            raise FailedPreconditionError(f"a {type(model).__name__} does not generate; name a model of kind mllm")
        tokenizer = Tokenizer.load(folder)
        if tokenizer.vocab_size != model.config.vocab_size or tokenizer.image_token_id != model.config.image_token_id:
            raise DataLossError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and image token {tokenizer.image_token_id}, "
                f"the model {model.config.vocab_size} and {model.config.image_token_id}"
            )
        return cls(model, encoder_of(model, tokenizer), limits)

    def encode(self, prompt: Prompt) -> Row:
        """The prompt as a row; raises ``InvalidArgumentError`` naming the segment or the bound."""
        media = [at for at, segment in enumerate(prompt.segments) if segment.type != "text"]
        if len(media) > self.limits.max_images:
            raise invalid("segments", f"hold {len(media)} images, more than {self.limits.max_images}")
        for at in media:
            if not 0 <= prompt.segments[at].media < len(prompt.media):
                raise invalid(f"segments[{at}].media", f"is outside the prompt's {len(prompt.media)} media")
        row = self._encoder.encode_prompt(prompt.segments, prompt.media)
        if len(row) > self.limits.max_prompt_tokens:
            raise invalid("segments", f"take {len(row)} tokens, more than {self.limits.max_prompt_tokens}")
        return row

    def stream(self, prompt: Prompt, sampling: Sampling, cancelled: Check = never) -> Iterator[Chunk]:
        """Checks the request, then returns its chunks as they are made; the last one carries the finish reason.

        ``cancelled`` is asked before every token; ``CancelledError`` ends the stream when it says so.
        """
        self.limits.check(sampling)
        row = self.encode(prompt)
        features = self._features([prompt], [row])
        return self._stream(row, features, sampling, cancelled)

    def _stream(self, row: Row, features: Tensor | None, sampling: Sampling, cancelled: Check) -> Iterator[Chunk]:
        detokenizer = Detokenizer(self._tokenizer)
        untold: list[int] = []
        steps = self._steps([row], features, sampling, [_uniforms(sampling.seed, 0)], cancelled)
        for made, tokens in enumerate(steps, start=1):
            token = int(tokens[0])
            if token == self._tokenizer.eos_token_id:
                yield _chunk(row, made - 1, detokenizer.finish(), untold, "stop")
                return
            untold.append(token)
            text = detokenizer.push(token)
            if made == sampling.max_new_tokens:
                yield _chunk(row, made, text + detokenizer.finish(), untold, "length")
                return
            if text:
                yield _chunk(row, made, text, untold, "")
                untold = []

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        batch_size: int = 256,
        progress: Callable[[int], None] | None = None,
        cancelled: Check = never,
    ) -> list[Completion]:
        """Answers in the order of ``prompts``; those of like length are decoded together.

        ``progress`` is told after each batch how many are answered. The i-th prompt draws from seed ``(seed, i)``.
        """
        self.limits.check(sampling)
        rows = [self.encode(prompt) for prompt in prompts]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        answers: dict[int, Completion] = {}
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            features = self._features([prompts[i] for i in batch], [rows[i] for i in batch])
            uniforms = [_uniforms(sampling.seed, index) for index in batch]
            made = self._run([rows[i] for i in batch], features, sampling, uniforms, cancelled)
            answers.update(zip(batch, made, strict=True))
            if progress is not None:
                progress(len(answers))
        return [answers[index] for index in range(len(prompts))]

    def _run(
        self,
        rows: Sequence[Row],
        features: Tensor | None,
        sampling: Sampling,
        uniforms: Sequence[np.random.Generator],
        cancelled: Check,
    ) -> list[Completion]:
        made: list[list[int]] = [[] for _ in rows]
        ended: set[int] = set()
        for tokens in self._steps(rows, features, sampling, uniforms, cancelled):
            for index, token in enumerate(tokens.tolist()):
                if token == self._tokenizer.eos_token_id:
                    ended.add(index)
                elif index not in ended:
                    made[index].append(token)
            if len(ended) == len(rows):
                break
        return [
            Completion(
                text=self._tokenizer.decode(ids),
                token_ids=tuple(ids),
                finish_reason="stop" if index in ended else "length",
                num_prompt_tokens=len(rows[index]),
            )
            for index, ids in enumerate(made)
        ]

    def _steps(
        self,
        rows: Sequence[Row],
        features: Tensor | None,
        sampling: Sampling,
        uniforms: Sequence[np.random.Generator],
        cancelled: Check,
    ) -> Iterator[Tensor]:
        sampler = sampling.sampler()

        def choose(logits: Tensor) -> Tensor:
            if cancelled():
                raise CancelledError("generation was cancelled")
            numbers = torch.tensor([draw.random() for draw in uniforms], device=self._device, dtype=torch.float64)
            return sampler(suppress(logits, self._never_made), numbers)

        padded = PaddedRows.of(rows, self._tokenizer.pad_token_id, self._device)
        return decode(self._model, padded, features, choose=choose, max_new_tokens=sampling.max_new_tokens)

    def _features(self, prompts: Sequence[Prompt], rows: Sequence[Row]) -> Tensor | None:
        return self._media([(row, prompt.media) for prompt, row in zip(prompts, rows, strict=True)])


def _check_preprocessing(folder: Path) -> None:
    """Refuses a model whose stored digest names another preprocessing than this code does with its settings.

    Comes before the model is built; what else may be wrong with ``config.json`` is for ``load_model`` to say.
    """
    path = folder / CONFIG_FILE
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    stored, settings, media = values.get(PREPROCESS_DIGEST), values.get("preprocess"), values.get("media")
    if stored is None or settings is None:
        return
    image = build(ImageProcessorConfig, settings, where=f"{CONFIG_FILE}.preprocess")
    more = None if media is None else build(MediaSettings, media, where=f"{CONFIG_FILE}.media")
    check_digest(preprocess_digest(image, more), stored)


def _uniforms(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, index])


def _chunk(row: Row, made: int, text: str, token_ids: Sequence[int], reason: FinishReason) -> Chunk:
    return Chunk(
        text=text,
        token_ids=tuple(token_ids),
        finish_reason=reason,
        num_prompt_tokens=len(row),
        num_generated_tokens=made,
    )
