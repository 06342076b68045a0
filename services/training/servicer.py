"""Translates protos; every decision lives in ``rebus.training`` and ``rebus.store``."""

from __future__ import annotations

from collections.abc import AsyncIterator

from rebus.store import documents, lineage, model_versions, requests
from rebus.training import runs
from rebus.v1 import model_pb2 as models
from rebus.v1 import model_pb2_grpc, training_pb2_grpc
from rebus.v1 import training_pb2 as pb
from rebus.v1.common_pb2 import JobEvent
from services.harness.runtime import Context, Runtime, run


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """Runs."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._store = runtime.store

    async def CreateRun(self, request: pb.CreateRunRequest, context: Context) -> pb.Run:
        return await run(self._create_run, request)

    def _create_run(self, request: pb.CreateRunRequest) -> pb.Run:
        run = runs.checked_run(self._store, request.run)
        return self._runtime.start_job(run, request, runs.recipe_of(run).resources)

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.Run:
        return await run(documents.get, self._store, pb.Run, request.name)

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        items, token = await self._runtime.list_jobs(pb.Run, request)
        return pb.ListRunsResponse(runs=items, next_page_token=token)

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncIterator[JobEvent]:
        async for event in self._runtime.watch(request.name, request.after_event):
            yield event

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.Run:
        return await run(self._runtime.cancel_job, pb.Run, request)

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Context) -> pb.Run:
        return await run(self._runtime.resume_job, pb.Run, request)


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Models, versions, aliases, lineage."""

    def __init__(self, runtime: Runtime) -> None:
        self._store = runtime.store

    async def CreateModelVersion(
        self, request: models.CreateModelVersionRequest, context: Context
    ) -> models.ModelVersion:
        return await run(self._create_version, request)

    def _create_version(self, request: models.CreateModelVersionRequest) -> models.ModelVersion:
        requests.claim(self._store, request, request.parent)  # the run is what makes a repeat return the first result
        return model_versions.register(self._store, request.parent, request.run)

    async def GetModel(self, request: models.GetModelRequest, context: Context) -> models.Model:
        return await run(documents.get, self._store, models.Model, request.name)

    async def ListModels(self, request: models.ListModelsRequest, context: Context) -> models.ListModelsResponse:
        items, token = await run(
            documents.list_page,
            self._store,
            models.Model,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return models.ListModelsResponse(models=items, next_page_token=token)

    async def GetModelVersion(self, request: models.GetModelVersionRequest, context: Context) -> models.ModelVersion:
        return await run(model_versions.get, self._store, request.name)

    async def ListModelVersions(
        self, request: models.ListModelVersionsRequest, context: Context
    ) -> models.ListModelVersionsResponse:
        await run(documents.get, self._store, models.Model, request.parent)
        items, token = await run(
            documents.list_page,
            self._store,
            models.ModelVersion,
            parent=request.parent,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return models.ListModelVersionsResponse(model_versions=items, next_page_token=token)

    async def SetModelAlias(self, request: models.SetModelAliasRequest, context: Context) -> models.Model:
        return await run(self._set_alias, request)

    def _set_alias(self, request: models.SetModelAliasRequest) -> models.Model:
        return model_versions.set_alias(
            self._store,
            request.name,
            request.alias,
            request.model_version,
            request.expected_version if request.HasField("expected_version") else None,
            request_key=requests.claim(self._store, request, request.name).key,
        )

    async def GetLineage(self, request: models.GetLineageRequest, context: Context) -> models.Lineage:
        return await run(lineage.walk, self._store, request.name)
