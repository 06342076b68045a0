"""The few calls of the Kubernetes API that the executor makes, with its errors as domain errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import urllib3
from kubernetes import client, config, watch

from rebus.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    RebusError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.executors.kubernetes.pods import Object
from services.executors.kubernetes.workloads import Resource

PODS = Resource("", "v1", "pods")
GONE = 410
# Beyond the time that the server was asked to end a watch after.
_WATCH_SLACK_SECONDS = 30.0
_ERRORS: dict[int, type[RebusError]] = {
    400: InvalidArgumentError,
    401: PermissionDeniedError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: AbortedError,
    413: InvalidArgumentError,
    422: InvalidArgumentError,
}


class ExpiredError(RebusError):
    """The server no longer knows the version that a watch starts from: list again. Never leaves the executor."""

    reason = "ABORTED"


class ClusterApi:
    """Objects of one namespace as plain mappings. Thread-safe; every call is bounded in time."""

    def __init__(self, api_client: client.ApiClient, namespace: str, *, request_seconds: float) -> None:
        # Untyped: what these return depends on what they are asked.
        self._custom: Any = client.CustomObjectsApi(api_client)
        self._core: Any = client.CoreV1Api(api_client)
        self._namespace = namespace
        self._timeout = request_seconds

    @classmethod
    def connect(cls, namespace: str, *, request_seconds: float) -> ClusterApi:
        """By the pod's service account, or by the kubeconfig of this machine; ``FailedPreconditionError`` without."""
        configuration = client.Configuration()
        try:
            try:
                config.load_incluster_config(client_configuration=configuration)
            except config.ConfigException:
                config.load_kube_config(client_configuration=configuration)
        except (config.ConfigException, OSError) as error:
            raise FailedPreconditionError(f"neither a service account nor a kubeconfig was found: {error}") from None
        return cls(client.ApiClient(configuration), namespace, request_seconds=request_seconds)

    def create(self, resource: Resource, body: Object) -> Object:
        """``AlreadyExistsError`` if there is one of that name."""
        with _errors(f"create {resource.plural}"):
            try:
                return self._custom.create_namespaced_custom_object(
                    *self._at(resource), body, _request_timeout=self._timeout
                )
            except client.ApiException as error:
                if error.status == 404:  # of the collection, since the object is only now to be
                    raise FailedPreconditionError(
                        f"the cluster has no {resource.plural}.{resource.group}, or no namespace {self._namespace!r}"
                    ) from None
                if _reason(error) == "AlreadyExists":
                    raise AlreadyExistsError(f"{body['metadata']['name']} exists") from None
                raise

    def get(self, resource: Resource, name: str) -> Object | None:
        with _errors(f"get {resource.plural}"):
            try:
                return self._custom.get_namespaced_custom_object(
                    *self._at(resource), name, _request_timeout=self._timeout
                )
            except client.ApiException as error:
                if error.status == 404:
                    return None
                raise

    def delete(self, resource: Resource, item: Object) -> None:
        """Deletes this very object after its pods, which get SIGTERM now and SIGKILL after their grace period.

        One that is gone, or that another of its name has replaced, is left alone.
        """
        options = client.V1DeleteOptions(
            propagation_policy="Foreground", preconditions=client.V1Preconditions(uid=item["metadata"]["uid"])
        )
        with _errors(f"delete {resource.plural}"):
            try:
                self._custom.delete_namespaced_custom_object(
                    *self._at(resource), item["metadata"]["name"], body=options, _request_timeout=self._timeout
                )
            except client.ApiException as error:
                if error.status not in (404, 409):
                    raise

    def list(self, resource: Resource, selector: str) -> tuple[list[Object], str]:
        """The objects now, and the version that a watch goes on from."""
        with _errors(f"list {resource.plural}"):
            response = self._lister(resource)(
                label_selector=selector, _preload_content=False, _request_timeout=self._timeout
            )
            found = json.loads(response.data)
        return found["items"], found["metadata"]["resourceVersion"]

    def watch(self, resource: Resource, selector: str, version: str, seconds: int) -> Iterator[Object]:
        """Objects as they change, removed ones too, for ``seconds``; ``ExpiredError`` if ``version`` is too old."""
        with _errors(f"watch {resource.plural}"):
            stream: Any = watch.Watch(return_type="object").stream  # untyped, as above
            for event in stream(
                self._lister(resource),
                label_selector=selector,
                resource_version=version,
                timeout_seconds=seconds,
                _request_timeout=seconds + _WATCH_SLACK_SECONDS,
            ):
                if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                    yield event["object"]

    def log(self, pod: str, container: str, *, tail_lines: int | None = None, follow: bool = False) -> Iterator[bytes]:
        """A container's output, line by line; with ``follow`` until it ends. Nothing where there is none (yet)."""
        with _errors("get pods/log"):
            try:
                response = self._core.read_namespaced_pod_log(
                    pod,
                    self._namespace,
                    container=container,
                    follow=follow,
                    **({} if tail_lines is None else {"tail_lines": tail_lines}),
                    _preload_content=False,
                    # A job may be silent for hours; what is not followed comes at once.
                    _request_timeout=None if follow else self._timeout,
                )
            except client.ApiException as error:
                if error.status in (400, 404):  # not started yet, or gone
                    return
                raise
            try:
                yield from _lines(response)
            finally:
                response.close()

    def _lister(self, resource: Resource) -> Callable[..., Any]:
        if resource == PODS:
            return lambda **options: self._core.list_namespaced_pod(self._namespace, **options)
        return lambda **options: self._custom.list_namespaced_custom_object(*self._at(resource), **options)

    def _at(self, resource: Resource) -> tuple[str, str, str, str]:
        return resource.group, resource.version, self._namespace, resource.plural


def _lines(response: Any) -> Iterator[bytes]:
    rest = b""
    for chunk in response.stream(amt=None, decode_content=False):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


@contextmanager
def _errors(call: str) -> Iterator[None]:
    try:
        yield
    except client.ApiException as error:
        _raise(error, call)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise UnavailableError(f"{call}: the cluster did not answer: {error}") from None


def _raise(error: client.ApiException, call: str) -> NoReturn:
    text = f"{call}: the cluster refused: {_message(error)}"
    if error.status == GONE:
        raise ExpiredError(text) from None
    if error.status == 403 and "exceeded quota" in text:
        raise ResourceExhaustedError(text) from None
    raise _ERRORS.get(error.status or 0, UnavailableError)(text) from None


def _body(error: client.ApiException) -> Object:
    try:
        found = json.loads(error.body or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _message(error: client.ApiException) -> str:
    return _body(error).get("message") or f"{error.status} {error.reason}"


def _reason(error: client.ApiException) -> str:
    return _body(error).get("reason", "")
