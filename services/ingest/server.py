"""Wiring of the ingest service: ``python -m services.ingest.server``."""

from __future__ import annotations

import grpc

from rebus.v1 import dataset_pb2_grpc, media_pb2_grpc
from services.harness.runtime import Runtime
from services.harness.server import Service, main
from services.ingest.servicer import DatasetServicer, IngestionServicer, MediaServicer


def add(server: grpc.aio.Server, runtime: Runtime) -> None:
    """Registers the servicers."""
    dataset_pb2_grpc.add_DatasetServiceServicer_to_server(DatasetServicer(runtime), server)
    dataset_pb2_grpc.add_IngestionServiceServicer_to_server(IngestionServicer(runtime), server)
    media_pb2_grpc.add_MediaServiceServicer_to_server(MediaServicer(runtime), server)


SERVICE = Service(
    ("rebus.v1.DatasetService", "rebus.v1.IngestionService", "rebus.v1.MediaService"), add, ("ingestions", "curations")
)

if __name__ == "__main__":
    raise SystemExit(main(["ingest"]))
