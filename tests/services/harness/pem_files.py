"""Certificates and keys in files, as an operator lays them out."""

from __future__ import annotations

from pathlib import Path

import trustme

from services.harness.tls import TlsConfig


class Files:
    """PEM files of a server and its clients in one folder."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "server.pem", folder / "server.key"
        self.client_cert, self.client_key = folder / "client.pem", folder / "client.key"
        self.tls = TlsConfig(self.cert, self.key)
        self.mutual = TlsConfig(self.cert, self.key, client_ca=self.ca)

    def write_server(self, authority: trustme.CA) -> None:
        """A new certificate of the authority, its key, and the authority's root."""
        authority.cert_pem.write_to_path(self.ca)
        issued = authority.issue_cert("127.0.0.1", "localhost")
        issued.private_key_pem.write_to_path(self.key)
        self.cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))

    def write_client(self, authority: trustme.CA) -> None:
        issued = authority.issue_cert("client@rebus.example")
        issued.private_key_pem.write_to_path(self.client_key)
        self.client_cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
