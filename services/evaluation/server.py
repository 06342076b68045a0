"""Wiring of the evaluation service: ``python -m services.evaluation.server``."""

from __future__ import annotations

import grpc

from rebus.v1 import evaluation_pb2_grpc
from services.evaluation.servicer import EvaluationServicer
from services.harness.runtime import Runtime
from services.harness.server import Service, main


def add(server: grpc.aio.Server, runtime: Runtime) -> None:
    """Registers the servicer."""
    evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server(EvaluationServicer(runtime), server)


SERVICE = Service(("rebus.v1.EvaluationService",), add, ("evaluations",))

if __name__ == "__main__":
    raise SystemExit(main(["evaluation"]))
