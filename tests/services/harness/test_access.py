"""Every RPC refuses who must be refused and admits who may call it."""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from rebus.store import Store
from rebus.v1.options_pb2 import Access
from services.harness.auth import Security, tokens
from services.harness.auth.principal import ROLES as role_numbers
from services.harness.auth.roles import declared_role, required_roles
from services.harness.embedded import hosted
from tests.services.harness.calls import METHODS, bearer, call, call_all
from tests.services.harness.conftest import ROLES, Secured
from tests.services.harness.identity import HOUR, SigningKey, signed_with_the_public_key, unsigned

# What the images of the requests that viewers may make are uploaded with counts as part of those.
FOR_VIEWERS = ("Get", "List", "Watch", "Search", "Embed", "Generate", "Upload")
ADMITTED = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}

# What each caller presents, and what the refusal says.
STRANGERS: dict[str, tuple[Callable[[Secured], str], str]] = {
    "an unknown token": (lambda s: tokens.create("x", "operator")[0], "it is no JWT"),
    "a known token cut short": (lambda s: s.tokens["operator"][:-1], "it is no JWT"),
    "a known token's digest": (lambda s: tokens.digest(s.tokens["operator"]), "it is no JWT"),
    "an expired JWT": (lambda s: s.key.sign(exp=int(time.time()) - HOUR), "it has expired"),
    "a JWT of tomorrow": (lambda s: s.key.sign(nbf=int(time.time()) + HOUR), "it is not valid yet"),
    "a JWT without an end": (lambda s: s.key.sign(exp=None), "it lacks one of the claims"),
    "a JWT without a subject": (lambda s: s.key.sign(sub=None), "it lacks one of the claims"),
    "another issuer": (lambda s: s.key.sign(iss="https://other.example"), "it is from another issuer"),
    "another audience": (lambda s: s.key.sign(aud="other"), "it is for another audience"),
    "another key": (lambda s: SigningKey("first").sign(), "its signature is wrong"),
    "an unknown kid": (lambda s: SigningKey("second").sign(), "the key it names is not known"),
    "algorithm none": (lambda s: unsigned("first"), "its algorithm is none of"),
    "HS256 with the public key": (lambda s: signed_with_the_public_key(s.key), "its algorithm is none of"),
    "a signature cut off": (lambda s: s.key.sign().rpartition(".")[0] + ".", "its signature is wrong"),
}


def test_every_method_declares_its_role() -> None:
    assert len(METHODS) > 30
    assert {*role_numbers.values(), Access.ROLE_UNSPECIFIED} == {*Access.Role.values()}
    for path, method in METHODS.items():
        role = declared_role(method)
        assert role != Access.ROLE_UNSPECIFIED, f"{path} lacks the option (rebus.v1.access)"
        assert (role == Access.VIEWER) == method.name.startswith(FOR_VIEWERS), path
        assert (role == Access.OPERATOR) == method.name.startswith("Delete"), path


def test_a_service_without_roles_cannot_be_hosted() -> None:
    with pytest.raises(ValueError, match=r"methods without the option .*: /grpc.health.v1.Health/Check"):
        required_roles(["grpc.health.v1.Health"])


@pytest.mark.parametrize("metadata", [(), (("authorization", ""),), (("authorization", "Basic YTpi"),)])
def test_no_bearer_token_is_refused_everywhere(guarded: grpc.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
    for path, code, message, reason in call_all(guarded, *metadata):
        assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"), path
        assert "Bearer <token>" in message


def test_two_tokens_are_refused(guarded: grpc.Channel, secured: Secured) -> None:
    header = bearer(secured.tokens["operator"])
    assert call(guarded, "/rebus.v1.ModelService/ListModels", header)[0] is grpc.StatusCode.OK
    assert call(guarded, "/rebus.v1.ModelService/ListModels", header, header)[0] is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("case", STRANGERS)
def test_a_stranger_is_refused_everywhere(
    guarded: grpc.Channel, secured: Secured, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, says = STRANGERS[case]
    token = make(secured)
    for path, code, message, reason in call_all(guarded, bearer(token)):
        assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"), path
        assert says in message
        assert token not in message
    assert token not in caplog.text


@pytest.mark.parametrize(
    ("kind", "role"),
    [("jwt", "none"), *((kind, role) for kind in ("token", "jwt") for role in ROLES)],
)
def test_a_role_may_do_what_it_names_and_what_is_below(
    guarded: grpc.Channel, secured: Secured, kind: str, role: str
) -> None:
    token = secured.tokens[role] if kind == "token" else secured.key.sign(role=role, sub="alice")
    held = {"none": 0, "viewer": Access.VIEWER, "editor": Access.EDITOR, "operator": Access.OPERATOR}[role]
    name = f"token:{role}" if kind == "token" else "oidc:alice"
    for path, code, message, reason in call_all(guarded, bearer(token)):
        needed = declared_role(METHODS[path])
        if held >= needed:
            assert code in ADMITTED, (path, code, message)
        else:
            assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"), path
            assert message == f"{path} needs the role {Access.Role.Name(needed).lower()}; {name} has {role}"


def test_without_credentials_configured_everybody_may_call_everything(channel: grpc.Channel) -> None:
    for path, code, message, _ in call_all(channel):
        assert code in ADMITTED, (path, code, message)


def reflected(channel: grpc.Channel, *metadata: tuple[str, str]) -> list[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    answer = next(stub.ServerReflectionInfo(requests, metadata=metadata))
    return [service.name for service in answer.list_services_response.service]


def test_health_is_open_and_reflection_is_for_viewers(guarded: grpc.Channel, secured: Secured) -> None:
    health = health_pb2_grpc.HealthStub(guarded).Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        reflected(guarded)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(grpc.RpcError) as caught:
        reflected(guarded, bearer(secured.key.sign(role="none")))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED  # pyright: ignore[reportAttributeAccessIssue]
    assert "rebus.v1.TrainingService" in reflected(guarded, bearer(secured.tokens["viewer"]))


def test_reflection_can_be_left_out(store: Store) -> None:
    security = Security(reflection=False)
    with (
        hosted(store.url, ["ingest"], security=security) as endpoint,
        grpc.insecure_channel(endpoint) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        reflected(channel)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # pyright: ignore[reportAttributeAccessIssue]


def test_a_refused_call_is_ended_before_its_request_is_read(guarded: grpc.Channel) -> None:
    """Bytes that are no message would otherwise be an error of another kind."""
    raw = guarded.unary_unary("/rebus.v1.TrainingService/CreateRun")
    with pytest.raises(grpc.RpcError) as caught:
        raw(b"\xff" * (8 << 20), timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED  # pyright: ignore[reportAttributeAccessIssue]
