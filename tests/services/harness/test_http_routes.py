"""Every HTTP route refuses who must be refused, speaks TLS where calls do, and follows a new certificate."""

from __future__ import annotations

import asyncio
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from prometheus_client import CollectorRegistry

from rebus.store import Store
from services.harness.auth import AccessControl, Security, tokens
from services.harness.embedded import hosted
from services.harness.telemetry import Telemetry, TelemetrySettings, http
from tests.services.harness.conftest import Secured
from tests.services.harness.pem_files import Files
from tests.waiting import until

# Whatever the server answers by itself, and what it does not.
ROUTES = [*http.OPEN_ROUTES, *http.ROLES, "/", "/debug", "/metrics/", "/METRICS", "//metrics"]


@contextmanager
def serving(store: Store, security: Security) -> Iterator[int]:
    telemetry = Telemetry(TelemetrySettings(metrics_port=0))
    with hosted(store.url, ["ingest"], security=security, telemetry=telemetry):
        assert telemetry.metrics_port is not None
        yield telemetry.metrics_port


def fetch(url: str, authorization: str = "", context: ssl.SSLContext | None = None) -> tuple[int, str, str]:
    """Status, the scheme that a refusal asks for, body."""
    headers = {"Authorization": authorization} if authorization else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10, context=context) as found:
            return found.status, "", found.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get("WWW-Authenticate", ""), error.read().decode()


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer nobody", "Basic YTpi"])
@pytest.mark.parametrize("route", ROUTES)
def test_strangers_reach_the_probes_alone(secured: Secured, route: str, authorization: str) -> None:
    status, asks, body = fetch(f"http://127.0.0.1:{secured.metrics_port}{route}", authorization)
    if route in http.OPEN_ROUTES:
        assert status == 200
    else:
        assert (status, asks) == (401, "Bearer")
        assert "rebus" not in body


@pytest.mark.parametrize("role", ["viewer", "editor", "operator"])
def test_every_role_reads_the_metrics_and_the_highest_hears_what_there_is(secured: Secured, role: str) -> None:
    at, bearer = f"http://127.0.0.1:{secured.metrics_port}", f"Bearer {secured.tokens[role]}"
    status, _, body = fetch(f"{at}/metrics", bearer)
    assert status == 200
    assert "rebus_event_loop_lag_seconds" in body
    assert fetch(f"{at}/debug", bearer)[0] == (404 if role == "operator" else 403)


def test_without_access_control_metrics_are_open(store: Store) -> None:
    with serving(store, Security()) as port:
        assert fetch(f"http://127.0.0.1:{port}/metrics")[0] == 200


def test_who_cannot_be_asked_about_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.1)
    loop, free = asyncio.new_event_loop(), threading.Event()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    gate = http.Gate(AccessControl(http.ROLES), loop)
    server = http.MetricsServer(CollectorRegistry(), lambda: True, gate, "127.0.0.1", 0)
    try:
        at = f"http://127.0.0.1:{server.port}"
        loop.call_soon_threadsafe(free.wait, 30)
        assert fetch(f"{at}/metrics")[0] == 503
        assert fetch(f"{at}/healthz")[0] == 200
        free.set()
        assert until(lambda: fetch(f"{at}/metrics")[0] == 200)
    finally:
        free.set()
        server.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_certificate_is_rotated_under_the_port(store: Store, tmp_path: Path) -> None:
    token, entry = tokens.create("scraper", "viewer")
    (tmp_path / "tokens.yaml").write_text(entry.line)
    files, first, second = Files(tmp_path), trustme.CA(), trustme.CA()
    files.write_server(first)
    # Clients of calls need a certificate here; a scraper has none, but a token.
    security = Security(tls=files.mutual, tokens=tmp_path / "tokens.yaml", reload_seconds=0)

    def scraped(authority: trustme.CA) -> bool:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        try:
            return fetch(f"https://127.0.0.1:{port}/metrics", f"Bearer {token}", context)[0] == 200
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                return False
            raise

    with serving(store, security) as port:
        assert scraped(first)
        assert not scraped(second)
        files.write_server(second)
        until(lambda: scraped(second), seconds=20)
        assert not scraped(first)
        files.key.write_text("half a wri")  # what was read before stays
        assert scraped(second)
