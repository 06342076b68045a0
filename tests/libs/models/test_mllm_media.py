"""Any interleaving of words, images, tiles, videos and sounds in one sequence."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rebus.data.encoding import Encoder, EncodingConfig, MediumSize, Row, attention_allowed
from rebus.data.preprocess import ImageProcessorConfig
from rebus.data.preprocess.log_mel import LogMelConfig
from rebus.data.preprocess.media import MediaProcessor, MediaSettings, media_config
from rebus.data.preprocess.reading import MediaReader
from rebus.data.sample import Sample, Segment, SegmentType
from rebus.errors import FailedPreconditionError, InvalidArgumentError
from rebus.generation.generator import Generator
from rebus.generation.media import MediaFeatures
from rebus.generation.requests import Prompt, Sampling
from rebus.models import save_model
from rebus.models.audio import AudioConfig
from rebus.models.encoders.video import FramePositionsConfig
from rebus.models.gated_cross_attention import GatedCrossAttentionConfig
from rebus.models.hf.llava import check_llava
from rebus.models.io import CONFIG_FILE
from rebus.models.media import MediaBatch, collate, encoder_of, reader_of
from rebus.models.mllm import Mllm, MllmConfig
from rebus.models.packing import PackedRows, pack_rows
from tests.media_files import clip, tone, wav
from tests.tiny_model import png, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
IMAGE = TOKENIZER.image_token_id
ASK, TOLD = Segment(text="is there a red cube?"), Segment(text="yes", role="assistant", loss=True)
WIDTH = 32


@dataclass(frozen=True)
class Sizes:
    """A medium takes as many tokens as it has bytes."""

    types: Collection[SegmentType] = ("image", "video", "audio")

    def size(self, segment: Segment, data: bytes, *, num_images: int, field: str) -> MediumSize:
        return MediumSize(len(data), 0 if segment.type == "audio" else 1)


def shown(kind: SegmentType, media: int, branch: int = 0) -> Segment:
    return Segment(type=kind, media=media, branch=branch)


def in_branch(segment: Segment, branch: int) -> Segment:
    return Segment(**{**vars(segment), "branch": branch})


def encode(*segments: Segment, sizes: tuple[int, ...] = (), max_images: int = 16) -> Row:
    encoder = Encoder(TOKENIZER, image_tokens=0, config=EncodingConfig(max_images=max_images), sizes=Sizes())
    return encoder.encode(Sample(id="x", segments=segments, media=[bytes(size) for size in sizes]))


def dense(model: Mllm, row: Row, features: Tensor | None) -> Tensor:
    """Hidden states ``[S, D]`` of one row by the masked path."""
    ids, positions = (torch.from_numpy(a)[None] for a in (row.input_ids, row.positions))
    mask = torch.from_numpy(attention_allowed(row.branches))[None]
    return model.decode(model.embed(ids, features), positions, mask)[0]


def test_media_of_unlike_lengths_pack_in_order_also_in_branches() -> None:
    model = tiny_model(TOKENIZER).double()
    batch = [
        encode(shown("image", 0), ASK, shown("audio", 1), in_branch(ASK, 1), shown("video", 2, 1), sizes=(2, 5, 3)),
        encode(ASK, *(in_branch(s, 1) for s in (shown("image", 1), ASK, shown("image", 0), TOLD)), sizes=(1, 4)),
        encode(ASK, TOLD),
    ]
    assert [[medium.num_tokens for medium in row.media] for row in batch] == [[2, 5, 3], [4, 1], []]
    features = {
        (index, at): torch.randn(medium.num_tokens, WIDTH, dtype=torch.float64)
        for index, row in enumerate(batch)
        for at, medium in enumerate(row.media)
    }
    packed = pack_rows(batch, image_token_id=IMAGE)
    assert sorted(packed.images) == sorted(features)
    flat = model.forward_packed(packed, torch.cat([features[place] for place in packed.images]))

    of_row = [[value for (row, _), value in features.items() if row == index] for index in range(len(batch))]
    each = [dense(model, row, torch.cat(f) if f else None) for row, f in zip(batch, of_row, strict=True)]
    torch.testing.assert_close(flat, torch.stack([each[row][at] for row, at in packed.origins]))


def test_references_and_phrases_find_their_image_behind_other_media() -> None:
    box = (0.0, 0.0, 0.5, 0.5)
    ask = Segment(**{**vars(ASK), "regions": (box,)})
    told = Segment(**{**vars(TOLD), "regions": (box,), "media": 2})
    row = encode(shown("audio", 0), shown("image", 1), shown("image", 2), ask, told, sizes=(3, 2, 4))
    packed = pack_rows([row], image_token_id=IMAGE)
    assert [reference.image for reference in packed.references] == [1 + 3]
    assert [region.image for region in packed.regions] == [2]


def test_a_row_of_too_many_images_is_refused_and_sound_is_none() -> None:
    media = shown("image", 0), shown("audio", 0), shown("video", 0)
    assert len(encode(*media, sizes=(1,), max_images=2).images) == 3
    with pytest.raises(InvalidArgumentError, match="more than max_images=1"):
        encode(*media, sizes=(1,), max_images=1)


PREPROCESS = ImageProcessorConfig(image_size=16)
MEDIA = MediaSettings(
    splitter={"name": "sub-images", "grid": 2},
    frames={"name": "uniform", "num_frames": 3},
    audio=LogMelConfig(num_mels=8, chunk_seconds=0.2),
)
WHISPER = {"name": "whisper", "num_mels": 8, "num_frames": 20, "width": 8, "num_layers": 1, "num_heads": 2}
AUDIO = AudioConfig(encoder={**WHISPER, "hidden_width": 8}, connector={"name": "attention-pool", "num_tokens": 3})
VIT = {"name": "vit", "image_size": 16, "patch_size": 8, "width": 16, "num_layers": 1, "num_heads": 2}
LLAMA = {"name": "llama", "width": WIDTH, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "hidden_width": 48}
# An image of 5 tiles, sound of two pieces, 3 frames of a video, another image.
FILES = (png((200, 30, 30)), wav(tone(0.3)), clip(frames=6, size=(32, 32)), png((30, 30, 200)))
TOKENS = (5 * 4, 2 * 3, 3 * 4, 5 * 4)
INTERLEAVED = (ASK, shown("image", 0), ASK, shown("audio", 1), shown("video", 2), shown("image", 3), TOLD)


def config(**changes: Any) -> MllmConfig:
    parts: dict[str, Any] = {
        "encoder": {**VIT, "hidden_width": 32},
        "decoder": LLAMA,
        "vocab_size": TOKENIZER.vocab_size,
        "image_token_id": IMAGE,
        "preprocess": PREPROCESS,
        "encoding": EncodingConfig(max_images=13),
        "media": MEDIA,
        "audio": AUDIO,
        "frame_positions": FramePositionsConfig(num_frames=3),
    }
    return MllmConfig(**{**parts, **changes})


def multimodal(**changes: Any) -> Mllm:
    """Weights drawn wide, so that everything that is seen or heard matters."""
    torch.manual_seed(0)
    model = Mllm(config(**changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and name.startswith(("decoder.", "frame_positions.")):
                parameter.normal_(std=0.4)
    return model


def sample(*segments: Segment) -> Sample:
    return Sample(id="x", segments=segments or INTERLEAVED, media=FILES)


def batch_of(model: Mllm, rows: list[Row]) -> tuple[PackedRows, MediaBatch]:
    """As training makes it."""
    reader, packed = reader_of(model), pack_rows(rows, image_token_id=IMAGE)
    media = [reader.read_row(row, FILES, field="media") for row in rows]
    return packed, collate([media[row][index] for row, index in packed.images], reader.processor)


def spliced(model: Mllm) -> Tensor:
    """Embeddings of ``INTERLEAVED`` put together by hand, segment after segment."""
    processor, heard = MediaProcessor(media_config(PREPROCESS, MEDIA)), model.audio
    assert heard is not None
    assert model.frame_positions is not None
    words = model.decoder.embed_tokens

    def text(*ids: int) -> Tensor:
        return words(torch.tensor(ids))

    def squares(pixels: Any, positions: Tensor | float = 0.0) -> Tensor:
        normalised = torch.from_numpy(processor.image_processor.normalise(pixels)).to(words.weight)
        return model.connector(model.vision_encoder(normalised) + positions).flatten(0, 1)

    mels = torch.from_numpy(processor.audio(FILES[1])).to(words.weight)
    t = TOKENIZER
    return torch.cat(
        [
            text(t.bos_token_id, t.user_token_id, *t.encode(ASK.text)),
            squares(processor.image(FILES[0]).pixels),
            text(*t.encode(ASK.text)),
            heard.connector(heard.encoder(mels)).flatten(0, 1),
            squares(processor.video(FILES[2])[0], model.frame_positions.position[:, None]),
            squares(processor.image(FILES[3]).pixels),
            text(t.assistant_token_id, *t.encode(TOLD.text), t.eos_token_id),
        ]
    )


def test_an_interleaved_sample_equals_features_spliced_by_hand_forward_and_gradient() -> None:
    model = multimodal().double()
    row = encoder_of(model, TOKENIZER).encode(sample())
    assert tuple(medium.num_tokens for medium in row.media) == TOKENS
    packed, media = batch_of(model, [row])
    flat = model.forward_packed(packed, model.encode_media(cast_media(media)))
    embeds = spliced(model)
    naive = model.decode(embeds[None], torch.arange(len(embeds))[None])[0]
    torch.testing.assert_close(flat, naive)
    ids, positions = torch.from_numpy(row.input_ids)[None], torch.from_numpy(row.positions)[None]
    torch.testing.assert_close(model(ids, positions, media=cast_media(media))[0], naive)

    weights, names = torch.randn_like(flat), dict(model.named_parameters())
    got = torch.autograd.grad((flat * weights).sum(), list(names.values()), allow_unused=True)
    want = torch.autograd.grad((naive * weights).sum(), list(names.values()), allow_unused=True)
    for name, left, right in zip(names, got, want, strict=True):
        assert left is not None or right is None, name
        torch.testing.assert_close(left, right)


def cast_media(media: MediaBatch) -> MediaBatch:
    assert media.spectrograms is not None
    return replace(media, pixels=media.pixels.double(), spectrograms=media.spectrograms.double())


def test_packed_documents_of_all_media_equal_documents_alone() -> None:
    model = multimodal()
    encoder = encoder_of(model, TOKENIZER)
    rows = [encoder.encode(sample()), encoder.encode(sample(shown("audio", 1), ASK, TOLD)), encode(ASK, TOLD)]
    packed, media = batch_of(model, rows)
    flat = model.forward_packed(packed, model.encode_media(media))
    for index, row in enumerate(rows):
        alone, own = batch_of(model, [row])
        expected = model.forward_packed(alone, model.encode_media(own))
        torch.testing.assert_close(flat[torch.from_numpy(packed.origins[:, 0] == index)], expected)


def test_what_comes_later_changes_nothing_before_it() -> None:
    model = multimodal()
    row = encoder_of(model, TOKENIZER).encode(sample())
    packed, media = batch_of(model, [row])
    assert media.spectrograms is not None
    before = model.forward_packed(packed, model.encode_media(media))
    starts = torch.nonzero(torch.from_numpy(row.input_ids == IMAGE))[:, 0][list(_offsets(TOKENS))].tolist()
    firsts = (0, None, 5, 8)  # the first square of each medium
    for start, first in zip(starts, firsts, strict=True):
        pixels, sound = media.pixels.clone(), media.spectrograms.clone()
        (sound if first is None else pixels[first:]).add_(1.0)
        changed = replace(media, pixels=pixels, spectrograms=sound)
        after = model.forward_packed(packed, model.encode_media(changed))
        assert torch.equal(after[:start], before[:start])
        assert (after[start:] != before[start:]).any(-1).all()

    pixels = media.pixels.clone().requires_grad_()
    hidden = model.forward_packed(packed, model.encode_media(replace(media, pixels=pixels)))
    (gradient,) = torch.autograd.grad(hidden[: starts[2]].square().sum(), pixels)
    assert gradient[:5].any()
    assert not gradient[5:].any()


def _offsets(lengths: Sequence[int]) -> Iterator[int]:
    return accumulate(lengths[:-1], initial=0)


def test_generation_with_cache_equals_recomputing_with_all_media() -> None:
    model = multimodal(decoder={**LLAMA, "num_layers": 1})
    generator, reader = Generator(model, encoder_of(model, TOKENIZER)), reader_of(model)
    prompts = [
        Prompt(segments=INTERLEAVED[:-1], media=FILES),
        Prompt(segments=[shown("audio", 1), shown("video", 2), ASK], media=FILES),
        Prompt(segments=[ASK], media=FILES),
    ]
    answers = generator.generate(prompts, Sampling(max_new_tokens=5))
    banned = sorted(set(range(6)) - {TOKENIZER.eos_token_id})
    for prompt, answer in zip(prompts, answers, strict=True):
        row = generator.encode(prompt)
        ids, media = row.input_ids.tolist(), collate(reader.read_row(row, FILES, field="media"), reader.processor)
        made: list[int] = []
        with torch.no_grad():
            while len(made) < 5 and TOKENIZER.eos_token_id not in made:
                hidden = model(torch.tensor([ids]), torch.arange(len(ids))[None], media=media)
                logits = model.logits(hidden[0, -1])
                logits[banned] = -torch.inf
                made.append(int(logits.argmax()))
                ids.append(made[-1])
        assert list(answer.token_ids) == [token for token in made if token != TOKENIZER.eos_token_id]
    assert len({answer.token_ids for answer in answers}) == 3


def test_a_saved_model_reads_media_as_it_was_trained_to(tmp_path: Path) -> None:
    model = multimodal()
    save_model(model, tmp_path)
    TOKENIZER.save(tmp_path)
    prompt = Prompt(segments=INTERLEAVED[:-1], media=FILES)
    sampling = Sampling(max_new_tokens=3)
    (expected,) = Generator(model, encoder_of(model, TOKENIZER)).generate([prompt], sampling)
    assert Generator.load(tmp_path).generate([prompt], sampling) == [expected]
    digests = {
        multimodal(**change).config.preprocess_digest for change in ({}, {"media": MediaSettings(), "audio": None})
    }
    assert len({*digests, tiny_model(TOKENIZER).config.preprocess_digest}) == 3
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    values["media"]["splitter"]["grid"] = 3
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    with pytest.raises(FailedPreconditionError, match="was trained with preprocessing"):
        Generator.load(tmp_path)


def test_what_a_model_cannot_take_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="audio and frame_positions need media"):
        config(media=None)
    with pytest.raises(InvalidArgumentError, match=r"model.audio.encoder: reads no sound"):
        Mllm(config(audio=AudioConfig(encoder=VIT)))
    with pytest.raises(InvalidArgumentError, match=r"reads 8 mels and 40 frames, the preprocessing gives \(8, 20\)"):
        Mllm(config(audio=replace(AUDIO, encoder={**WHISPER, "num_frames": 40})))
    deaf = multimodal(audio=None)
    with pytest.raises(InvalidArgumentError, match=r"segments\[3\].type: expected text, image or video, found audio"):
        encoder_of(deaf, TOKENIZER).encode(sample())
    with pytest.raises(InvalidArgumentError, match="the model hears nothing"):
        deaf.encode_audio(torch.zeros(1, 8, 20))
    with pytest.raises(InvalidArgumentError, match="model.media: an image may be many tiles"):
        _ = deaf.image_grid
    short = multimodal(frame_positions=FramePositionsConfig(num_frames=2))
    with pytest.raises(InvalidArgumentError, match=r"media\[2\]: gives 3 frames, the model tells 2 apart"):
        encoder_of(short, TOKENIZER).encode(sample())
    few = multimodal(encoding=EncodingConfig(max_images=12))
    with pytest.raises(InvalidArgumentError, match="more than max_images=12"):
        encoder_of(few, TOKENIZER).encode(sample())
    with pytest.raises(InvalidArgumentError, match="media: a LLaVA sees images of one square"):
        check_llava(deaf)
    with pytest.raises(ValueError, match="cross_attention reads images of one square each"):
        config(cross_attention=GatedCrossAttentionConfig())


def test_frames_need_squares_and_are_refused_before_any_is_decoded() -> None:
    own = replace(PREPROCESS, resize="within", min_size=4)
    reader = MediaReader(MediaProcessor(media_config(own, replace(MEDIA, splitter={"name": "single"}))), image_tokens=1)
    with pytest.raises(
        InvalidArgumentError, match="clip: a video's frames are squares, which resize='within' does not"
    ):
        reader.size(shown("video", 0), b"no video at all", num_images=1, field="clip")


def test_kept_features_are_those_of_the_same_part_read_the_same_way() -> None:
    model = multimodal(media=replace(MEDIA, splitter={"name": "dynamic", "min_tiles": 4, "off_at_images": 2}))
    encoder, features = encoder_of(model, TOKENIZER), MediaFeatures(model, cache_bytes=1 << 20)
    image, sound = shown("image", 0), shown("audio", 1)
    later = replace(sound, start_seconds=0.1)
    prompts = [[image, ASK], [image, image, ASK], [sound, ASK], [later, ASK], [image, sound, ASK]]
    found = [features([(encoder.encode_prompt(prompt, FILES), FILES)]) for prompt in prompts]
    assert [len(tokens) for tokens in found if tokens is not None] == [5 * 4, 2 * 4, 2 * 3, 3, 5 * 4 + 2 * 3]
    for prompt, tokens in zip(prompts, found, strict=True):
        row, reader = encoder.encode_prompt(prompt, FILES), reader_of(model)
        with torch.no_grad():
            expected = model.encode_media(collate(reader.read_row(row, FILES, field="media"), reader.processor))
        assert tokens is not None
        assert expected is not None
        torch.testing.assert_close(tokens, expected.reshape(tokens.shape))
