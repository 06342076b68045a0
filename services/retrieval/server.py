"""Wiring of the retrieval service: ``python -m services.retrieval.server``."""

from __future__ import annotations

import grpc

from rebus.v1 import retrieval_pb2_grpc
from services.harness.runtime import Runtime
from services.harness.server import Service, main
from services.retrieval.servicer import RetrievalServicer


def add(server: grpc.aio.Server, runtime: Runtime) -> None:
    """Registers the servicer."""
    retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server(RetrievalServicer(runtime), server)


SERVICE = Service(("rebus.v1.RetrievalService",), add, ("indexes",))

if __name__ == "__main__":
    raise SystemExit(main(["retrieval"]))
