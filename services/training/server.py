"""Wiring of the training service: ``python -m services.training.server``."""

from __future__ import annotations

import grpc

from rebus.v1 import model_pb2_grpc, training_pb2_grpc
from services.harness.runtime import Runtime
from services.harness.server import Service, main
from services.training.servicer import ModelServicer, TrainingServicer


def add(server: grpc.aio.Server, runtime: Runtime) -> None:
    """Registers the servicers."""
    training_pb2_grpc.add_TrainingServiceServicer_to_server(TrainingServicer(runtime), server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(runtime), server)


SERVICE = Service(("rebus.v1.TrainingService", "rebus.v1.ModelService"), add, ("runs",))

if __name__ == "__main__":
    raise SystemExit(main(["training"]))
