"""Translates protos; every decision lives in ``rebus.generation``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from rebus import cancellation
from rebus.generation import Chunk, Generator, Prompt, Sampling
from rebus.v1 import generation_pb2 as pb
from rebus.v1 import generation_pb2_grpc as pb_grpc
from services.harness.converters import prompt_from_proto
from services.harness.model_cache import ModelCache
from services.harness.runtime import Context, Runtime, run

DEFAULT_NEW_TOKENS = 64
_REASONS = {
    "": pb.GenerateResponse.FINISH_REASON_UNSPECIFIED,
    "stop": pb.GenerateResponse.STOP,
    "length": pb.GenerateResponse.LENGTH,
}


class GenerationServicer(pb_grpc.GenerationServiceServicer):
    """Streams answers."""

    def __init__(self, runtime: Runtime) -> None:
        self._store = runtime.store
        self._models = ModelCache(runtime, ("mllm",), Generator.load)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        scope = cancellation.current()
        name, generator = await run(self._models.get, request.model_version)
        sample = await run(prompt_from_proto, request.segments, self._store)
        prompt = Prompt(segments=sample.segments, media=sample.media)
        chunks = await run(generator.stream, prompt, _sampling(request.sampling), scope.stopped)
        try:
            while (chunk := await run(next, chunks, None)) is not None:
                yield _response(chunk, name)
                name = ""
        finally:
            scope.cancel()
            scope.when_idle(lambda: _close(chunks))


def _close(chunks: Iterator[Chunk]) -> None:
    """Frees the request's cache as soon as nobody reads on."""
    close = getattr(chunks, "close", None)
    if close is not None:
        close()


def _sampling(params: pb.SamplingParams) -> Sampling:
    return Sampling(
        max_new_tokens=params.max_new_tokens or DEFAULT_NEW_TOKENS,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=params.seed,
    )


def _response(chunk: Chunk, model_version: str) -> pb.GenerateResponse:
    response = pb.GenerateResponse(
        text=chunk.text,
        token_ids=chunk.token_ids,
        finish_reason=_REASONS[chunk.finish_reason],
        model_version=model_version,
    )
    if chunk.finish_reason:
        response.num_prompt_tokens = chunk.num_prompt_tokens
        response.num_generated_tokens = chunk.num_generated_tokens
    return response
