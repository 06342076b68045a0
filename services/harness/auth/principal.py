"""The caller of the running call."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from rebus.v1.options_pb2 import Access

ROLES: dict[str, Access.Role] = {"viewer": Access.VIEWER, "editor": Access.EDITOR, "operator": Access.OPERATOR}


@dataclass(frozen=True)
class Principal:
    """Who calls: a name that says where it is known from (``token:ci``, ``oidc:alice``), and a role.

    The role of somebody who is known and has none is ``ROLE_UNSPECIFIED``, which is below all others.
    """

    name: str
    role: Access.Role


# Everybody, where a server asks for no credentials.
ANONYMOUS = Principal("anonymous", Access.OPERATOR)

_current: ContextVar[Principal] = ContextVar("principal", default=ANONYMOUS)


def current_principal() -> Principal:
    """The caller of the call that this task (or a thread started by it with its context) answers."""
    return _current.get()


def set_principal(principal: Principal) -> None:
    """Names the caller for the rest of this task; gRPC runs each call in a task of its own."""
    _current.set(principal)


def role_name(role: Access.Role) -> str:
    """``viewer``, ``editor``, ``operator``; ``none`` where there is no role."""
    return Access.Role.Name(role).lower() if role else "none"
