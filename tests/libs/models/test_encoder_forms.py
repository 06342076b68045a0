"""What the forms of encoders promise beyond their weights: layers, sizes, packing, causality, videos."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import CLIPVisionModel, SiglipVisionModel, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder as HfWhisperEncoder

from rebus import registry
from rebus.data.preprocess import ImageProcessorConfig
from rebus.data.preprocess.log_mel import LogMel, LogMelConfig
from rebus.models.attention import dense_attention
from rebus.models.connectors.base import GivesLayers
from rebus.models.encoders.aim import Aim, AimConfig, prefix_causal_mask
from rebus.models.encoders.audio_spectrogram import AudioSpectrogramConfig, AudioSpectrogramTransformer
from rebus.models.encoders.clip import ClipVision, ClipVisionConfig
from rebus.models.encoders.conv_vit import ConvVit, ConvVitConfig
from rebus.models.encoders.dinov2 import Dinov2, Dinov2Config
from rebus.models.encoders.internvit import InternVit, InternVitConfig
from rebus.models.encoders.patch_packing import packed_attention
from rebus.models.encoders.positions import bucketed_positions, interpolate_positions
from rebus.models.encoders.siglip import Siglip2Vision, SiglipNavit, SiglipNavitConfig, SiglipVision, SiglipVisionConfig
from rebus.models.encoders.transformer import BlockConfig
from rebus.models.encoders.video import VideoEncoder, VideoEncoderConfig
from rebus.models.encoders.vision_transformer import VisionTransformer
from rebus.models.encoders.vit import Vit, VitConfig
from rebus.models.encoders.whisper import WhisperEncoder, WhisperEncoderConfig
from rebus.models.feature_cache import pooled, pooled_width
from rebus.models.mllm import Mllm, MllmConfig
from tests.libs.models.encoder_families import FAMILIES, naflex

SIZES: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "width": 24,
    "num_layers": 3,
    "num_heads": 3,
    "hidden_width": 40,
}
INTERNVIT_6B: dict[str, Any] = {"norm": "rms", "qk_norm": True, "qkv_bias": False, "final_norm": True}
FORMS: dict[str, Callable[..., VisionTransformer]] = {
    "vit": lambda **changes: Vit(VitConfig(**SIZES | changes)),
    "clip": lambda **changes: ClipVision(ClipVisionConfig(**SIZES | changes)),
    "siglip": lambda **changes: SiglipVision(SiglipVisionConfig(**SIZES | changes)),
    "siglip2": lambda **changes: Siglip2Vision(SiglipVisionConfig(**SIZES | {"use_head": True} | changes)),
    "siglip-navit": lambda **changes: SiglipNavit(SiglipNavitConfig(**SIZES | changes)),
    "dinov2": lambda **changes: Dinov2(Dinov2Config(**SIZES | {"trained_size": 32, "num_registers": 2} | changes)),
    "internvit": lambda **changes: InternVit(InternVitConfig(**SIZES | INTERNVIT_6B | changes)),
    "aim": lambda **changes: Aim(AimConfig(**SIZES | changes)),
}
forms = pytest.mark.parametrize("form", FORMS)


def seeded(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return build().eval()


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def test_vit_is_what_it_was_bit_for_bit() -> None:
    """The formula of the first release, whose checkpoints stay good."""
    vit = seeded(lambda: Vit(VitConfig()))
    pixels = torch.stack(pictures((64, 64), (64, 64)))

    x = F.conv2d(pixels, vit.patch_embed.weight, vit.patch_embed.bias, stride=16).flatten(2).transpose(1, 2)
    x = x + vit.position
    for block in vit.blocks:
        qkv = block.qkv_proj(block.norm1(x)).unflatten(-1, (3, 4, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        x = x + block.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + block.fc2(F.gelu(block.fc1(block.norm2(x))))

    assert torch.equal(vit(pixels), vit.norm(x))
    assert list(vit.state_dict())[:3] == ["position", "patch_embed.weight", "patch_embed.bias"]


@forms
def test_no_block_beyond_the_deepest_layer_runs(form: str) -> None:
    encoder = seeded(FORMS[form])
    pixels = torch.stack(pictures((32, 32)))
    calls = []
    for index, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))

    second_to_last, embedded = encoder.forward_layers(pixels, [-2, 0])

    assert calls == [0, 1]
    torch.testing.assert_close(second_to_last, seeded(lambda: FORMS[form](feature_layer=-2))(pixels))
    torch.testing.assert_close(encoder(pixels), encoder.norm(encoder.forward_layers(pixels, [-1])[0]))
    torch.testing.assert_close(embedded, encoder.embed(pixels)[:, encoder.num_prefix_tokens :])
    assert encoder(pixels).shape == (1, encoder.num_tokens, encoder.width) == (1, math.prod(encoder.grid), 24)
    with pytest.raises(ValueError, match=r"layer=4 is outside -4\.\.3"):
        encoder.forward_layers(pixels, [4])


def test_layers_of_other_encoders() -> None:
    conv = seeded(lambda: ConvVit(ConvVitConfig(channels=[4, 8], num_layers=2, hidden_width=8)))
    x = torch.stack(pictures((64, 64)))
    torch.testing.assert_close(conv.norm(conv.blocks[1](conv.forward_layers(x, [-2])[0])), conv(x))


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_other_sizes_are_as_transformers_interpolates(name: str) -> None:
    """Height and width apart, larger and smaller than the positions' grid, and as many patches in another shape."""
    reference = FAMILIES[name].build()
    assert isinstance(reference, CLIPVisionModel | SiglipVisionModel)
    encoder = FAMILIES[name].convert(reference)
    position = reference.embeddings.position_embedding.weight
    for size in ((48, 24), (16, 64), (64, 80)):
        pixels = torch.stack(pictures(size))
        found = encoder.forward_tokens(pixels)
        expected = reference(pixels, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(found, expected)
        (gradient,) = torch.autograd.grad(found.square().mean(), encoder.get_parameter("position"))
        (expected_gradient,) = torch.autograd.grad(expected.square().mean(), position)
        torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("name", ["dinov2", "dinov2-registers", "internvit", "internvit-6b"])
def test_other_sizes_are_as_dinov2_and_internvit_interpolate(name: str) -> None:
    reference = FAMILIES[name].build()
    encoder = FAMILIES[name].convert(reference)
    for size in ((48, 24), (16, 64), (64, 80)):
        pixels = torch.stack(pictures(size))
        torch.testing.assert_close(encoder.forward_tokens(pixels), reference(pixels).last_hidden_state)


@pytest.mark.parametrize("form", ["vit", "clip", "siglip", "siglip-navit", "dinov2", "internvit"])
def test_positions_learned_at_another_size(form: str) -> None:
    """``image_size`` sets the grid that connectors see; the weights are those of ``trained_size``."""
    trained = seeded(FORMS[form])
    larger = seeded(lambda: FORMS[form](image_size=48, trained_size=32))
    larger.load_state_dict(trained.state_dict())
    pixels = torch.stack(pictures((48, 48)))

    torch.testing.assert_close(larger(pixels), trained(pixels))
    assert larger.grid == (6, 6)
    assert larger(pixels).shape[1] == 36


def test_interpolation_of_a_plane_is_the_plane() -> None:
    """Bilinear weights reproduce what rises evenly; DINOv2's smoothing averages when it shrinks."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    table = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    halves = interpolate_positions(table, (2, 4), mode="bilinear")
    torch.testing.assert_close(halves[:, 0].view(2, 4)[:, 0], torch.tensor([0.5, 2.5]))
    torch.testing.assert_close(halves[:, 1].view(2, 4)[0], torch.arange(4.0))
    assert interpolate_positions(table, (4, 4)) is table
    smoothed = interpolate_positions(table, (1, 1), mode="bilinear", antialias=True)
    torch.testing.assert_close(smoothed, torch.tensor([[1.5, 1.5]]))


@forms
@pytest.mark.parametrize("feature_layer", [-1, -2])
def test_packed_images_are_what_they_are_alone(form: str, feature_layer: int) -> None:
    encoder = seeded(lambda: FORMS[form](feature_layer=feature_layer))
    images = pictures((32, 32), (16, 40), (16, 40), (8, 8), (47, 25))
    weights = [torch.randn(len(x), 24) for x in encoder.forward_packed(images)]

    def losses(features: list[Tensor]) -> list[Tensor]:
        loss = torch.stack([(x * w).mean() for x, w in zip(features, weights, strict=True)]).sum()
        return list(torch.autograd.grad(loss, list(encoder.parameters()), allow_unused=True, materialize_grads=True))

    packed, separate = encoder.forward_packed(images), [encoder(image[None])[0] for image in images]

    assert [len(x) for x in packed] == [16, 10, 10, 1, 15]
    torch.testing.assert_close(packed, separate)
    torch.testing.assert_close(losses(packed), losses(separate))


@pytest.mark.paper("idefics2")
def test_packed_images_are_as_idefics2_encodes_them_padded() -> None:
    reference = FAMILIES["idefics2"].build()
    encoder = FAMILIES["idefics2"].convert(reference)
    assert isinstance(encoder, SiglipNavit)
    sizes = [(32, 32), (16, 40), (72, 8), (24, 56)]
    images = pictures(*sizes)
    padded, mask = torch.zeros(4, 3, 72, 56), torch.zeros(4, 9, 7, dtype=torch.bool)
    for index, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
        padded[index, :, :height, :width] = image
        mask[index, : height // 8, : width // 8] = True

    expected = reference(padded, patch_attention_mask=mask).last_hidden_state

    for index, found in enumerate(encoder.forward_packed(images)):
        torch.testing.assert_close(found, expected[index, mask[index].flatten()])


def test_packed_images_are_as_siglip2_encodes_them_padded() -> None:
    reference = FAMILIES["siglip2"].build()
    encoder = FAMILIES["siglip2"].convert(reference)
    assert isinstance(encoder, Siglip2Vision)
    images = pictures((32, 32), (16, 40), (72, 8), (24, 56))

    expected = reference(*naflex(images)).last_hidden_state

    for found, theirs in zip(encoder.forward_packed(images), expected, strict=True):
        torch.testing.assert_close(found, theirs[: len(found)])


def test_packed_attention_is_a_block_diagonal_mask() -> None:
    lengths = [3, 1, 1, 4, 3]
    q, k, v = torch.randn(3, 1, 12, 2, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    owner = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths))
    mask = (owner[:, None] == owner)[None, None]
    torch.testing.assert_close(packed_attention(q, k, v, lengths), dense_attention(q, k, v, mask))


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), side=st.integers(1, 70))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_bucketed_positions_are_the_fractions_cells(rows: int, columns: int, side: int) -> None:
    """Each coordinate is floor(i / n * side), but where that is a whole number rounding may take the cell before."""
    found = bucketed_positions((rows, columns), side).view(rows, columns)
    for axis, count in ((found[:, 0] // side, rows), (found[0] % side, columns)):
        for place, cell in enumerate(axis.tolist()):
            exact = place * side / count
            assert cell == math.floor(exact) or (abs(exact - round(exact)) < 1e-4 and cell == round(exact) - 1)
    assert torch.equal(found, found[:, :1] // side * side + found[:1] % side)


def test_aim_mask_is_the_definition() -> None:
    mask = prefix_causal_mask(5, torch.tensor([0, 1, 3, 5]))
    for n, prefix in enumerate((0, 1, 3, 5)):
        for query, key in product(range(5), range(5)):
            assert mask[n, 0, query, key] == (key <= query or key < prefix)
    with pytest.raises(ValueError, match=r"prefix_lengths=\[6\] must be within 0..5"):
        prefix_causal_mask(5, torch.tensor([6]))


def test_aim_attention_by_hand() -> None:
    """One block, token by token: softmax over what the definition of the prefix lets each token see."""
    aim = seeded(lambda: Aim(AimConfig(**SIZES | {"num_layers": 1})))
    pixels, prefixes = torch.stack(pictures((32, 32), (32, 32))), torch.tensor([3, 11])
    block: Any = aim.blocks[0]
    expected = []
    for x, prefix in zip(aim.embed(pixels), prefixes.tolist(), strict=True):
        q, k, v = block.qkv_proj(block.norm1(x)).unflatten(-1, (3, 3, 8)).unbind(1)
        rows = []
        for place in range(16):
            seen = list(range(max(prefix, place + 1)))
            weights = (torch.einsum("nh,snh->sn", q[place], k[seen]) / 8**0.5).softmax(0)
            rows.append(torch.einsum("sn,snh->nh", weights, v[seen]).flatten())
        x = x + block.out_proj(torch.stack(rows))
        expected.append(aim.norm(x + block.fc2(F.gelu(block.fc1(block.norm2(x))))))
    torch.testing.assert_close(aim.forward_causal(pixels, prefixes), torch.stack(expected))


@given(prefix=st.integers(0, 16), changed=st.integers(0, 15))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_aim_sees_no_later_patch_but_the_prefix(prefix: int, changed: int) -> None:
    aim = seeded(FORMS["aim"])
    (image,) = pictures((32, 32))
    other = image.clone()
    row, column = divmod(changed, 4)
    other[:, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] += 1.0

    before, after = aim.forward_causal(torch.stack([image, other]), torch.tensor([prefix, prefix]))

    same = (before == after).all(1)
    first = 0 if changed < prefix else changed
    assert same[:first].all()
    assert not same[first:].any()


def test_aim_serves_bidirectionally() -> None:
    """As the paper does downstream: the whole image is its prefix."""
    aim = seeded(FORMS["aim"])
    pixels = torch.stack(pictures((32, 32)))
    torch.testing.assert_close(aim(pixels), aim.forward_causal(pixels, torch.tensor([16])))
    biased = {name.split(".")[1] for name, _ in aim.blocks.named_parameters() if name.endswith("bias")}
    assert biased == {"norm1", "norm2"}


def test_aim_embeds_by_hand() -> None:
    """Normed patches and, for row and column of each, sines and cosines: the column's half first."""
    aim = seeded(FORMS["aim"])
    (image,) = pictures((16, 24))
    found = aim.embed(image[None])[0]
    for row, column in product(range(2), range(3)):
        patch = image[:, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        embedded = torch.einsum("dcij,cij->d", aim.patch_embed.weight, patch) + aim.patch_embed.bias
        position = [
            wave(place * 10_000 ** (-k / 6))
            for place in (column, row)
            for wave in (math.sin, math.cos)
            for k in range(6)
        ]
        torch.testing.assert_close(found[row * 3 + column], aim.patch_norm(embedded) + torch.tensor(position))


def test_whisper_starts_with_its_positions_and_reads_log_mels() -> None:
    encoder = seeded(
        lambda: WhisperEncoder(WhisperEncoderConfig(num_frames=20, width=24, num_layers=1, num_heads=3, hidden_width=8))
    )
    torch.manual_seed(0)
    reference = HfWhisperEncoder(
        WhisperConfig(d_model=24, encoder_layers=1, encoder_attention_heads=3, max_source_positions=10)
    )
    torch.testing.assert_close(encoder.position, reference.embed_positions.weight.detach())
    log_mel = LogMel(LogMelConfig(chunk_seconds=0.2)).features(torch.linspace(-1, 1, 3_000).numpy())

    features = encoder(torch.from_numpy(log_mel)[None])

    assert features.shape == (1, encoder.num_tokens, 24) == (1, 10, 24)
    with pytest.raises(ValueError, match=r"spectrograms are \[80, 19\], expected \[80, 20\]"):
        encoder(torch.zeros(1, 80, 19))


def test_ast_tokens_lie_on_mels_and_frames() -> None:
    config = AudioSpectrogramConfig(
        num_mels=12, num_frames=22, patch_size=6, mel_stride=3, frame_stride=4, width=24, num_layers=0, num_heads=3
    )
    encoder = seeded(lambda: AudioSpectrogramTransformer(config))
    sound = torch.zeros(1, 12, 22)
    changed = sound.clone()
    changed[0, 11, 21] = 1.0  # the last mel of the last frame is in the last patch alone
    different = (encoder(changed) != encoder(sound)).any(-1)[0]
    assert encoder.grid == (3, 5)
    assert different.nonzero().flatten().tolist() == [14]
    with pytest.raises(ValueError, match=r"expected \[12, 22\]"):
        encoder(torch.zeros(1, 22, 12))


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_videos_are_their_frames_told_apart_by_time(positions: Any) -> None:
    spec = {"name": "vit", **SIZES}
    encoder = seeded(lambda: VideoEncoder(VideoEncoderConfig(image=spec, num_frames=4, positions=positions)))
    frames = torch.stack(pictures(*[(32, 32)] * 6)).unflatten(0, (2, 3))
    if positions == "learned":
        torch.testing.assert_close(encoder(frames)[1, 16:32], encoder.image(frames[1, 1:2])[0])
        nn.init.normal_(encoder.position)

    found = encoder(frames)

    for video, frame in product(range(2), range(3)):
        expected = encoder.image(frames[video, frame][None])[0] + encoder.position[frame]
        torch.testing.assert_close(found[video].unflatten(0, (3, 16))[frame], expected)
    (second,) = encoder.forward_layers(frames, [-2])
    (of_frame,) = encoder.image.forward_layers(frames[0, 2:], [-2])
    torch.testing.assert_close(second[0, 32:], of_frame[0] + encoder.position[2])
    assert (encoder.grid, encoder.num_tokens, encoder.image_size, encoder.width) == ((16, 4), 64, 32, 24)
    with pytest.raises(ValueError, match="a video of 5 frames"):
        encoder(torch.zeros(1, 5, 3, 32, 32))


def test_a_video_gives_layers_where_its_frames_do() -> None:
    vit = seeded(lambda: VideoEncoder(VideoEncoderConfig(image={"name": "vit", **SIZES})))
    assert isinstance(vit, GivesLayers)
    assert vit.num_layers == 3
    net = seeded(lambda: VideoEncoder(VideoEncoderConfig(image={"name": "efficientnet-lite0", "image_size": 64})))
    assert not isinstance(net, GivesLayers)


def test_a_model_reads_chosen_layers() -> None:
    """Of a recipe: the dense connector's, and LLaVA's second to last."""
    parts: dict[str, Any] = {
        "decoder": {"name": "llama", "width": 32, "num_layers": 1, "hidden_width": 32},
        "vocab_size": 9,
        "image_token_id": 1,
        "preprocess": ImageProcessorConfig(image_size=32),
    }
    pixels = torch.stack(pictures((32, 32)))
    dense = {"name": "dense", "layers": [1, 2], "last_layer": 3}
    model = seeded(lambda: Mllm(MllmConfig(encoder={"name": "clip", **SIZES}, connector=dense, **parts)))
    layers = model.vision_encoder.forward_layers(pixels, [1, 2, 3])
    torch.testing.assert_close(model.encode_images(pixels), model.connector(layers))

    llava = {"name": "clip", **SIZES, "feature_layer": -2}
    model = seeded(lambda: Mllm(MllmConfig(encoder=llava, **parts)))
    (features,) = model.vision_encoder.forward_layers(pixels, [2])
    torch.testing.assert_close(model.encode_images(pixels), model.connector(features))


def test_pools_where_the_form_has_a_summary() -> None:
    pixels = torch.stack(pictures((32, 32)))
    for form in ("clip", "siglip", "dinov2", "vit"):
        encoder = seeded(FORMS[form])
        assert pooled(encoder, pixels).shape == (1, pooled_width(encoder))
    siglip = seeded(FORMS["siglip"])
    torch.testing.assert_close(siglip.pool(pixels), siglip(pixels).mean(1))


def test_recipes_can_name_every_encoder() -> None:
    for name in ("aim", "clip", "dinov2", "internvit", "siglip", "siglip2", "siglip-navit", "vit"):
        encoder = registry.build("encoder", {"name": name, **SIZES, "trained_size": 0})
        assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, *[math.prod(encoder.grid)], encoder.width)
    small = {"width": 24, "num_layers": 1, "num_heads": 3, "hidden_width": 8}
    for name in ("whisper", "ast"):
        sound = registry.build("encoder", {"name": name, **small, "num_mels": 16, "num_frames": 20})
        assert sound(torch.zeros(1, 16, 20)).shape == (1, math.prod(sound.grid), 24)
    video = registry.build("encoder", {"name": "video", "image": {"name": "siglip", **SIZES}})
    assert video(torch.zeros(1, 8, 3, 32, 32)).shape == (1, math.prod(video.grid), 24)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (
            lambda: BlockConfig(width=24, num_heads=5, hidden_width=8),
            "width=24 must be a positive multiple of num_heads=5",
        ),
        (lambda: BlockConfig(width=24, num_heads=4, hidden_width=0), "hidden_width=0"),
        (lambda: BlockConfig(width=4, num_heads=1, hidden_width=1, activation="relu"), "activation='relu'"),  # pyright: ignore[reportArgumentType]
        (lambda: BlockConfig(width=4, num_heads=1, hidden_width=1, qkv_bias="some"), "qkv_bias='some'"),  # pyright: ignore[reportArgumentType]
        (lambda: BlockConfig(width=4, num_heads=1, hidden_width=1, norm="batch"), "norm='batch'"),  # pyright: ignore[reportArgumentType]
        (lambda: ClipVisionConfig(patch_size=300), "patch_size=300"),
        (lambda: SiglipVisionConfig(trained_size=8), "trained_size=8"),
        (lambda: SiglipVisionConfig(feature_layer=13), "feature_layer=13 is outside -13..12"),
        (lambda: Dinov2Config(num_registers=-1), "num_registers=-1"),
        (lambda: AimConfig(width=18, num_heads=3), "width=18"),
        (lambda: WhisperEncoderConfig(num_frames=3), "num_frames=3"),
        (lambda: WhisperEncoderConfig(width=3, num_heads=1), "width=3"),
        (lambda: WhisperEncoderConfig(feature_layer=5), "feature_layer=5"),
        (lambda: AudioSpectrogramConfig(patch_size=200), "patch_size=200"),
        (lambda: AudioSpectrogramConfig(mel_stride=0), "mel_stride=0"),
        (lambda: VideoEncoderConfig(num_frames=0), "num_frames=0"),
        (lambda: FORMS["vit"]()(torch.zeros(1, 3, 4, 32)), "4x32 pixels is smaller than a patch of 8"),
    ],
)
def test_bad_settings_are_named(build: Callable[[], object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build()
