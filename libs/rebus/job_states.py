"""Which states of a job are an end, wherever jobs are looked at: by the store, by services, by clients."""

from __future__ import annotations

from rebus.v1.common_pb2 import JobStatus

RESUMABLE = (JobStatus.FAILED, JobStatus.CANCELLED)
TERMINAL = (JobStatus.SUCCEEDED, *RESUMABLE)
