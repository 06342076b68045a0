"""Translates protos; every decision lives in ``rebus.evaluation``."""

from __future__ import annotations

from collections.abc import AsyncIterator

from rebus.evaluation import job as evaluations
from rebus.store import documents
from rebus.v1 import evaluation_pb2 as pb
from rebus.v1 import evaluation_pb2_grpc as pb_grpc
from rebus.v1.common_pb2 import JobEvent
from services.harness.pages import page_bounds
from services.harness.runtime import Context, Runtime, run


class EvaluationServicer(pb_grpc.EvaluationServiceServicer):
    """Evaluations and their predictions."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._store = runtime.store

    async def CreateEvaluation(self, request: pb.CreateEvaluationRequest, context: Context) -> pb.Evaluation:
        return await run(self._create, request)

    def _create(self, request: pb.CreateEvaluationRequest) -> pb.Evaluation:
        evaluation = evaluations.checked_evaluation(self._store, request.evaluation)
        return self._runtime.start_job(evaluation, request)

    async def GetEvaluation(self, request: pb.GetEvaluationRequest, context: Context) -> pb.Evaluation:
        return await run(documents.get, self._store, pb.Evaluation, request.name)

    async def ListEvaluations(self, request: pb.ListEvaluationsRequest, context: Context) -> pb.ListEvaluationsResponse:
        items, token = await self._runtime.list_jobs(pb.Evaluation, request)
        return pb.ListEvaluationsResponse(evaluations=items, next_page_token=token)

    async def ListPredictions(self, request: pb.ListPredictionsRequest, context: Context) -> pb.ListPredictionsResponse:
        return await run(self._list_predictions, request)

    def _list_predictions(self, request: pb.ListPredictionsRequest) -> pb.ListPredictionsResponse:
        predictions = evaluations.read_predictions(self._store, request.parent)
        size = min(request.page_size or documents.DEFAULT_PAGE_SIZE, documents.MAX_PAGE_SIZE)
        start, token = page_bounds(len(predictions), size, request.page_token)
        return pb.ListPredictionsResponse(predictions=predictions[start : start + size], next_page_token=token)

    async def WatchEvaluation(self, request: pb.WatchEvaluationRequest, context: Context) -> AsyncIterator[JobEvent]:
        async for event in self._runtime.watch(request.name, request.after_event):
            yield event

    async def CancelEvaluation(self, request: pb.CancelEvaluationRequest, context: Context) -> pb.Evaluation:
        return await run(self._runtime.cancel_job, pb.Evaluation, request)
