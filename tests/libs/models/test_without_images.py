"""Batches without images or sound: each path is touched, changes nothing, and no process waits for another for ever."""

from __future__ import annotations

import datetime
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from rebus.data.preprocess.log_mel import LogMelConfig
from rebus.data.preprocess.media import MediaSettings
from rebus.models.audio import AudioConfig
from rebus.models.encoders.video import FramePositionsConfig
from rebus.models.io import load_tensors, save_tensors
from rebus.models.media import MediaBatch, MediaItem
from rebus.models.mllm import Mllm, MllmConfig
from rebus.models.without_images import is_data_parallel, no_images, no_sound

IMAGE = 8
# One row shows an image of four tokens, one has a sound of two, one is words alone.
SHOWN = torch.tensor([[1, IMAGE, IMAGE, IMAGE, IMAGE, 2, 3]])
HEARD = torch.tensor([[4, IMAGE, IMAGE, 2, 3, 6, 7]])
TOLD = torch.tensor([[4, 5, 1, 2, 3, 6, 7]])
# Predicted tokens of a row.
PREDICTED = 6


WHISPER = {
    "name": "whisper",
    "num_mels": 8,
    "num_frames": 20,
    "width": 8,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_width": 8,
}


def build() -> Mllm:
    """Batch norm in the encoder: what it remembers must not hear of images that are not there."""
    torch.manual_seed(0)
    config = MllmConfig(
        encoder={"name": "conv-vit", "image_size": 64, "channels": [4, 4, 4, 8], "num_layers": 1, "num_heads": 2},
        connector={"name": "average-pool", "grid_side": 2},
        decoder={"name": "llama", "width": 8, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "hidden_width": 8},
        vocab_size=9,
        image_token_id=IMAGE,
        media=MediaSettings(audio=LogMelConfig(num_mels=8, chunk_seconds=0.2)),
        audio=AudioConfig(encoder=WHISPER, connector={"name": "attention-pool", "num_tokens": 2}),
        frame_positions=FramePositionsConfig(num_frames=2),
    )
    return Mllm(config)


class Training(nn.Module):
    """The sum of next-token losses over ``total`` tokens of all processes, as data parallelism averages it."""

    def __init__(self, model: Mllm, *, total: int, processes: int) -> None:
        super().__init__()
        self.model, self._scale = model, processes / total

    def forward(self, ids: Tensor, media: MediaBatch | None) -> Tensor:
        hidden = self.model(ids, torch.arange(ids.shape[1]).expand(len(ids), -1), media=media)
        logits = self.model.logits(hidden[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum") * self._scale


def media() -> MediaBatch:
    """A picture, then a sound."""
    generator = torch.Generator().manual_seed(3)
    return MediaBatch(
        pixels=torch.randn(1, 3, 64, 64, generator=generator),
        spectrograms=torch.randn(1, 8, 20, generator=generator),
        items=[MediaItem("image", 1), MediaItem("audio", 1)],
    )


def picture() -> MediaBatch:
    return MediaBatch.of_images(media().pixels)


def sound() -> MediaBatch:
    return replace(media(), pixels=torch.zeros(0, 3, 64, 64), items=[MediaItem("audio", 1)])


def test_every_path_is_touched_and_nothing_is_changed() -> None:
    model = build()
    model.vision_encoder.stem[1].eval()  # frozen in evaluation by its owner
    modes = {name: module.training for name, module in model.named_modules()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    generator = torch.get_rng_state()

    assert model.audio is not None
    zero = no_images(model) + no_sound(model.audio)
    zero.backward()

    assert zero.item() == 0
    for name, parameter in model.named_parameters():
        if name.startswith("decoder."):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None
            assert not parameter.grad.any()
    assert {name: module.training for name, module in model.named_modules()} == modes
    torch.testing.assert_close(dict(model.named_buffers()), buffers, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), generator)


def test_one_process_alone_leaves_the_image_path_out() -> None:
    assert not is_data_parallel()
    training = Training(build(), total=PREDICTED, processes=1)
    training(TOLD, None).backward()
    assert all(p.grad is None for p in training.model.vision_encoder.parameters())


def _shard(training: Training) -> nn.Module:
    """The decoder's weights go with the whole: its word table is read outside its forward pass."""
    mesh = init_device_mesh("cpu", (2,))
    audio = training.model.audio
    assert audio is not None
    for part in (training.model.vision_encoder, training.model.connector, audio, training):
        fully_shard(part, mesh=mesh)
    return training


def _train(rank: int, folder: Path, parallel: str) -> None:
    """Two steps of process ``rank``, the gradients of the second in ``folder``. One has an image, the other a sound."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=300),
    )
    training = Training(build(), total=2 * PREDICTED, processes=2)
    wrapped = DistributedDataParallel(training) if parallel == "ddp" else _shard(training)
    for _ in range(2):
        wrapped.zero_grad()
        (wrapped(SHOWN, picture()) if rank == 0 else wrapped(HEARD, sound())).backward()
    save_tensors({name: _whole(p.grad) for name, p in training.named_parameters()}, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


def _whole(gradient: Any) -> Tensor:
    """The gradient gathered from all processes, if it is sharded."""
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_processes_with_and_without_images_learn_as_one(tmp_path: Path, parallel: str) -> None:
    alone = Training(build(), total=2 * PREDICTED, processes=1)
    alone(torch.cat([SHOWN, HEARD]), media()).backward()
    expected = {name: p.grad for name, p in alone.named_parameters()}
    assert expected["model.vision_encoder.stem.0.weight"].any()
    assert expected["model.audio.encoder.conv1.weight"].any()

    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_train, args=(rank, tmp_path, parallel)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=400)
        process.kill()  # one that still waits has failed

    assert [process.exitcode for process in processes] == [0, 0]
    for rank in range(2):
        torch.testing.assert_close(load_tensors(tmp_path / f"{rank}.safetensors"), expected)
