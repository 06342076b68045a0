"""Names and labels by which the cluster's objects and the store's jobs find each other."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from rebus.jobs.kinds import collection_of

# An object's name becomes part of its pods' host names, which have 63 characters: a TrainJob's adds `-node-0-` and the
# pod's number.
MAX_NAME = 48
JOB_ANNOTATION = "rebus.dev/job"
ATTEMPT_ANNOTATION = "rebus.dev/attempt"
OBJECT_LABEL = "rebus.dev/object"
STORE_LABEL = "rebus.dev/store"
_PLAIN = re.compile(r"[a-z]+/[a-z0-9]([a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True)
class Attempt:
    """One attempt at a job: what one object of the cluster stands for."""

    # The job's resource name, e.g. ``runs/x``.
    job: str
    # Counted from 1.
    number: int
    store_url: str

    @property
    def collection(self) -> str:
        return collection_of(self.job)

    @property
    def object_name(self) -> str:
        """The same for every service that sees the job, so that of two that create it one finds it made."""
        stem, suffix = self.job.replace("/", "-"), f"-{self.number}"
        room = MAX_NAME - len("rebus-") - len(suffix)
        if not _PLAIN.fullmatch(self.job) or len(stem) > room:
            digest = hashlib.sha256(self.job.encode()).hexdigest()[:12]
            kept = re.sub(r"[^a-z0-9]+", "-", stem.lower())[: room - len(digest) - 1].strip("-")
            stem = f"{kept}-{digest}"
        return f"rebus-{stem}{suffix}"

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the object and of its pods."""
        return {
            "app.kubernetes.io/name": "rebus-job",
            "app.kubernetes.io/component": self.collection,
            "app.kubernetes.io/managed-by": "rebus",
            "app.kubernetes.io/part-of": "rebus",
            OBJECT_LABEL: self.object_name,
            STORE_LABEL: store_label(self.store_url),
        }

    @property
    def annotations(self) -> dict[str, str]:
        return {JOB_ANNOTATION: self.job, ATTEMPT_ANNOTATION: str(self.number)}


def store_label(store_url: str) -> str:
    """Tells the jobs of one store from those of another in the same namespace."""
    return hashlib.sha256(store_url.encode()).hexdigest()[:16]


def selector(store_url: str) -> str:
    """The label selector of everything that belongs to a store's jobs."""
    return f"app.kubernetes.io/managed-by=rebus,{STORE_LABEL}={store_label(store_url)}"
