"""Cached, padded, batched decoding against recomputing everything for every token."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch

from rebus.data.sample import Segment
from rebus.data.tokenizer import Tokenizer, TokenizerConfig
from rebus.errors import CancelledError, DataLossError, FailedPreconditionError, InvalidArgumentError
from rebus.generation.generator import PREPROCESS_DIGEST, Generator
from rebus.generation.requests import GenerationLimits, Prompt, Sampling
from rebus.models import save_model
from rebus.models.io import CONFIG_FILE
from rebus.models.mllm import Mllm
from tests.tiny_model import png, question, tiny_encoder, tiny_model, tiny_processor, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODEL = tiny_model(TOKENIZER)
ENCODER, PROCESSOR = tiny_encoder(TOKENIZER), tiny_processor()
SHORT = Sampling(max_new_tokens=4)
RED, BLUE = png((200, 30, 30)), png((30, 30, 200))
PROMPTS = [
    question("is there a red cube?", [RED]),
    question("yes", [BLUE]),
    question("how many small spheres are there? is there a red cube?", [RED, BLUE]),
    question("no"),
    question("is there a red cube?", [BLUE], branch=1),
]


@pytest.fixture
def generator() -> Generator:
    return Generator(MODEL, ENCODER)


def recompute(prompt: Prompt, count: int, model: Mllm = MODEL) -> list[int]:
    """Greedy decoding of one prompt without a cache, from the model's whole forward pass."""
    row = ENCODER.encode_prompt(prompt.segments)
    ids, banned = row.input_ids.tolist(), sorted(set(range(6)) - {TOKENIZER.eos_token_id})
    pixels = None
    if row.images:
        decoded = PROCESSOR.batch([prompt.media[at] for at in row.images])
        pixels = torch.from_numpy(PROCESSOR.normalise(decoded))
    made: list[int] = []
    with torch.no_grad():
        while len(made) < count:
            positions = torch.arange(len(ids))[None]
            logits = model.logits(model(torch.tensor([ids]), positions, None, pixels)[0, -1])
            logits[banned] = -torch.inf
            token = int(logits.argmax())
            if token == TOKENIZER.eos_token_id:
                break
            made.append(token)
            ids.append(token)
    return made


EXPECTED = [recompute(prompt, 12) for prompt in PROMPTS]


def model_that_ends(prompt: Prompt, after: int) -> Mllm:
    """The model, made to end its answer after ``after`` tokens: ``<eos>`` takes the next one's embedding."""
    stop = recompute(prompt, after + 1)[after]
    model = tiny_model(TOKENIZER)
    with torch.no_grad():
        model.decoder.embed_tokens.weight[TOKENIZER.eos_token_id] = 1.01 * model.decoder.embed_tokens.weight[stop]
    return model


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_equal_uncached_greedy_token_for_token(generator: Generator, batch_size: int) -> None:
    answers = generator.generate(PROMPTS, Sampling(max_new_tokens=12), batch_size=batch_size)
    assert [list(answer.token_ids) for answer in answers] == EXPECTED
    assert len({tuple(ids) for ids in EXPECTED}) > 2, "the tiny model must not answer everything alike"


def test_the_image_matters(generator: Generator) -> None:
    red, blue = (question("is there a red cube?", [image]) for image in (RED, BLUE))
    answers = generator.generate([red, blue], Sampling(max_new_tokens=12))
    assert answers[0].token_ids != answers[1].token_ids


def test_a_branch_does_not_see_its_sibling(generator: Generator) -> None:
    """A question in branch 2 is answered as if the question in branch 1 had not been asked."""
    image, asked = Segment(type="image", media=0), Segment(text="is there a red cube?", branch=2)
    other = Segment(text="how many small spheres are there?", branch=1)
    together = Prompt(segments=[image, other, asked], media=[RED])
    alone = Prompt(segments=[image, asked], media=[RED])
    answers = generator.generate([together, alone], Sampling(max_new_tokens=12))
    assert answers[0].token_ids == answers[1].token_ids


def test_stream_equals_generate_and_counts(generator: Generator) -> None:
    chunks = list(generator.stream(PROMPTS[0], Sampling(max_new_tokens=12)))
    answer = generator.generate(PROMPTS[:1], Sampling(max_new_tokens=12))[0]
    assert tuple(t for chunk in chunks for t in chunk.token_ids) == answer.token_ids
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [""] * (len(chunks) - 1)
    assert (chunks[-1].finish_reason, answer.finish_reason) == ("length", "length")
    assert chunks[-1].num_generated_tokens == 12
    assert chunks[-1].num_prompt_tokens == len(ENCODER.encode_prompt(PROMPTS[0].segments))


def test_each_request_stops_by_itself() -> None:
    model = model_that_ends(PROMPTS[0], after=3)
    generator = Generator(model, ENCODER)
    answers = generator.generate(PROMPTS, Sampling(max_new_tokens=10))
    assert [list(answer.token_ids) for answer in answers] == [recompute(p, 10, model) for p in PROMPTS]
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    assert (len(answers[0].token_ids), answers[0].finish_reason) == (3, "stop")
    chunks = list(generator.stream(PROMPTS[0], Sampling(max_new_tokens=10)))
    assert (chunks[-1].num_generated_tokens, chunks[-1].finish_reason) == (3, "stop")
    assert "".join(chunk.text for chunk in chunks) == answers[0].text


def test_samples_depend_on_the_seed_alone(generator: Generator) -> None:
    sampling = Sampling(max_new_tokens=8, temperature=1.5, top_p=0.95, seed=7)
    streamed = [token for chunk in generator.stream(PROMPTS[0], sampling) for token in chunk.token_ids]
    batched = generator.generate(PROMPTS, sampling, batch_size=8)
    again = generator.generate(PROMPTS, sampling, batch_size=2)
    assert list(batched[0].token_ids) == streamed
    assert [a.token_ids for a in batched] == [a.token_ids for a in again]
    other = generator.generate(PROMPTS[:1], Sampling(max_new_tokens=8, temperature=1.5, top_p=0.95, seed=8))
    assert list(other[0].token_ids) != streamed


def test_cancelling_stops_before_the_next_token(generator: Generator) -> None:
    cancelled = threading.Event()
    stream = generator.stream(PROMPTS[3], Sampling(max_new_tokens=50), cancelled.is_set)
    next(stream)
    cancelled.set()
    with pytest.raises(CancelledError):
        next(stream)
    with pytest.raises(CancelledError):
        generator.generate(PROMPTS, Sampling(), cancelled=cancelled.is_set)


def save(folder: Path, tokenizer: Tokenizer = TOKENIZER) -> None:
    save_model(MODEL, folder)
    tokenizer.save(folder)


def test_a_loaded_folder_answers_as_the_model_that_was_saved(generator: Generator, tmp_path: Path) -> None:
    save(tmp_path)
    loaded = Generator.load(tmp_path)
    sampling = Sampling(max_new_tokens=8)
    assert loaded.generate(PROMPTS, sampling) == generator.generate(PROMPTS, sampling)


def test_another_preprocessing_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**values, PREPROCESS_DIGEST: "0" * 64}))
    with pytest.raises(FailedPreconditionError, match="trained with preprocessing 000000000000, this code does"):
        Generator.load(tmp_path)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    save(tmp_path, Tokenizer.train(["other words"], TokenizerConfig(vocab_size=270)))
    with pytest.raises(DataLossError, match="the tokenizer has"):
        Generator.load(tmp_path)


def test_progress_is_told_per_batch(generator: Generator) -> None:
    told: list[int] = []
    generator.generate(PROMPTS, Sampling(max_new_tokens=1), batch_size=2, progress=told.append)
    assert told == [2, 4, 5]


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        (question("yes"), Sampling(max_new_tokens=0), r"sampling\.max_new_tokens: 0 is outside 1\.\.20"),
        (question("yes"), Sampling(max_new_tokens=21), r"sampling\.max_new_tokens: 21"),
        (question("yes " * 40), SHORT, r"segments: take \d+ tokens, more than 32"),
        (question("yes", [RED, RED, RED]), SHORT, "segments: hold 3 images, more than 2"),
        (Prompt(segments=[Segment(type="image", media=1)], media=[RED]), SHORT, r"segments\[0\]\.media"),
        (Prompt(segments=[]), SHORT, "prompt: must hold at least one segment"),
        (question("yes", [b"no image"]), SHORT, r"images\[0\]: not a PNG"),
        (question("yes"), Sampling(max_new_tokens=4, temperature=-1.0), "sampling: temperature"),
    ],
)
def test_a_bad_request_is_named_before_anything_is_made(prompt: Prompt, sampling: Sampling, message: str) -> None:
    limits = GenerationLimits(max_prompt_tokens=32, max_new_tokens=20, max_images=2)
    bounded = Generator(MODEL, ENCODER, limits)
    with pytest.raises(InvalidArgumentError, match=message):
        bounded.stream(prompt, sampling)
