"""An ``Mllm`` that reads images by cross-attention: shut it is the language model, packed and cached it is itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rebus.data.encoding import Encoder, EncodingConfig, Row, attention_allowed
from rebus.data.sample import Sample, Segment
from rebus.errors import FailedPreconditionError, InvalidArgumentError
from rebus.generation.generator import Generator
from rebus.generation.requests import Prompt, Sampling
from rebus.models import images_beside, load_model, save_model
from rebus.models.gated_cross_attention import GatedCrossAttentionConfig, cross_attentions, unwrapped, visible_images
from rebus.models.hf import export_folder
from rebus.models.mllm import Mllm
from rebus.models.packing import pack_rows
from tests.tiny_model import png, question, tiny_model, tiny_processor, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
BASE = tiny_model(TOKENIZER)
ENCODER = Encoder(TOKENIZER, image_tokens=1, config=EncodingConfig(max_length_tokens=256, max_images=4))
PROCESSOR = tiny_processor()
RED, BLUE = png((200, 30, 30)), png((30, 30, 200))


def build(*, open_gates: bool) -> Mllm:
    """``BASE`` with layers that read images; open, they matter."""
    torch.manual_seed(1)
    config = GatedCrossAttentionConfig(every=2, num_heads=2, hidden_width=24)
    model = Mllm(dataclasses.replace(BASE.config, cross_attention=config)).eval()
    with unwrapped(model.decoder.layers):
        model.load_state_dict(BASE.state_dict())
    if open_gates:
        with torch.no_grad():
            for layer in cross_attentions(model.decoder.layers):
                for name, parameter in layer.named_parameters():
                    torch.nn.init.constant_(parameter, 0.7) if "alpha" in name else parameter.mul_(1.5)
                layer.get_submodule("cross_attn.v_proj").weight.normal_(std=1.0)  # pyright: ignore[reportCallIssue]
    return model


def rows() -> list[Row]:
    """Two images with questions in branches, one with an image of its own; text alone; text, then an image."""
    first, second, third = (Segment(type="image", media=at) for at in range(3))
    told = Segment(text="yes", role="assistant", loss=True)

    def branch(segment: Segment, at: int) -> Segment:
        return dataclasses.replace(segment, branch=at)

    ask = Segment(text="is there a red cube?")
    samples = [
        [first, ask, second, *(branch(s, 1) for s in (third, ask, told)), *(branch(s, 2) for s in (ask, told))],
        [ask, told],
        [ask, first, told],
    ]
    return [ENCODER.encode(Sample(id="x", segments=s, media=[b""] * 3)) for s in samples]


def pixels(count: int) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def test_shut_gates_leave_the_language_model_as_it_is_bit_for_bit() -> None:
    model, row = build(open_gates=False), rows()[2]
    ids, positions = torch.from_numpy(row.input_ids)[None], torch.from_numpy(row.positions)[None]
    with torch.no_grad():
        expected = BASE.decoder(BASE.decoder.embed_tokens(ids), positions)
        assert torch.equal(model(ids, positions, None, pixels(1)), expected)
        opened = build(open_gates=True)(ids, positions, None, pixels(1))
        packed = pack_rows([row], image_token_id=TOKENIZER.image_token_id)
        flat = model.forward_packed(packed, model.encode_images(pixels(1)))
        kept = BASE.decoder.forward_packed(BASE.decoder.embed_tokens(packed.input_ids), packed.positions, packed.layout)
        assert torch.equal(flat, kept)
    assert not torch.allclose(opened, expected, atol=1e-2)


def test_packed_rows_equal_rows_one_by_one_forward_and_gradient() -> None:
    """Branches do not see each other's images, nor rows their neighbours'."""
    model, given = build(open_gates=True).double(), rows()
    packed = pack_rows(given, image_token_id=TOKENIZER.image_token_id)
    shown = [pixels(3).double(), pixels(0).double(), pixels(1).double() + 1]
    flat_pixels = torch.stack([shown[row][index] for row, index in packed.images])
    weights = torch.randn(BASE.decoder.config.width, generator=torch.Generator().manual_seed(0)).double()

    flat = model.forward_packed(packed, model.encode_images(flat_pixels))
    (flat @ weights).square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64)
    for index, row in enumerate(given):
        mask = torch.from_numpy(attention_allowed(row.branches[None]))
        ids, positions = torch.from_numpy(row.input_ids)[None], torch.from_numpy(row.positions)[None]
        hidden = model(ids, positions, mask, shown[index])[0]
        mine = packed.origins[:, 0] == index
        at = torch.from_numpy(packed.origins[mine, 1])
        torch.testing.assert_close(flat[torch.from_numpy(mine)], hidden[at])
        total = total + (hidden[at] @ weights).square().sum()
    total.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name not in found), name
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, msg=lambda text, name=name: f"{name}: {text}")
    # Each layer that was put in, and the connector behind it, has learned something.
    assert all(found[name].any() for name in found if "cross_attention" in name or name.startswith("connector"))


def test_a_row_of_one_branch_is_read_by_flamingos_rule() -> None:
    starts = torch.tensor([[0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0]], dtype=torch.bool)
    features = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    found = images_beside.of_rows(starts, features, torch.zeros(2, 6, 8), None)
    assert torch.equal(found.visible, visible_images(starts, 2))
    assert torch.equal(found.features[0], features[:2])
    assert torch.equal(found.features[1], torch.stack([features[2], torch.zeros(4, 8)]))
    assert torch.equal(found.at_last.visible[:, 0], torch.tensor([[False, True], [True, False]]))


PROMPTS = [
    question("is there a red cube?", [RED]),
    question("is there a red cube?", [BLUE]),
    question("how many small spheres are there? is there a red cube?", [RED, BLUE]),
    question("no"),
    Prompt(
        segments=[
            Segment(type="image", media=0),
            Segment(type="image", media=1, branch=1),
            Segment(text="yes", branch=1),
            Segment(text="is there a red cube?", branch=2),
        ],
        media=[RED, BLUE],
    ),
]


def recompute(model: Mllm, prompt: Prompt, count: int) -> list[int]:
    """Greedy decoding of one prompt by whole forward passes, without a cache."""
    row = ENCODER.encode_prompt(prompt.segments)
    ids, branches, positions = row.input_ids.tolist(), row.branches.tolist(), row.positions.tolist()
    banned = sorted(set(range(6)) - {TOKENIZER.eos_token_id})
    media = [prompt.media[at] for at in row.images]
    decoded = torch.from_numpy(PROCESSOR.normalise(PROCESSOR.batch(media))) if media else None
    made: list[int] = []
    with torch.no_grad():
        while len(made) < count:
            mask = torch.from_numpy(attention_allowed(torch.tensor([branches]).numpy()))
            logits = model.logits(model(torch.tensor([ids]), torch.tensor([positions]), mask, decoded)[0, -1])
            logits[banned] = -torch.inf
            token = int(logits.argmax())
            if token == TOKENIZER.eos_token_id:
                break
            made.append(token)
            ids, branches, positions = [*ids, token], [*branches, branches[-1]], [*positions, positions[-1] + 1]
    return made


def test_cached_generation_equals_recomputing_token_for_token(tmp_path: Path) -> None:
    model = build(open_gates=True)
    save_model(model, tmp_path)
    TOKENIZER.save(tmp_path)
    assert "| tokens an image | 1 |" in (tmp_path / "model.md").read_text()
    generator = Generator.load(tmp_path)
    expected = [recompute(model, prompt, 10) for prompt in PROMPTS]
    assert expected[0] != expected[1], "the image must matter"
    for batch_size in (1, 2, 8):
        answers = generator.generate(PROMPTS, Sampling(max_new_tokens=10), batch_size=batch_size)
        assert [list(answer.token_ids) for answer in answers] == expected


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model, row = build(open_gates=False), rows()[2]
    ids, positions = torch.from_numpy(row.input_ids)[None], torch.from_numpy(row.positions)[None]
    with pytest.raises(InvalidArgumentError, match="the text has 1 image tokens, the images give 2"):
        model(ids, positions, None, pixels(2))
    save_model(model, tmp_path / "model")
    assert isinstance(load_model(tmp_path / "model"), Mllm)
    for decoder_only in (True, False):
        with pytest.raises(FailedPreconditionError, match="cross_attention"):
            export_folder(tmp_path / "model", tmp_path / "hf", decoder_only=decoder_only)
