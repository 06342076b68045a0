"""``rebus models import`` and ``rebus models export``: language models from other tools' files, and for them."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tools.rebus import names
from tools.rebus.output import Format, FormatOption, print_fields, print_json
from tools.rebus.session import Session, stored


class Kind(StrEnum):
    """What a language model is imported from."""

    HF = "hf"
    GGUF = "gguf"


def import_model(
    kind: Annotated[Kind, typer.Argument(help="hf: a folder of config.json and safetensors; gguf: a file.")],
    source: Annotated[Path, typer.Argument(help="The Hugging Face folder or the GGUF file.")],
    folder: Annotated[Path, typer.Argument(help="A new folder for the model.")],
    max_gib: Annotated[float, typer.Option(min=0, help="Refuse weights larger than this many GiB.")] = 64.0,
    format: FormatOption = Format.TABLE,
) -> None:
    """Makes a model folder of a language model of LLaMA, Mistral, Qwen2, Qwen3, GPT-2 or OPT."""
    from rebus.models.hf import import_folder, import_gguf
    from rebus.models.mllm import count_parameters

    read = import_folder if kind is Kind.HF else import_gguf
    model = read(_absolute(source), _absolute(folder), max_bytes=int(max_gib * (1 << 30)))
    done = {
        "folder": str(folder),
        "decoder": model.config.decoder["name"],
        "parameters": count_parameters(model),
        "vocabulary": model.config.vocab_size,
    }
    _print(done, format)


@stored
def export_model(
    session: Session,
    model: Annotated[
        str, typer.Argument(help="A model folder, or a version: NAME (its newest), NAME/VERSION, NAME/ALIAS.")
    ],
    folder: Annotated[Path, typer.Argument(help="A new folder to write into.")],
    max_shard_gib: Annotated[float, typer.Option(min=0, help="Split weights into files of at most this size.")] = 5.0,
    format: FormatOption = Format.TABLE,
) -> None:
    """Writes a model's decoder, with its tokenizer, as a folder that transformers and vLLM open."""
    from rebus.models.hf import export_folder

    with ExitStack() as stack:
        source = _absolute(Path(model)) if Path(model).is_dir() else _fetched(session, model, stack)
        family = export_folder(source, _absolute(folder), max_shard_bytes=int(max_shard_gib * (1 << 30)))
    _print({"model": model, "architecture": family.architecture, "folder": str(folder)}, format)


def _fetched(session: Session, name: str, stack: ExitStack) -> Path:
    """The version's files, in a folder that goes with the stack."""
    from rebus.store import Store, documents, manifests, model_versions
    from rebus.v1.model_pb2 import Model

    store = Store.open(session.store_url)
    found = names.version_name("models", name, lambda model: documents.get(store, Model, model).latest_version)
    cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    return stack.enter_context(manifests.fetch(store, model_versions.resolve(store, found), cache))


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _print(done: dict[str, object], format: Format) -> None:
    if format is Format.JSON:
        print_json(done)
    else:
        print_fields(done.items())
