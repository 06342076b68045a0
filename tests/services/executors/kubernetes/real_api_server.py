"""A real kube-apiserver over a real etcd, where the environment names their programs; no controller, no kubelet."""

from __future__ import annotations

import json
import os
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import urllib3

from tests.services.executors.kubernetes.cluster import NAMESPACE, Cluster

VARIABLES = ("KUBE_APISERVER_BIN", "ETCD_BIN")
READY_SECONDS = 120.0


def available() -> bool:
    return all(os.environ.get(name) for name in VARIABLES)


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Starts both on loopback ports and makes the namespace; they stop when the block ends."""
    # Its certificate is its own: on loopback there is nobody else to ask who it is.
    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    apiserver, etcd = (os.environ[name] for name in VARIABLES)
    etcd_port, peer_port, port = (_free_port() for _ in range(3))
    token = secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    subprocess.run(["openssl", "genrsa", "-out", folder / "sa.key", "2048"], check=True, capture_output=True)
    etcd_url, peer_url = f"http://127.0.0.1:{etcd_port}", f"http://127.0.0.1:{peer_port}"
    with ExitStack() as stack:
        _start(stack, folder, etcd, f"--data-dir={folder / 'etcd'}", f"--listen-client-urls={etcd_url}",
               f"--advertise-client-urls={etcd_url}", f"--listen-peer-urls={peer_url}",
               f"--initial-advertise-peer-urls={peer_url}", f"--initial-cluster=default={peer_url}")  # fmt: skip
        _start(stack, folder, apiserver, f"--etcd-servers={etcd_url}", "--bind-address=127.0.0.1",
               f"--secure-port={port}", f"--cert-dir={folder / 'certs'}", f"--token-auth-file={folder / 'tokens.csv'}",
               "--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount",
               "--service-cluster-ip-range=10.0.0.0/24", "--service-account-issuer=https://localhost",
               f"--service-account-key-file={folder / 'sa.key'}",
               f"--service-account-signing-key-file={folder / 'sa.key'}")  # fmt: skip
        url = f"https://127.0.0.1:{port}"
        _make_namespace(url, token)
        yield Cluster(url, token, token)


def _start(stack: ExitStack, folder: Path, program: str, *arguments: str) -> None:
    output = stack.enter_context((folder / f"{Path(program).name}.log").open("wb"))
    process = subprocess.Popen([program, *arguments], stdout=output, stderr=subprocess.STDOUT)
    stack.callback(process.wait, 30)
    stack.callback(process.terminate)


def _make_namespace(url: str, token: str) -> None:
    http = urllib3.PoolManager(cert_reqs=ssl.CERT_NONE)
    body = json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            answer = http.request("POST", f"{url}/api/v1/namespaces", body=body, headers=headers, retries=False)
        except urllib3.exceptions.HTTPError:
            answer = None
        if answer is not None and answer.status in (201, 409):
            return
        time.sleep(0.5)
    raise TimeoutError(f"kube-apiserver was not ready after {READY_SECONDS} s")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
