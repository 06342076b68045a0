"""``rebus generate``: answers, as they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rebus.client import Client
from rebus.errors import invalid
from rebus.v1.common_pb2 import Segment
from rebus.v1.generation_pb2 import GenerateRequest, GenerateResponse, SamplingParams
from tools.rebus import names
from tools.rebus.files import image_content, services_for
from tools.rebus.output import Format, FormatOption, print_json
from tools.rebus.session import Session, connected


@connected
def generate(
    session: Session,
    prompt: Annotated[
        str | None, typer.Argument(help="What to ask; without it, the model says what the pictures call for.")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", "-i", help="A picture that the prompt is about; repeatable, in order."),
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="NAME, NAME/VERSION or NAME/ALIAS.")] = "scenes",
    max_new_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Most tokens to make.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="0 takes the likeliest token each time.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample only from the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Sample only from this mass of tokens; 0: all.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    format: FormatOption = Format.TABLE,
) -> None:
    """Answers a question about pictures; the answer appears as it is made."""
    sampling = SamplingParams(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    pictures = images or []
    if not pictures and not prompt:
        raise invalid("generate", "give a question, or --image FILE, or both")
    with session.client(*services_for(pictures, "generation", "training")) as client:
        segments = [Segment(role=Segment.USER, **image_content(client, path)) for path in pictures]
        if prompt:
            segments.append(Segment(text=prompt, role=Segment.USER))
        request = GenerateRequest(
            model_version=names.version(client, "models", model), segments=segments, sampling=sampling
        )
        answer = stream(client, request, echo=format is Format.TABLE)
    if format is Format.JSON:
        print_json(answer)


def stream(client: Client, request: GenerateRequest, *, echo: bool) -> GenerateResponse:
    """The whole answer, its pieces joined; with ``echo``, each piece is printed the moment it comes."""
    whole = GenerateResponse()
    for piece in client.generation.Generate(request):
        if echo:
            typer.echo(piece.text, nl=False)
        text = whole.text + piece.text
        whole.MergeFrom(piece)
        whole.text = text
    if echo:
        typer.echo()
    return whole
