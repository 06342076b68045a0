"""Wiring of the generation service: ``python -m services.generation.server``."""

from __future__ import annotations

import grpc

from rebus.v1 import generation_pb2_grpc
from services.generation.servicer import GenerationServicer
from services.harness.runtime import Runtime
from services.harness.server import Service, main


def add(server: grpc.aio.Server, runtime: Runtime) -> None:
    """Registers the servicer."""
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(runtime), server)


SERVICE = Service(("rebus.v1.GenerationService",), add, ())

if __name__ == "__main__":
    raise SystemExit(main(["generation"]))
