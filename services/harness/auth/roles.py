"""Which role each method asks for, read from the option ``rebus.v1.access`` in the protos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

from rebus.v1.options_pb2 import Access, access


def methods_of(services: Iterable[str]) -> Iterator[tuple[str, MethodDescriptor]]:
    """Every method of the named services, as ``/rebus.v1.TrainingService/CreateRun`` and its descriptor."""
    pool = descriptor_pool.Default()
    for service in services:
        for method in pool.FindServiceByName(service).methods:
            yield f"/{service}/{method.name}", method


def declared_role(method: MethodDescriptor) -> Access.Role:
    """The lowest role that may call a method; ``ROLE_UNSPECIFIED`` if its proto names none."""
    return method.GetOptions().Extensions[access].role  # pyright: ignore[reportArgumentType]


def required_roles(services: Iterable[str]) -> dict[str, Access.Role]:
    """The role that each method of the named services asks for. Raises ``ValueError`` where a proto names none."""
    roles = {path: declared_role(method) for path, method in methods_of(services)}
    without = [path for path, role in roles.items() if role == Access.ROLE_UNSPECIFIED]
    if without:
        raise ValueError(f"methods without the option (rebus.v1.access): {', '.join(without)}")
    return roles
