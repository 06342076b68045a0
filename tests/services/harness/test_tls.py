"""TLS and mutual TLS, and certificates that are rotated under a running server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from rebus.client import Client, Credentials
from rebus.errors import InvalidArgumentError, UnauthenticatedError, UnavailableError
from rebus.store import Store
from rebus.v1.dataset_pb2 import ListDatasetsRequest
from services.harness.auth import Security, tokens
from services.harness.embedded import hosted
from services.harness.tls import TlsConfig, certificate_configuration
from tests.services.harness.pem_files import Files

REFUSED_SECONDS = 30.0


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    made = Files(tmp_path)
    made.write_server(authority)
    made.write_client(authority)
    return made


@contextmanager
def serving(store: Store, tls: TlsConfig, token_file: Path | None = None) -> Iterator[str]:
    security = Security(tls=tls, tokens=token_file, reload_seconds=0)
    with hosted(store.url, ["ingest"], security=security) as endpoint:
        yield endpoint


def list_datasets(client: Client) -> None:
    client.datasets.ListDatasets(ListDatasetsRequest(), timeout=REFUSED_SECONDS)


def call(endpoint: str, credentials: Credentials) -> None:
    """One call over a connection of its own."""
    with Client(endpoint, credentials=credentials) as client:
        list_datasets(client)


def test_a_client_that_trusts_the_authority_is_served(store: Store, files: Files, tmp_path: Path) -> None:
    strange = tmp_path / "strange.pem"
    trustme.CA().cert_pem.write_to_path(strange)
    with serving(store, files.tls) as endpoint:
        call(endpoint, Credentials(ca=files.ca))
        call(endpoint.replace("127.0.0.1", "localhost"), Credentials(ca=files.ca))
        for credentials in (
            Credentials(),
            Credentials(tls=True),
            Credentials(ca=strange),
            Credentials(ca=files.ca, server_name="rebus.example"),
        ):
            with pytest.raises(UnavailableError, match="no Rebus server answers"):
                call(endpoint, credentials)


def test_certificates_are_rotated_without_a_restart(store: Store, files: Files, tmp_path: Path) -> None:
    old_root, new_root = tmp_path / "old.pem", tmp_path / "new.pem"
    old_root.write_bytes(files.ca.read_bytes())
    with (
        serving(store, files.tls) as endpoint,
        Client(endpoint, credentials=Credentials(ca=old_root)) as open_before,
    ):
        list_datasets(open_before)
        newer = trustme.CA()
        files.write_server(newer)
        newer.cert_pem.write_to_path(new_root)
        call(endpoint, Credentials(ca=new_root))
        list_datasets(open_before)  # an open connection stays as it is
        open_before.close()
        with pytest.raises(UnavailableError):
            call(endpoint, Credentials(ca=old_root))


def test_half_a_rotation_serves_what_was_there(
    store: Store, files: Files, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    issued = authority.issue_cert("127.0.0.1")
    with serving(store, files.tls) as endpoint:
        issued.private_key_pem.write_to_path(files.key)
        call(endpoint, Credentials(ca=files.ca))
        assert "tls.key: it is not the key of the certificate" in caplog.text
        files.cert.write_bytes(b"not a certificate")
        call(endpoint, Credentials(ca=files.ca))
        issued.cert_chain_pems[0].write_to_path(files.cert)
        call(endpoint, Credentials(ca=files.ca))


def test_mutual_tls_refuses_clients_without_a_certificate_of_the_authority(
    store: Store, files: Files, authority: trustme.CA
) -> None:
    known = Credentials(ca=files.ca, cert=files.client_cert, key=files.client_key)
    with serving(store, files.mutual) as endpoint:
        call(endpoint, known)
        with pytest.raises(UnavailableError):
            call(endpoint, Credentials(ca=files.ca))
        files.write_client(trustme.CA())
        with pytest.raises(UnavailableError):
            call(endpoint, known)
        files.write_client(authority)
        call(endpoint, known)


def test_the_roots_of_clients_are_rotated_too(store: Store, files: Files, tmp_path: Path) -> None:
    root = tmp_path / "server-root.pem"
    root.write_bytes(files.ca.read_bytes())
    known = Credentials(ca=root, cert=files.client_cert, key=files.client_key)
    with serving(store, files.mutual) as endpoint:
        call(endpoint, known)
        newer = trustme.CA()
        newer.cert_pem.write_to_path(files.ca)
        with pytest.raises(UnavailableError):
            call(endpoint, known)
        files.write_client(newer)
        call(endpoint, known)


def test_a_client_certificate_is_no_token(store: Store, files: Files, tmp_path: Path) -> None:
    token, entry = tokens.create("ci", "viewer")
    tokens.append(tmp_path / "tokens.yaml", entry)
    with serving(store, files.mutual, tmp_path / "tokens.yaml") as endpoint:
        with pytest.raises(UnauthenticatedError):
            call(endpoint, Credentials(ca=files.ca, cert=files.client_cert, key=files.client_key))
        call(endpoint, Credentials(ca=files.ca, cert=files.client_cert, key=files.client_key, token=token))


def test_wrong_files_name_their_field(files: Files, authority: trustme.CA) -> None:
    cert, key = files.cert.read_bytes(), files.key.read_bytes()
    other = authority.issue_cert("localhost").private_key_pem.bytes()
    for field, arguments in {
        "tls.cert": (b"", key),
        "tls.key": (cert, b""),
        "tls.client_ca": (cert, key, b""),
    }.items():
        with pytest.raises(InvalidArgumentError, match=f"^{field}: expected"):
            certificate_configuration(*arguments)
    with pytest.raises(InvalidArgumentError, match=r"^tls\.key: it is not the key"):
        certificate_configuration(cert, other)
