"""Pages of samples that fit into a message, whatever their media weigh."""

from __future__ import annotations

import numpy as np

from rebus.data.dataset import DatasetReader
from rebus.v1 import common_pb2 as pb
from services.harness.converters import MAX_ANSWER_BYTES, sample_to_proto

# Rows read at once: a row may hold hundreds of megabytes.
_READ_ROWS = 8


def sample_page(reader: DatasetReader, rows: np.ndarray) -> list[pb.Sample]:
    """The samples of ``rows``, in order, up to the one that would make more than an answer; at least one."""
    page: list[pb.Sample] = []
    held = 0
    for start in range(0, len(rows), _READ_ROWS):
        for sample in reader.take(rows[start : start + _READ_ROWS]):
            message = sample_to_proto(sample)
            held += message.ByteSize()
            if page and held > MAX_ANSWER_BYTES:
                return page
            page.append(message)
    return page
