"""``rebus index``, ``rebus search`` and ``rebus embed``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rebus.client import Client
from rebus.errors import NotFoundError, invalid
from rebus.v1.common_pb2 import JobStatus, Tensor
from rebus.v1.retrieval_pb2 import (
    CreateIndexRequest,
    DeleteIndexRequest,
    EmbedRequest,
    Index,
    ListIndexesRequest,
    Query,
    SearchHit,
    SearchRequest,
)
from tools.rebus import listing, names
from tools.rebus.commands.train import state_of
from tools.rebus.files import caption_of, image_content, save_images, services_for
from tools.rebus.follow import follow
from tools.rebus.output import Format, FormatOption, LimitOption, ago, print_fields, print_json, print_table, say
from tools.rebus.session import Session, connected

index = typer.Typer(no_args_is_help=True, help="Indexes: create, list, show, delete.")
IndexArgument = Annotated[str, typer.Argument(help="The index; latest is the newest.")]
_NEWEST = 100  # how far back a search without --index looks for a finished one


@index.command()
@connected
def create(
    session: Session,
    model: Annotated[str, typer.Argument(help="The embedding model: NAME, NAME/VERSION or NAME/ALIAS.")],
    dataset: Annotated[str, typer.Argument(help="The rows: NAME or NAME/VERSION.")],
    split: Annotated[str, typer.Option(help="Only rows of this split.")] = "",
    algorithm: Annotated[str, typer.Option(help="flat (exact), hnsw, ...")] = "flat",
    format: FormatOption = Format.TABLE,
) -> None:
    """Builds an index over the pictures of a dataset version."""
    with session.client("retrieval", "training", "ingest") as client:
        wanted = Index(
            model_version=names.version(client, "models", model),
            dataset_version=names.version(client, "datasets", dataset),
            split=split,
            algorithm=algorithm,
        )
        started = client.retrieval.CreateIndex(CreateIndexRequest(index=wanted))
        _print_index(follow(client, started.name), format)


@index.command("list")
@connected
def list_indexes(session: Session, limit: LimitOption = 20, format: FormatOption = Format.TABLE) -> None:
    """Lists the indexes, newest first."""
    with session.client("retrieval") as client:
        found = listing.items(client.retrieval.ListIndexes, ListIndexesRequest(), "indexes", limit)
    if format is Format.JSON:
        print_json(found)
        return
    rows = (
        (
            i.name,
            state_of(i.job),
            i.num_vectors,
            i.algorithm,
            i.model_version,
            i.dataset_version,
            ago(i.job.create_time),
        )
        for i in found
    )
    print_table(("name", "state", "vectors", "algorithm", "model", "dataset", "age"), rows)


@index.command()
@connected
def show(session: Session, name: IndexArgument, format: FormatOption = Format.TABLE) -> None:
    """Shows one index."""
    with session.client("retrieval") as client:
        _print_index(client.get(names.job(client, "indexes", name)), format)


@index.command()
@connected
def delete(session: Session, name: IndexArgument) -> None:
    """Removes an index; it can be built again."""
    with session.client("retrieval") as client:
        name = names.job(client, "indexes", name)
        client.retrieval.DeleteIndex(DeleteIndexRequest(name=name))
    say(f"removed {name}")


def _print_index(found: Index, format: Format) -> None:
    if format is Format.JSON:
        print_json(found)
        return
    print_fields(
        (
            ("name", found.name),
            ("state", state_of(found.job)),
            ("error", found.job.error.message),
            ("vectors", found.num_vectors),
            ("dimension", found.dimension),
            ("algorithm", found.algorithm),
            ("model", found.model_version),
            ("dataset", found.dataset_version),
            ("split", found.split),
            ("digest", found.digest),
        )
    )


@connected
def search(
    session: Session,
    text: Annotated[str | None, typer.Argument(help="What to look for, in words.")] = None,
    image: Annotated[Path | None, typer.Option(help="What to look for, as a picture.")] = None,
    index: Annotated[str, typer.Option(help="The index; without it, the newest that is finished.")] = "",
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, max=1000, help="Hits wanted.")] = 10,
    save: Annotated[Path | None, typer.Option(help="Folder to save the hits' pictures in.")] = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Finds the pictures nearest to a text or to a picture."""
    if (text is None) == (image is None):
        raise invalid("search", "say what to look for: words, or --image FILE")
    with session.client(*services_for([image] if image else [], "retrieval")) as client:
        query = Query(text=text) if image is None else Query(**image_content(client, image))
        name = names.job(client, "indexes", index) if index else newest_index(client)
        request = SearchRequest(index=name, query=query, top_k=top_k, include_samples=True)
        hits = list(client.retrieval.Search(request).hits)
    for rank, hit in enumerate(hits, start=1):
        for path in save_images(hit.sample, save, f"{rank:03d}-") if save else ():
            say(f"saved {path}")
    if format is Format.JSON:
        print_json({"index": name, "hits": hits})
    else:
        print_hits(hits)


def print_hits(hits: Sequence[SearchHit]) -> None:
    """A table of hits, best first."""
    rows = ((rank, hit.score, hit.sample_id, caption_of(hit.sample)) for rank, hit in enumerate(hits, start=1))
    print_table(("rank", "score", "sample", "text"), rows)


def newest_index(client: Client) -> str:
    """The newest index that is finished."""
    found = listing.items(client.retrieval.ListIndexes, ListIndexesRequest(), "indexes", _NEWEST)
    for candidate in found:
        if candidate.job.state == JobStatus.SUCCEEDED:
            return candidate.name
    raise NotFoundError("there is no finished index; build one: rebus index create MODEL DATASET")


@connected
def embed(
    session: Session,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to embed.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="NAME, NAME/VERSION or NAME/ALIAS.")] = "emoji",
    images: Annotated[list[Path] | None, typer.Option("--image", help="A picture to embed; repeatable.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for the vectors (.npy).")] = None,
) -> None:
    """Embeds texts and pictures, in this order: one JSON line each, or a .npy file of float32 rows."""
    pictures = images or []
    labels = [*(texts or []), *map(str, pictures)]
    if not labels:
        raise invalid("embed", "give texts, or --image FILE")
    with session.client(*services_for(pictures, "retrieval", "training")) as client:
        inputs = [Query(text=text) for text in texts or []]
        inputs += [Query(**image_content(client, path)) for path in pictures]
        request = EmbedRequest(model_version=names.version(client, "models", model), inputs=inputs)
        vectors = to_array(client.retrieval.Embed(request).embeddings)
    if output is None:
        for label, vector in zip(labels, vectors.tolist(), strict=True):
            typer.echo(json.dumps({"input": label, "embedding": vector}, ensure_ascii=False))
        return
    import numpy as np

    np.save(output, vectors, allow_pickle=False)
    say(f"saved {output}: float32 {list(vectors.shape)}")


def to_array(tensor: Tensor) -> Any:
    """The numpy array of a float32 tensor message."""
    import numpy as np

    return np.frombuffer(tensor.data, dtype="<f4").reshape(list(tensor.shape))
