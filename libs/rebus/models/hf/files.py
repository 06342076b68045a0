"""Safetensors in one file or many: ``model.safetensors``, or shards that ``model.safetensors.index.json`` lists.

Only JSON and safetensors are read, and never a pickle. Headers are read first, so that everything can be checked before
a weight is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rebus.errors import DataLossError, InvalidArgumentError, NotFoundError, ResourceExhaustedError, invalid

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
MAX_JSON_BYTES = 32 << 20
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies and what its header says."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor; ``DataLossError`` names the file where it cannot be read."""
        try:
            with safe_open(str(self.path), framework="pt", device="cpu") as file:
                return file.get_tensor(self.name)
        except (SafetensorError, OSError) as error:
            raise DataLossError(f"{self.path.name}: {self.name}: unreadable: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A mapping of at most ``MAX_JSON_BYTES``; errors name the file."""
    if not path.is_file():
        raise NotFoundError(f"no {path.name} in {path.parent}")
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise ResourceExhaustedError(f"{path.name} is {size} bytes, more than {MAX_JSON_BYTES}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{path.name}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise invalid(path.name, f"expected a mapping, found {type(values).__name__}")
    return values


def stored_tensors(folder: Path, *, max_bytes: int) -> dict[str, Stored]:
    """Every tensor of the folder's weights by name, from the headers alone.

    Raises ``NotFoundError`` for a folder without safetensors, ``ResourceExhaustedError`` where the files exceed
    ``max_bytes`` together, and ``DataLossError`` for unreadable headers, a shard that is listed and not there, or an
    index that does not say what the shards hold.
    """
    index = _read_index(folder)
    names = [WEIGHTS_FILE] if index is None else sorted(set(index.values()))
    paths = [folder / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if index is None and missing:
        raise NotFoundError(f"no {WEIGHTS_FILE} and no {INDEX_FILE} in {folder}; other formats are not read")
    if missing:
        raise DataLossError(f"{INDEX_FILE} lists {', '.join(missing[:5])}, which {folder} lacks")
    if (total := sum(path.stat().st_size for path in paths)) > max_bytes:
        raise ResourceExhaustedError(f"the weights take {total} bytes, more than {max_bytes}")
    found: dict[str, Stored] = {}
    for path in paths:
        for tensor in _header(path):
            if tensor.name in found:
                raise DataLossError(f"{tensor.name} is in {found[tensor.name].path.name} and in {path.name}")
            found[tensor.name] = tensor
    if index is not None and {name: tensor.path.name for name, tensor in found.items()} != index:
        raise DataLossError(f"{INDEX_FILE} names other tensors than the shards hold")
    return found


def _read_index(folder: Path) -> dict[str, str] | None:
    if (folder / WEIGHTS_FILE).is_file() or not (folder / INDEX_FILE).is_file():
        return None
    names = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise invalid(f"{INDEX_FILE}.weight_map", "expected a mapping of tensors to files")
    if bad := [file for file in names.values() if Path(file).name != file or not file.endswith(".safetensors")]:
        raise invalid(f"{INDEX_FILE}.weight_map", f"expected names of safetensors in the folder, found {bad[0]!r}")
    return names


def _header(path: Path) -> list[Stored]:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return [Stored(path, name, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()]
    except (SafetensorError, OSError) as error:
        raise DataLossError(f"{path.name}: unreadable: {error}") from None


def is_float(tensor: Stored) -> bool:
    """Whether the tensor holds plain floating-point numbers, not those of a quantisation."""
    return tensor.dtype in _FLOATS


def save_shards(tensors: Mapping[str, Tensor], folder: Path, *, max_shard_bytes: int) -> None:
    """Writes tensors in their order, no file above ``max_shard_bytes`` but one of a single larger tensor.

    One file needs no index; more get one.
    """
    shards: list[dict[str, Tensor]] = [{}]
    held = 0
    for name, tensor in tensors.items():
        if shards[-1] and held + tensor.nbytes > max_shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held += tensor.nbytes
    names = [_shard_name(number, len(shards)) for number in range(1, len(shards) + 1)]
    for file, shard in zip(names, shards, strict=True):
        # transformers refuses a file that does not say which framework's layout it has.
        save_file({name: _own(tensor) for name, tensor in shard.items()}, str(folder / file), {"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _shard_name(number: int, count: int) -> str:
    return WEIGHTS_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()
