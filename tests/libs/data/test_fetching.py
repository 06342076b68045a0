"""Fetching from the web: what may be fetched and from where, over real sockets and a real certificate."""

from __future__ import annotations

import io
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path

import pytest
import trustme

from rebus.data.fetching import HOSTS_ENV, NETWORKS_ENV, Fetcher, FetchLimits, FetchPolicy
from rebus.data.readers import Quarantined
from rebus.data.sources import ROOTS_ENV, build_reader
from rebus.errors import InvalidArgumentError, NotFoundError, UnavailableError
from rebus.v1.dataset_pb2 import Source
from tests.libs.data.reading import png, read
from tests.libs.data.test_reader_formats import jpeg, tar

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
QUICK = FetchLimits(connect_s=2, silence_s=2, image_s=1, file_s=5, redirects=3, attempts=2, backoff_s=0.01)


@dataclass
class Site:
    """A web server on loopback: what it answers, and what it was asked."""

    port: int = 0
    answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def serve(self, path: str, data: bytes) -> str:
        self.answers[path] = lambda handler: send(handler, 200, data)
        return self.url(path)

    def redirect(self, path: str, location: str) -> str:
        self.answers[path] = lambda handler: send(handler, 302, b"", Location=location)
        return self.url(path)


def send(handler: BaseHTTPRequestHandler, status: int, data: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content_Length": str(len(data)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append((self.path, self.headers["Host"]))
            try:
                site.answers.get(self.path, lambda handler: send(handler, 404, b""))(self)
            except OSError:
                return  # the client hung up

        def log_message(self, format: str, *args: object) -> None:
            return

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            return  # a handshake that the client refused

    server = Server(("127.0.0.1", 0), Handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    site.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as found:
        yield found


def fetcher(*hosts: str, limits: FetchLimits = QUICK, **options: object) -> Fetcher:
    return Fetcher(FetchPolicy(hosts=hosts or ("127.0.0.1:*",), networks=LOOPBACK), limits=limits, **options)  # pyright: ignore


def loopback(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
        ("198.18.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::a00:1", False),
        ("::127.0.0.1", False),
        ("2001:db8::1", False),
    ],
)
def test_only_public_addresses_are_allowed(address: str, allowed: bool) -> None:
    assert FetchPolicy().allows(address) is allowed


def test_an_operators_networks_are_allowed_and_nothing_beside_them() -> None:
    policy = FetchPolicy(networks=(ip_network("10.1.0.0/16"), ip_network("fd00::/8")))

    found = ["10.1.2.3", "10.2.0.1", "fd00::1", "fc00::1", "::ffff:10.1.0.1", "127.0.0.1"]
    assert [policy.allows(address) for address in found] == [True, False, True, False, True, False]


@pytest.mark.parametrize(
    "url",
    [
        "ftp://ok.org/x", "file:///etc/passwd", "https:///x", "https://user:pw@ok.org/x", "https://other.org/x",
        "https://ok.org:8443/x", "https://ok.org.evil.org/x", "https://evil.org/https://ok.org/", "http://[::1/x",
        "https://ok.org/a b", "https://ok.org/\r\nHost: x", "https://ok.org:99999/", "//ok.org/x", "https://ök.org/",
        "https://ok.org@evil.org/", "https://evil.org#@ok.org/", "https://evil.org\\@ok.org/", "https://sub.ok.org/x",
    ],
)  # fmt: skip
def test_addresses_off_the_list_are_refused_before_anything_is_asked(url: str) -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise AssertionError(f"asked for {host}")

    with pytest.raises(InvalidArgumentError):
        Fetcher(FetchPolicy(hosts=("ok.org", "*.wild.org")), resolve=resolve).read(url, max_bytes=10)


def test_hosts_and_networks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HOSTS_ENV, raising=False)
    with pytest.raises(InvalidArgumentError, match="not a host that may be fetched from"):
        FetchPolicy.from_environment().checked("https://example.org/")
    monkeypatch.setenv(HOSTS_ENV, "Data.example.org, *.wild.org:8443")
    monkeypatch.setenv(NETWORKS_ENV, "10.0.0.0/8")
    policy = FetchPolicy.from_environment()
    assert policy.checked("https://DATA.example.org/x").hostname == "data.example.org"
    assert policy.checked("https://a.wild.org:8443/x").port == 8443
    assert policy.allows("10.0.0.1")
    monkeypatch.setenv(NETWORKS_ENV, "10.0.0.1/8")
    with pytest.raises(InvalidArgumentError, match=NETWORKS_ENV):
        FetchPolicy.from_environment()


def test_loopback_is_refused_unless_the_operator_allows_it(site: Site) -> None:
    url = site.serve("/a", b"secret")
    guarded = Fetcher(FetchPolicy(hosts=("*",)), limits=QUICK)

    for address in (url, url.replace("127.0.0.1", "localhost"), url.replace("127.0.0.1", "2130706433")):
        with pytest.raises(InvalidArgumentError, match="may not be fetched from"):
            guarded.read(address, max_bytes=10)
    assert site.asked == []
    assert fetcher("*").read(url, max_bytes=10) == b"secret"


def test_one_private_address_among_public_ones_is_refused() -> None:
    policy = FetchPolicy(hosts=("two.org",))

    with pytest.raises(InvalidArgumentError, match="10.0.0.1, which may not"):
        Fetcher(policy, resolve=lambda host, port: ["8.8.8.8", "10.0.0.1"]).read("http://two.org/", max_bytes=10)


def test_the_connection_goes_to_the_address_that_was_checked(site: Site) -> None:
    site.serve("/x?y=1", b"ok")
    answers = [["127.0.0.1"], ["10.0.0.1"]]  # a name service that changes its mind

    pinned = fetcher("pinned.test:*", resolve=lambda host, port: answers.pop(0))

    assert pinned.read(site.url("/x?y=1", "pinned.test"), max_bytes=10) == b"ok"
    assert site.asked == [("/x?y=1", f"pinned.test:{site.port}")]
    assert len(answers) == 1


def test_every_redirect_is_checked_anew(site: Site) -> None:
    site.serve("/end", b"ok")
    site.redirect("/one", "/end")
    for path, location in {
        "/private": "http://10.0.0.1/", "/other": "http://evil.org/", "/scheme": "file:///etc/passwd", "/loop": "/loop",
        "/none": "",
    }.items():  # fmt: skip
        site.redirect(path, location)

    def resolve(host: str, port: int) -> list[str]:
        return [host if host[0].isdigit() else "127.0.0.1"]

    follows = fetcher("127.0.0.1:*", "10.0.0.1", resolve=resolve)

    assert follows.read(site.url("/one"), max_bytes=10) == b"ok"
    reasons = {"/private": "resolves to 10.0.0.1", "/other": "evil.org is not a host", "/scheme": "expected http",
               "/loop": "more than 3 redirects", "/none": "more than 3 redirects"}  # fmt: skip
    for path, reason in reasons.items():
        with pytest.raises(InvalidArgumentError, match=reason):
            follows.read(site.url(path), max_bytes=10)


def test_bytes_are_bounded_whatever_is_announced(site: Site) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 65536)

    site.answers["/endless"] = endless
    site.serve("/eleven", b"x" * 11)
    site.serve("/ten", b"x" * 10)
    site.answers["/zipped"] = lambda handler: send(handler, 200, b"x", Content_Encoding="gzip")
    site.answers["/claims"] = lambda handler: send(handler, 200, b"x", Content_Length=str(1 << 60))

    assert fetcher().read(site.url("/ten"), max_bytes=10) == b"x" * 10
    for path in ("/endless", "/eleven", "/claims"):
        with pytest.raises(InvalidArgumentError, match="more than the limit of 10 bytes"):
            fetcher().read(site.url(path), max_bytes=10)
    with pytest.raises(InvalidArgumentError, match="compressed"):
        fetcher().read(site.url("/zipped"), max_bytes=10)


def test_failures_that_may_pass_are_tried_again(site: Site) -> None:
    turns = iter([503, 200])
    site.answers["/flaky"] = lambda handler: send(handler, next(turns), b"ok")
    site.answers["/cut"] = lambda handler: send(handler, 200, b"abc", Content_Length="10")
    site.answers["/down"] = lambda handler: send(handler, 500, b"")
    site.answers["/teapot"] = lambda handler: send(handler, 418, b"")

    assert fetcher().read(site.url("/flaky"), max_bytes=10) == b"ok"
    target = io.BytesIO()
    for path, error in {"/cut": UnavailableError, "/down": UnavailableError, "/gone": NotFoundError,
                        "/teapot": InvalidArgumentError}.items():  # fmt: skip
        with pytest.raises(error):
            fetcher().download(site.url(path), target, max_bytes=100)
    assert [path for path, _ in site.asked].count("/down") == 2
    with pytest.raises(InvalidArgumentError, match="HTTP 500"):  # of an image: the web forgets
        fetcher().read(site.url("/down"), max_bytes=10)


@pytest.mark.parametrize("slow", ["headers", "body"])
def test_a_server_that_drips_is_hung_up_on(site: Site, slow: str) -> None:
    """Each byte comes well before a wait for bytes is over; the whole never would."""

    def drip(handler: BaseHTTPRequestHandler) -> None:
        if slow == "body":
            send(handler, 200, b"", Content_Length="100000")
        while True:
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.05)

    site.answers["/drip"] = drip
    limits = FetchLimits(connect_s=2, silence_s=60, image_s=0.3, attempts=1)

    with pytest.raises(InvalidArgumentError, match="took too long"):
        fetcher(limits=limits).read(site.url("/drip"), max_bytes=1 << 20)


def test_certificates_are_checked_against_the_name_not_the_address() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("media.test").configure_cert(context)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)

    with serving(context) as site:
        site.serve("/a", b"ok")
        secure = fetcher("*", resolve=loopback, trust=trust)
        assert secure.read(f"https://media.test:{site.port}/a", max_bytes=10) == b"ok"
        with pytest.raises(InvalidArgumentError, match="certificate is not trusted"):
            secure.read(f"https://other.test:{site.port}/a", max_bytes=10)
        with pytest.raises(InvalidArgumentError, match="certificate is not trusted"):
            fetcher("*", resolve=loopback).read(f"https://media.test:{site.port}/a", max_bytes=10)
        site.redirect("/down", f"http://media.test:{site.port}/a")
        with pytest.raises(InvalidArgumentError, match="redirects from https"):
            secure.read(f"https://media.test:{site.port}/down", max_bytes=10)


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOSTS_ENV, "127.0.0.1:*")
    monkeypatch.setenv(NETWORKS_ENV, "127.0.0.0/8")


@pytest.mark.usefixtures("allowed")
def test_a_source_by_web_address(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = site.serve("/data/s.tar?sig=1", tar([("1.jpg", jpeg()), ("1.txt", b"one")]))
    site.serve("/data/captions.csv", b"image,caption\ni/a%20b.png,two\nnone.png,x\n")
    site.serve("/data/i/a%2520b.png", png(1))

    (sample,) = build_reader(Source(reader="webdataset", uri=shard), "source")
    assert (sample.id, sample.media) == ("s/s.tar/1", [jpeg()])  # pyright: ignore
    good, bad = build_reader(Source(reader="image-folder", uri=site.url("/data/captions.csv")), "source")
    assert good.media == [png(1)]  # pyright: ignore
    assert isinstance(bad, Quarantined)
    assert "/data/none.png: no such file" in bad.reason
    folder = Source(reader="webdataset", uri=site.url("/data/"))
    with pytest.raises(InvalidArgumentError, match="cannot be listed"):
        list(build_reader(folder, "source"))
    monkeypatch.delenv(HOSTS_ENV)
    with pytest.raises(InvalidArgumentError, match=r"source.uri: .*127.0.0.1:\d+ is not a host") as caught:
        build_reader(Source(reader="webdataset", uri=shard), "source")
    assert caught.value.violations[0].field == "source.uri"


@pytest.mark.usefixtures("allowed")
def test_images_that_rows_name_by_address(site: Site, tmp_path: Path) -> None:
    image = site.serve("/a.png", png(5))
    (tmp_path / "p.html").write_text(f"<p>x<img src='{image}'><p>y")
    (tmp_path / "m.jsonl").write_text(
        f'{{"text_list": ["A"], "image_info": [{{"raw_url": "{image}", "matched_text_index": 0}}]}}\n'
        f'{{"text_list": ["B"], "image_info": [{{"raw_url": "{site.url("/no.png")}", "matched_text_index": 0}}]}}\n'
    )

    assert [s.media for s in read(tmp_path, "html")[0]] == [[png(5)]]
    samples, bad = read(tmp_path, "mmc4")
    assert [s.media for s in samples] == [[png(5)]]
    assert "no such file (HTTP 404)" in bad["m.jsonl:2"]


def test_a_server_reads_no_store_that_it_was_not_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ROOTS_ENV, str(tmp_path))

    for uri in ("s3://bucket/x", "s3://bucket"):
        with pytest.raises(InvalidArgumentError, match="outside the stores"):
            build_reader(Source(reader="text", uri=uri), "source")
    monkeypatch.setenv("REBUS_INGEST_STORES", "s3://bucket/data/, s3://other")
    for uri in ("s3://bucket/database/x", "s3://bucket", "s3://others/x"):
        with pytest.raises(InvalidArgumentError, match="outside the stores"):
            build_reader(Source(reader="text", uri=uri), "source")
    for uri in ("s3://bucket/data/../x", "s3://", "s3://bucket//x", "s3://bucket/x?y", "memory://x", "http:///x"):
        with pytest.raises(InvalidArgumentError):
            build_reader(Source(reader="text", uri=uri), "source")
