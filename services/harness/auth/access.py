"""One decision a call: who calls, and whether they may."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rebus.errors import PermissionDeniedError, UnauthenticatedError
from rebus.v1.options_pb2 import Access
from services.harness.auth.oidc import JwtVerifier
from services.harness.auth.principal import ANONYMOUS, Principal, role_name, set_principal
from services.harness.auth.tokens import TokenFile

Metadata = Iterable[tuple[str, str | bytes]]

AUTHORIZATION = "authorization"
SCHEME = "bearer"
# Probes carry no credentials, and health tells nothing but that a server runs.
OPEN = ("/grpc.health.v1.Health/",)
REFLECTION = "/grpc.reflection."


class AccessControl:
    """Authenticates and authorises every call of a server; without ``tokens`` and ``jwt`` everybody may do all."""

    def __init__(
        self,
        roles: Mapping[str, Access.Role],
        *,
        tokens: TokenFile | None = None,
        verifier: JwtVerifier | None = None,
    ) -> None:
        self._roles = roles
        self._tokens = tokens
        self._verifier = verifier
        self.enabled = tokens is not None or verifier is not None

    async def admit(self, method: str, metadata: Metadata) -> None:
        """Names the caller for the rest of the task, or raises.

        Raises ``UnauthenticatedError`` without valid credentials, ``PermissionDeniedError`` below the method's role.
        """
        if not self.enabled:
            set_principal(ANONYMOUS)
        elif not method.startswith(OPEN):
            principal = await self._authenticate(bearer(metadata))
            set_principal(principal)
            self._authorise(principal, method)

    async def _authenticate(self, token: str) -> Principal:
        if self._tokens is not None and (found := self._tokens.find(token)) is not None:
            return found
        if self._verifier is not None:
            return await self._verifier.verify(token)
        raise UnauthenticatedError("the token is not known")

    def _authorise(self, principal: Principal, method: str) -> None:
        needed = self.role_of(method)
        if principal.role < needed:
            required, held = role_name(needed), role_name(principal.role)
            raise PermissionDeniedError(
                f"{method} needs the role {required}; {principal.name} has {held}",
                metadata={"method": method, "required_role": required, "role": held},
            )

    def role_of(self, method: str) -> Access.Role:
        """The lowest role that may call a method; the highest of all for one that nobody declared."""
        if method.startswith(REFLECTION):
            return Access.VIEWER
        return self._roles.get(method, Access.OPERATOR)


def bearer(metadata: Metadata) -> str:
    """The token of the one ``authorization: Bearer ...``."""
    values = [value for key, value in metadata if key == AUTHORIZATION]
    if not values:
        raise UnauthenticatedError("no credentials; send authorization: Bearer <token> (clients read REBUS_TOKEN)")
    if len(values) > 1 or not isinstance(values[0], str):
        raise UnauthenticatedError("expected one authorization: Bearer <token>")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != SCHEME or not token:
        raise UnauthenticatedError("expected authorization: Bearer <token>")
    return token
