"""Translates protos; every decision lives in ``rebus.data``, ``rebus.jobs`` and ``rebus.store``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import islice

from google.protobuf import empty_pb2

from rebus.data import dataset as datasets
from rebus.data import jobs as data_jobs
from rebus.data.quarantine import read_quarantine
from rebus.errors import invalid
from rebus.store import documents, media, requests
from rebus.v1 import dataset_pb2 as pb
from rebus.v1 import dataset_pb2_grpc as pb_grpc
from rebus.v1 import media_pb2, media_pb2_grpc
from rebus.v1.common_pb2 import JobEvent
from services.harness.feed import Feed
from services.harness.pages import page_bounds
from services.harness.runtime import Context, Runtime, run
from services.ingest.sample_pages import sample_page

DEFAULT_SAMPLES = 20
MAX_SAMPLES = 100


class DatasetServicer(pb_grpc.DatasetServiceServicer):
    """Datasets, their versions and their rows."""

    def __init__(self, runtime: Runtime) -> None:
        self._store = runtime.store

    async def CreateDataset(self, request: pb.CreateDatasetRequest, context: Context) -> pb.Dataset:
        return await run(self._create_dataset, request)

    def _create_dataset(self, request: pb.CreateDatasetRequest) -> pb.Dataset:
        dataset = pb.Dataset(name=f"datasets/{request.dataset_id}", description=request.dataset.description)
        dataset.create_time.GetCurrentTime()
        claim = requests.claim(self._store, request, dataset.name)
        return documents.create(self._store, dataset, request_key=claim.key)

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Context) -> pb.Dataset:
        return await run(documents.get, self._store, pb.Dataset, request.name)

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Context) -> pb.ListDatasetsResponse:
        items, token = await run(
            documents.list_page,
            self._store,
            pb.Dataset,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListDatasetsResponse(datasets=items, next_page_token=token)

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, context: Context) -> empty_pb2.Empty:
        await run(requests.delete, self._store, request)
        return empty_pb2.Empty()

    async def GetDatasetVersion(self, request: pb.GetDatasetVersionRequest, context: Context) -> pb.DatasetVersion:
        return await run(documents.get, self._store, pb.DatasetVersion, request.name)

    async def ListDatasetVersions(
        self, request: pb.ListDatasetVersionsRequest, context: Context
    ) -> pb.ListDatasetVersionsResponse:
        await run(documents.get, self._store, pb.Dataset, request.parent)
        items, token = await run(
            documents.list_page,
            self._store,
            pb.DatasetVersion,
            parent=request.parent,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListDatasetVersionsResponse(dataset_versions=items, next_page_token=token)

    async def ListSamples(self, request: pb.ListSamplesRequest, context: Context) -> pb.ListSamplesResponse:
        return await run(self._list_samples, request)

    def _list_samples(self, request: pb.ListSamplesRequest) -> pb.ListSamplesResponse:
        reader = datasets.open_version(self._store, request.parent)
        rows = reader.row_ids(request.split)
        size = min(request.page_size or DEFAULT_SAMPLES, MAX_SAMPLES)
        start, token = page_bounds(len(rows), size, request.page_token)
        samples = sample_page(reader, rows[start : start + size])
        if len(samples) < min(size, len(rows) - start):
            token = str(start + len(samples))
        return pb.ListSamplesResponse(samples=samples, next_page_token=token)


class IngestionServicer(pb_grpc.IngestionServiceServicer):
    """Jobs that make dataset versions."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._store = runtime.store

    async def CreateIngestion(self, request: pb.CreateIngestionRequest, context: Context) -> pb.Ingestion:
        return await run(self._create_ingestion, request)

    def _create_ingestion(self, request: pb.CreateIngestionRequest) -> pb.Ingestion:
        return self._runtime.start_job(data_jobs.checked_ingestion(request.ingestion), request)

    async def GetIngestion(self, request: pb.GetIngestionRequest, context: Context) -> pb.Ingestion:
        return await run(documents.get, self._store, pb.Ingestion, request.name)

    async def ListIngestions(self, request: pb.ListIngestionsRequest, context: Context) -> pb.ListIngestionsResponse:
        items, token = await self._runtime.list_jobs(pb.Ingestion, request)
        return pb.ListIngestionsResponse(ingestions=items, next_page_token=token)

    async def ListQuarantine(self, request: pb.ListQuarantineRequest, context: Context) -> pb.ListQuarantineResponse:
        return await run(self._list_quarantine, request)

    def _list_quarantine(self, request: pb.ListQuarantineRequest) -> pb.ListQuarantineResponse:
        ingestion = documents.get(self._store, pb.Ingestion, request.parent)
        size = min(request.page_size or documents.DEFAULT_PAGE_SIZE, documents.MAX_PAGE_SIZE)
        start, token = page_bounds(ingestion.num_quarantined, size, request.page_token)
        samples = islice(read_quarantine(self._store, request.parent), start, start + size)
        return pb.ListQuarantineResponse(samples=samples, next_page_token=token)

    async def WatchIngestion(self, request: pb.WatchIngestionRequest, context: Context) -> AsyncIterator[JobEvent]:
        async for event in self._runtime.watch(request.name, request.after_event):
            yield event

    async def CancelIngestion(self, request: pb.CancelIngestionRequest, context: Context) -> pb.Ingestion:
        return await run(self._runtime.cancel_job, pb.Ingestion, request)

    async def ResumeIngestion(self, request: pb.ResumeIngestionRequest, context: Context) -> pb.Ingestion:
        return await run(self._runtime.resume_job, pb.Ingestion, request)

    async def CreateCuration(self, request: pb.CreateCurationRequest, context: Context) -> pb.Curation:
        return await run(self._create_curation, request)

    def _create_curation(self, request: pb.CreateCurationRequest) -> pb.Curation:
        return self._runtime.start_job(data_jobs.checked_curation(self._store, request.curation), request)

    async def GetCuration(self, request: pb.GetCurationRequest, context: Context) -> pb.Curation:
        return await run(documents.get, self._store, pb.Curation, request.name)

    async def ListCurations(self, request: pb.ListCurationsRequest, context: Context) -> pb.ListCurationsResponse:
        items, token = await self._runtime.list_jobs(pb.Curation, request)
        return pb.ListCurationsResponse(curations=items, next_page_token=token)

    async def WatchCuration(self, request: pb.WatchCurationRequest, context: Context) -> AsyncIterator[JobEvent]:
        async for event in self._runtime.watch(request.name, request.after_event):
            yield event

    async def CancelCuration(self, request: pb.CancelCurationRequest, context: Context) -> pb.Curation:
        return await run(self._runtime.cancel_job, pb.Curation, request)


class MediaServicer(media_pb2_grpc.MediaServiceServicer):
    """Uploads."""

    def __init__(self, runtime: Runtime) -> None:
        self._store = runtime.store
        self._max_bytes = runtime.limits.max_upload_bytes
        self._folder = media.staging_folder(runtime.cache_dir / "uploads")

    async def UploadMedia(
        self, request_iterator: AsyncIterator[media_pb2.UploadMediaRequest], context: Context
    ) -> media_pb2.Media:
        with media.staging(self._folder, self._max_bytes) as upload:
            sha256 = ""
            async with Feed(upload.write) as feed:  # the next chunks travel while these are hashed and written
                async for request in request_iterator:
                    if sha256:
                        raise invalid("sha256", "came before the last message")
                    await feed.put(request.chunk)
                    sha256 = request.sha256
            name = await run(upload.publish, self._store, sha256)
            return media_pb2.Media(name=name, size_bytes=upload.size_bytes)

    async def GetMedia(self, request: media_pb2.GetMediaRequest, context: Context) -> media_pb2.Media:
        size = await run(media.size_of, self._store, request.name)
        return media_pb2.Media(name=request.name, size_bytes=size)
