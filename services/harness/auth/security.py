"""What a server is told of security, on its command line or in its environment."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rebus.errors import FailedPreconditionError, invalid
from rebus.v1.options_pb2 import Access
from rebus.watched import RELOAD_SECONDS
from services.harness.address import host_of, is_loopback
from services.harness.auth.access import AccessControl
from services.harness.auth.oidc import JwtVerifier, OidcConfig
from services.harness.auth.tokens import TokenFile
from services.harness.tls import TlsConfig

# Option -> (variable, what it is).
OPTIONS = {
    "tokens": ("REBUS_TOKENS", "file of bearer tokens: a YAML list of name, role, sha256 (see: rebus tokens create)"),
    "oidc-issuer": ("REBUS_OIDC_ISSUER", "take JWTs of this issuer"),
    "oidc-audience": ("REBUS_OIDC_AUDIENCE", "take JWTs for this audience"),
    "oidc-jwks": ("REBUS_OIDC_JWKS", "the issuer's public keys: a file or an https URL"),
    "oidc-role-claim": ("REBUS_OIDC_ROLE_CLAIM", "claim that names the role; dots lead into nested ones (role)"),
    "oidc-algorithms": ("REBUS_OIDC_ALGORITHMS", "signature algorithms to take (RS256,ES256)"),
    "tls-cert": ("REBUS_SERVER_TLS_CERT", "PEM file of the server's certificate chain"),
    "tls-key": ("REBUS_SERVER_TLS_KEY", "PEM file of its private key"),
    "tls-client-ca": ("REBUS_SERVER_TLS_CLIENT_CA", "refuse clients without a certificate of these roots (PEM)"),
    "audit-log": ("REBUS_AUDIT_LOG", "file for the audit log; without one it goes with the other logs"),
}

log = logging.getLogger("rebus.server")


@dataclass(frozen=True)
class Security:
    """How a server is protected. The default, no credentials and no TLS, is for this machine alone."""

    # File of bearer tokens.
    tokens: Path | None = None
    # The identity provider whose JWTs are taken.
    oidc: OidcConfig | None = None
    tls: TlsConfig | None = None
    # Serve other machines without asking for credentials.
    insecure: bool = False
    # Serve the contracts to callers that ask for them (to viewers, where credentials are asked for).
    reflection: bool = True
    # How often files are looked at for changes, in seconds.
    reload_seconds: float = RELOAD_SECONDS

    def access_control(self, roles: Mapping[str, Access.Role]) -> AccessControl:
        """What decides who may call which method. Errors name the file or the setting that is wrong."""
        return AccessControl(
            roles,
            tokens=TokenFile(self.tokens, interval=self.reload_seconds) if self.tokens else None,
            verifier=JwtVerifier(self.oidc, interval=self.reload_seconds) if self.oidc else None,
        )

    def check_address(self, address: str) -> None:
        """Refuses to serve other machines without asking for credentials, unless told to; warns of what is weak."""
        if is_loopback(host_of(address)):
            return
        if self.tokens is None and self.oidc is None:
            if not self.insecure:
                raise FailedPreconditionError(
                    f"will not serve {address} to everybody: pass --tokens or --oidc-issuer, "
                    "or --insecure to do so all the same"
                )
            log.warning("INSECURE: whoever reaches %s may do everything, without credentials (--insecure)", address)
        elif self.tls is None:
            log.warning(
                "no TLS on %s: tokens and data cross the network in clear, unless something before it encrypts", address
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of security; each but the switches has a variable."""
    group = parser.add_argument_group("security")
    for option, (variable, text) in OPTIONS.items():
        group.add_argument(f"--{option}", default=os.environ.get(variable), help=f"{text}; default: ${variable}")
    group.add_argument("--insecure", action="store_true", help="serve other machines without asking for credentials")
    group.add_argument("--no-reflection", action="store_true", help="do not serve the contracts by reflection")


def from_arguments(args: argparse.Namespace) -> Security:
    """The settings that the parsed options describe."""
    return Security(
        tokens=Path(args.tokens) if args.tokens else None,
        oidc=_oidc(args),
        tls=_tls(args),
        insecure=args.insecure,
        reflection=not args.no_reflection,
    )


def _oidc(args: argparse.Namespace) -> OidcConfig | None:
    if not (args.oidc_issuer or args.oidc_audience or args.oidc_jwks):
        return None
    more = {"role_claim": args.oidc_role_claim} if args.oidc_role_claim else {}
    if args.oidc_algorithms:
        more["algorithms"] = tuple(name.strip() for name in args.oidc_algorithms.split(","))
    return OidcConfig(args.oidc_issuer or "", args.oidc_audience or "", args.oidc_jwks or "", **more)


def _tls(args: argparse.Namespace) -> TlsConfig | None:
    if not (args.tls_cert or args.tls_key or args.tls_client_ca):
        return None
    for name in ("cert", "key"):
        if not getattr(args, f"tls_{name}"):
            raise invalid(f"tls.{name}", f"is required for TLS: pass --tls-{name}")
    return TlsConfig(Path(args.tls_cert), Path(args.tls_key), Path(args.tls_client_ca) if args.tls_client_ca else None)
