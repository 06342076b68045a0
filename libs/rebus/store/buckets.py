"""Buckets, policies and presigned URLs of an S3 store, through the ``minio`` client.

obstore does the data; it has no calls for buckets and policies, and the ``minio`` client has no conditional put.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from minio import Minio
from minio.error import S3Error

from rebus.errors import PermissionDeniedError, UnavailableError, invalid

MAX_EXPIRY = timedelta(days=7)


def client() -> Minio:
    """A client for the endpoint and credentials of the ``AWS_*`` variables."""
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL", "https://s3.amazonaws.com"))
    return Minio(
        endpoint.netloc,
        access_key=os.environ.get("AWS_ACCESS_KEY_ID"),
        secret_key=os.environ.get("AWS_SECRET_ACCESS_KEY"),
        session_token=os.environ.get("AWS_SESSION_TOKEN"),
        region=os.environ.get("AWS_REGION"),
        secure=endpoint.scheme == "https",
    )


def ensure_bucket(url: str) -> None:
    """Makes the bucket of ``s3://bucket/prefix`` if it does not exist."""
    bucket, _ = _parts(url)
    try:
        if not client().bucket_exists(bucket):
            client().make_bucket(bucket)
    except S3Error as error:
        if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise PermissionDeniedError(f"bucket {bucket}: {error.code}: {error.message}") from None
    except Exception as error:
        raise UnavailableError(f"bucket {bucket}: the store did not answer: {error}") from None


def set_policy(url: str, policy: dict[str, Any]) -> None:
    """Sets the bucket's policy document."""
    client().set_bucket_policy(_parts(url)[0], json.dumps(policy))


def presigned_get(url: str, path: str, expires: timedelta = timedelta(hours=1)) -> str:
    """A URL that reads one object without credentials until it expires."""
    bucket, prefix = _parts(url)
    if not timedelta(0) < expires <= MAX_EXPIRY:
        raise invalid("expires", f"expected more than 0 and at most {MAX_EXPIRY}, found {expires}")
    return client().presigned_get_object(bucket, f"{prefix}/{path}".lstrip("/"), expires=expires)


def _parts(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise invalid("store", f"{url!r}: expected s3://bucket/prefix")
    return parts.netloc, parts.path.strip("/")
