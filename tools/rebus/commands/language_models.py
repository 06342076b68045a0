"""``rebus models import``, ``add``, ``export``, ``card``: models as files, in a folder or the store."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.rebus import names
from tools.rebus.output import Format, FormatOption, print_fields, print_json
from tools.rebus.session import Session, stored

if TYPE_CHECKING:
    from rebus.store import Store


class Kind(StrEnum):
    """What a model is imported from."""

    HF = "hf"
    GGUF = "gguf"


def import_model(
    kind: Annotated[Kind, typer.Argument(help="hf: a folder of config.json and safetensors; gguf: a file.")],
    source: Annotated[Path, typer.Argument(help="The Hugging Face folder or the GGUF file.")],
    folder: Annotated[Path, typer.Argument(help="A new folder for the model.")],
    max_gib: Annotated[float, typer.Option(min=0, help="Refuse weights larger than this many GiB.")] = 64.0,
    format: FormatOption = Format.TABLE,
) -> None:
    """Makes a model folder of a language model (LLaMA, Mistral, Qwen2, Qwen3, GPT-2, OPT) or of a multimodal one.

    Multimodal: LLaVA, LLaVA-NeXT, InternVL and Idefics2 of such language models.
    """
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
def add(
    session: Session,
    model: Annotated[str, typer.Argument(help="The model; it is made if there is none.")],
    folder: Annotated[Path, typer.Argument(help="A model folder, as import makes one.")],
    imported_from: Annotated[
        str | None, typer.Option("--from", help="What it was made of, for the lineage; without it, the folder's name.")
    ] = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Makes a model folder the next version of a model in the store, so that recipes can start from it."""
    from rebus.models import load_model
    from rebus.store import Store, model_versions

    path = _absolute(folder)
    load_model(path)  # refuses what is not whole before anything is stored
    version = model_versions.import_folder(
        Store.open(session.store_url), names.full("models", model), path, imported_from=imported_from or path.name
    )
    done = {"name": version.name, "architecture": version.architecture, "parameters": version.num_parameters}
    _print({**done, "digest": version.digest}, format)


@stored
def export_model(
    session: Session,
    model: Annotated[
        str, typer.Argument(help="A model folder, or a version: NAME (its newest), NAME/VERSION, NAME/ALIAS.")
    ],
    folder: Annotated[Path, typer.Argument(help="A new folder to write into.")],
    decoder_only: Annotated[
        bool, typer.Option("--decoder-only", help="Of a multimodal model, write the language model alone.")
    ] = False,
    max_shard_gib: Annotated[float, typer.Option(min=0, help="Split weights into files of at most this size.")] = 5.0,
    format: FormatOption = Format.TABLE,
) -> None:
    """Writes a model, with its tokenizer, as a folder that transformers opens: a language model or a multimodal one."""
    from rebus.models.hf import export_folder

    with ExitStack() as stack:
        source = _absolute(Path(model)) if Path(model).is_dir() else _fetched(session, model, stack)
        architecture = export_folder(
            source, _absolute(folder), decoder_only=decoder_only, max_shard_bytes=int(max_shard_gib * (1 << 30))
        )
    _print({"model": model, "architecture": architecture, "folder": str(folder)}, format)


@stored
def card(
    session: Session,
    version: Annotated[str, typer.Argument(help="A version: NAME (its newest), NAME/VERSION, NAME/ALIAS.")],
) -> None:
    """Prints a version's model card: its parts and sizes, and the FLOPs of a token and an image."""
    from rebus.store import Store, model_versions

    store = Store.open(session.store_url)
    typer.echo(model_versions.card(store, _full_name(store, version)), nl=False)


def _fetched(session: Session, name: str, stack: ExitStack) -> Path:
    """The version's files, in a folder that goes with the stack."""
    from rebus.store import Store, manifests, model_versions

    store = Store.open(session.store_url)
    found = _full_name(store, name)
    cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    return stack.enter_context(manifests.fetch(store, model_versions.resolve(store, found), cache))


def _full_name(store: Store, name: str) -> str:
    from rebus.store import documents
    from rebus.v1.model_pb2 import Model

    return names.version_name("models", name, lambda model: documents.get(store, Model, model).latest_version)


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _print(done: dict[str, object], format: Format) -> None:
    if format is Format.JSON:
        print_json(done)
    else:
        print_fields(done.items())
