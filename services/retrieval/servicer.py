"""Translates protos; every decision lives in ``rebus.retrieval``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import numpy as np
from google.protobuf import empty_pb2

from rebus import cancellation
from rebus.data.dataset import open_version
from rebus.errors import InvalidArgumentError, invalid
from rebus.retrieval import Embedder
from rebus.retrieval import job as indexes
from rebus.retrieval.embedder import ARCHITECTURES
from rebus.store import documents, requests
from rebus.v1 import common_pb2
from rebus.v1 import retrieval_pb2 as pb
from rebus.v1 import retrieval_pb2_grpc as pb_grpc
from services.harness.converters import MAX_ANSWER_BYTES, read_images, sample_to_proto
from services.harness.model_cache import ModelCache
from services.harness.runtime import Context, Runtime, run

DEFAULT_TOP_K = 10


class RetrievalServicer(pb_grpc.RetrievalServiceServicer):
    """Indexes, embeddings, search."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._store = runtime.store
        self._models = ModelCache(runtime, ARCHITECTURES, Embedder.load)
        self._indexes = indexes.IndexCache(self._store, runtime.cache_dir)

    async def CreateIndex(self, request: pb.CreateIndexRequest, context: Context) -> pb.Index:
        return await run(self._create, request)

    def _create(self, request: pb.CreateIndexRequest) -> pb.Index:
        return self._runtime.start_job(indexes.checked_index(self._store, request.index), request)

    async def GetIndex(self, request: pb.GetIndexRequest, context: Context) -> pb.Index:
        return await run(documents.get, self._store, pb.Index, request.name)

    async def ListIndexes(self, request: pb.ListIndexesRequest, context: Context) -> pb.ListIndexesResponse:
        items, token = await self._runtime.list_jobs(pb.Index, request)
        return pb.ListIndexesResponse(indexes=items, next_page_token=token)

    async def DeleteIndex(self, request: pb.DeleteIndexRequest, context: Context) -> empty_pb2.Empty:
        await run(requests.delete, self._store, request)
        return empty_pb2.Empty()

    async def WatchIndex(self, request: pb.WatchIndexRequest, context: Context) -> AsyncIterator[common_pb2.JobEvent]:
        async for event in self._runtime.watch(request.name, request.after_event):
            yield event

    async def CancelIndex(self, request: pb.CancelIndexRequest, context: Context) -> pb.Index:
        return await run(self._runtime.cancel_job, pb.Index, request)

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        return await run(self._embed, request)

    def _embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        name, embedder = self._models.get(request.model_version)
        vectors = self._embed_queries(embedder, request.inputs, [f"inputs[{at}]" for at in range(len(request.inputs))])
        tensor = common_pb2.Tensor(dtype=common_pb2.Tensor.FLOAT32, shape=vectors.shape, data=vectors.tobytes())
        return pb.EmbedResponse(embeddings=tensor, model_version=name)

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        return await run(self._search, request)

    def _search(self, request: pb.SearchRequest) -> pb.SearchResponse:
        document, index = self._indexes.get(request.index)
        _, embedder = self._models.get(document.model_version)
        vector = self._embed_queries(embedder, [request.query], ["query"])[0]
        cancellation.current().check()
        found = index.search(vector[None], request.top_k or DEFAULT_TOP_K)[0]
        hits = [pb.SearchHit(sample_id=hit.sample_id, score=hit.score) for hit in found]
        if request.include_samples and hits:
            cancellation.current().check()
            samples = open_version(self._store, document.dataset_version).take([hit.row for hit in found])
            room = MAX_ANSWER_BYTES
            for hit, sample in zip(hits, samples, strict=True):
                hit.sample.CopyFrom(sample_to_proto(sample, room))
                room = max(room - hit.sample.ByteSize(), 0)
        return pb.SearchResponse(hits=hits)

    def _embed_queries(self, embedder: Embedder, queries: Sequence[pb.Query], fields: Sequence[str]) -> np.ndarray:
        return embed_queries(embedder, queries, read_images(queries, self._store, fields), fields)


def embed_queries(
    embedder: Embedder, queries: Sequence[pb.Query], images: Sequence[bytes | None], fields: Sequence[str]
) -> np.ndarray:
    """Unit vectors of texts and ``images`` in their order, float32 ``[N, D]``; a bad image names its field."""
    texts = [at for at, image in enumerate(images) if image is None]
    vectors = np.zeros((len(queries), embedder.dimension), dtype="<f4")
    if texts:
        vectors[texts] = embedder.embed_texts([queries[at].text for at in texts])
    for at, image in enumerate(images):
        if image is None:
            continue
        try:
            vectors[at] = embedder.embed_images([image])[0]
        except InvalidArgumentError as error:
            raise invalid(f"{fields[at]}.{queries[at].WhichOneof('content')}", str(error)) from None
    return vectors
