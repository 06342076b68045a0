"""TLS and mutual TLS of a server; certificates are rotated without a restart."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from rebus.errors import invalid
from rebus.watched import RELOAD_SECONDS, Watched

FIELD = "tls"


@dataclass(frozen=True)
class TlsConfig:
    """PEM files of a server's identity."""

    # The server's certificate, then those between it and a root.
    cert: Path
    # Its private key, unencrypted.
    key: Path
    # Roots of client certificates. Set: a client without a certificate of theirs is refused.
    client_ca: Path | None = None


def server_credentials(config: TlsConfig, *, interval: float = RELOAD_SECONDS) -> grpc.ServerCredentials:
    """Credentials that look for new files at each handshake (at most every ``interval`` seconds); connections that
    are open keep theirs."""
    paths = [config.cert, config.key, *([config.client_ca] if config.client_ca else [])]
    watched = Watched(paths, certificate_configuration, field=FIELD, interval=interval)
    first = watched.value
    # gRPC keeps one configuration and asks at each handshake whether there is another.
    used = [first]

    def changed() -> grpc.ServerCertificateConfiguration | None:
        newest = watched.value
        if newest is used[0]:
            return None
        used[0] = newest
        return newest

    return grpc.dynamic_ssl_server_credentials(
        first,
        changed,  # pyright: ignore[reportArgumentType] its stub forgets None, which means unchanged
        require_client_authentication=bool(config.client_ca),
    )


def https_context(config: TlsConfig, *, interval: float = RELOAD_SECONDS) -> Callable[[], ssl.SSLContext]:
    """What gives each new HTTPS connection the newest certificate. Clients need none of their own: probes and scrapers
    have none, and what is worth protecting asks for a token."""

    def loaded(cert: bytes, key: bytes) -> ssl.SSLContext:
        certificate_configuration(cert, key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(config.cert, config.key)
        except (OSError, ssl.SSLError) as error:
            raise invalid(FIELD, f"{config.cert} and {config.key} cannot be used: {error}") from None
        return context

    watched = Watched([config.cert, config.key], loaded, field=FIELD, interval=interval)
    return lambda: watched.value


def certificate_configuration(
    cert: bytes, key: bytes, client_ca: bytes | None = None
) -> grpc.ServerCertificateConfiguration:
    """What gRPC serves; checked first, for with a key of another certificate every handshake would fail."""
    certificates = _certificates(cert, "cert")
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise invalid(f"{FIELD}.key", "expected an unencrypted private key in PEM") from None
    try:
        served = certificates[0].public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise invalid(f"{FIELD}.cert", "the certificate's key is of an unknown kind") from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if served.public_bytes(*form) != private.public_key().public_bytes(*form):
        raise invalid(f"{FIELD}.key", "it is not the key of the certificate")
    if client_ca is not None:
        _certificates(client_ca, "client_ca")
    return grpc.ssl_server_certificate_configuration([(key, cert)], client_ca)


def _certificates(pem: bytes, name: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise invalid(f"{FIELD}.{name}", "expected certificates in PEM") from None
