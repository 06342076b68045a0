"""A live answer and a live search, so that the models are seen at work and not only scored."""

from __future__ import annotations

from collections.abc import Iterator

from rebus.client import Client
from rebus.errors import NotFoundError
from rebus.v1.common_pb2 import Sample, Segment
from rebus.v1.dataset_pb2 import ListSamplesRequest
from rebus.v1.generation_pb2 import GenerateRequest, SamplingParams
from rebus.v1.retrieval_pb2 import Query, SearchRequest
from tools.rebus.commands.generate import stream
from tools.rebus.commands.retrieval import print_hits
from tools.rebus.output import stdout

QUESTIONS = 3
HITS = 3
_SHORT = SamplingParams(max_new_tokens=16)
SEARCHES = ("red heart", "cat")


def answer_questions(client: Client, model: str, dataset: str) -> None:
    """Asks the model the first questions of a held-out picture, each beside the right answer."""
    sample, asked = _questions(client, dataset)
    picture = next(segment.image for segment in sample.segments if segment.WhichOneof("content") == "image")
    console = stdout()
    console.print(f"\nQuestions about the held-out picture {sample.id}, answered live by {model}:", style="bold")
    for question, right in asked:
        console.print(f"  {question} ", end="", markup=False)
        segments = [Segment(image=picture, role=Segment.USER), Segment(text=question, role=Segment.USER)]
        request = GenerateRequest(model_version=model, segments=segments, sampling=_SHORT)
        answer = stream(client, request, echo=False)
        console.print(f"→ {answer.text.strip()} (right: {right})", markup=False)


def _questions(client: Client, dataset: str) -> tuple[Sample, list[tuple[str, str]]]:
    """The first held-out sample of one picture that has questions, with some of them and their answers."""
    samples = client.datasets.ListSamples(ListSamplesRequest(parent=dataset, split="test", page_size=100)).samples
    for sample in samples:
        pictures = sum(segment.WhichOneof("content") == "image" for segment in sample.segments)
        asked = list(pairs(sample))
        if pictures == 1 and asked:
            return sample, asked[:QUESTIONS]
    raise NotFoundError(f"{dataset} has no held-out picture with questions")


def pairs(sample: Sample) -> Iterator[tuple[str, str]]:
    """Questions and answers of a sample's branches, one of each kind."""
    kinds: set[str] = set()
    questions = {s.branch: s.text for s in sample.segments if s.branch and s.role == Segment.USER and s.text}
    for segment in sample.segments:
        if segment.role == Segment.ASSISTANT and segment.branch in questions and segment.task not in kinds:
            kinds.add(segment.task)
            yield questions[segment.branch], segment.text


def search(client: Client, index: str) -> None:
    """Searches the index for a few words."""
    for words in SEARCHES:
        stdout().print(f"\nSearch for “{words}” in {index}:", style="bold")
        request = SearchRequest(index=index, query=Query(text=words), top_k=HITS, include_samples=True)
        print_hits(client.retrieval.Search(request).hits)
