"""Fetching from the web what data name, without letting data choose what this machine talks to.

Addresses in a dataset are hostile input: one may name a cloud's metadata service or a neighbour on the private
network. A host must be on the operator's list; all its addresses are resolved and none may be private; the
connection goes to the address that was checked, so that a second answer of the name service changes nothing; every
redirect passes the same checks. Bytes, time and redirects are bounded.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import BinaryIO
from urllib.parse import SplitResult, urljoin, urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from rebus.errors import InvalidArgumentError, NotFoundError, UnavailableError, invalid

# Hosts, separated by commas, that sources and their images may be fetched from: ``data.example.org``,
# ``*.example.org``, ``host:8443`` (``host:*`` for any port besides 80 and 443), or ``*`` for every public host. Unset:
# none.
HOSTS_ENV = "REBUS_INGEST_HOSTS"
# Networks (``10.1.0.0/16``) whose addresses are allowed although they are not public: an operator's own stores.
NETWORKS_ENV = "REBUS_INGEST_NETWORKS"

_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REDIRECTS = {301, 302, 303, 307, 308}
# Worth another attempt: too many requests, and failures of a gateway.
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_CHUNK = 1 << 16

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], list[str]]


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """Bounds of one fetch; each holds for all its attempts and redirects together unless it says otherwise."""

    # Connecting, and each wait for bytes.
    connect_s: float = 10
    silence_s: float = 20
    # From the first byte sent to the last received, per attempt: an image, and the file of a source.
    image_s: float = 60
    file_s: float = 6 * 3600
    redirects: int = 5
    attempts: int = 3
    # The wait before the second attempt; it doubles.
    backoff_s: float = 0.5


@dataclass(frozen=True, kw_only=True)
class FetchPolicy:
    """Which hosts may be talked to, and which addresses besides public ones."""

    hosts: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()

    @classmethod
    def from_environment(cls) -> FetchPolicy:
        """The operator's settings; ``InvalidArgumentError`` for a network that is none."""
        hosts = tuple(host.lower() for host in _listed(HOSTS_ENV))
        try:
            return cls(hosts=hosts, networks=tuple(ipaddress.ip_network(text) for text in _listed(NETWORKS_ENV)))
        except ValueError as error:
            raise invalid(NETWORKS_ENV, str(error)) from None

    def checked(self, url: str) -> SplitResult:
        """The parts of an address that may be fetched; resolves nothing. Raises ``InvalidArgumentError``."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise invalid("url", f"{url[:200]!r} is no web address: {error}") from None
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            raise invalid("url", f"{url[:200]!r}: expected http://host/... or https://host/...")
        if parts.username is not None or not url.isascii() or not url.isprintable() or " " in url:
            raise invalid("url", f"{parts.hostname}: credentials, blanks and unescaped characters are not allowed")
        host = parts.hostname
        if port not in (None, _DEFAULT_PORTS[parts.scheme]):
            host = f"{host}:{port}"
        if not any(fnmatchcase(host, pattern) for pattern in self.hosts):
            raise invalid("url", f"{host} is not a host that may be fetched from (see {HOSTS_ENV})")
        return parts

    def allows(self, address: str) -> bool:
        """Whether an address may be connected to: a public one, or one of the operator's networks."""
        ip = _unwrapped(ipaddress.ip_address(address.partition("%")[0]))
        return _is_public(ip) or any(ip.version == network.version and ip in network for network in self.networks)


class Fetcher:
    """Fetches over HTTP(S) within a policy and limits; thread-safe. Proxies of the environment are not used."""

    def __init__(
        self, policy: FetchPolicy, *, limits: FetchLimits | None = None, resolve: Resolver | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self._policy = policy
        self._limits = limits or FetchLimits()
        self._resolve = resolve or _system_addresses
        self._trust = trust or ssl.create_default_context()

    @classmethod
    def from_environment(cls) -> Fetcher:
        """A fetcher within the operator's settings."""
        return cls(FetchPolicy.from_environment())

    def check(self, url: str) -> None:
        """``InvalidArgumentError`` if the address may not be fetched, as far as that shows without a network."""
        self._policy.checked(url)

    def read(self, url: str, *, max_bytes: int) -> bytes:
        """The bytes of an image; a host that does not answer is ``InvalidArgumentError`` too: the web forgets."""
        buffer = io.BytesIO()
        try:
            self._download(url, buffer, max_bytes, self._limits.image_s)
        except UnavailableError as error:
            raise InvalidArgumentError(str(error)) from None
        return buffer.getvalue()

    def download(self, url: str, target: BinaryIO, *, max_bytes: int) -> None:
        """Writes the file of a source to ``target``.

        ``InvalidArgumentError`` for what may not be fetched or is too large, ``NotFoundError`` for what is not
        there, ``UnavailableError`` if all attempts failed.
        """
        self._download(url, target, max_bytes, self._limits.file_s)

    def _download(self, url: str, target: BinaryIO, max_bytes: int, total_s: float) -> None:
        wait = self._limits.backoff_s
        for attempt in range(1, self._limits.attempts + 1):
            target.seek(0)
            target.truncate()
            try:
                return self._follow(url, target, max_bytes, time.monotonic() + total_s)
            except UnavailableError:
                if attempt == self._limits.attempts:
                    raise
            time.sleep(wait)
            wait *= 2
        return None

    def _follow(self, url: str, target: BinaryIO, max_bytes: int, ends: float) -> None:
        for _ in range(self._limits.redirects + 1):
            parts = self._policy.checked(url)
            with self._answer(parts, ends) as answer:
                if answer.status not in _REDIRECTS:
                    _check_status(answer.status, parts)
                    return _copy(answer, target, max_bytes, shown(parts), ends)
                elsewhere = urljoin(url, answer.headers.get("Location", ""))
            if parts.scheme == "https" and urlsplit(elsewhere).scheme != "https":
                raise invalid("url", f"{shown(parts)}: redirects from https to something else")
            url = elsewhere
        raise invalid("url", f"{shown(urlsplit(url))}: more than {self._limits.redirects} redirects")

    @contextmanager
    def _answer(self, parts: SplitResult, ends: float) -> Iterator[BaseHTTPResponse]:
        """The answer to a GET, its body unread. Whatever breaks is ``UnavailableError``, also inside the block."""
        where = shown(parts)
        late = threading.Event()
        try:
            connection = self._connected(parts)
            timer = threading.Timer(max(0.0, ends - time.monotonic()), _hang_up, (connection, late))
            timer.daemon = True
            timer.start()
            try:
                target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
                # The body as it was stored: nothing is decompressed here.
                headers = {"Host": parts.netloc, "Accept-Encoding": "identity", "User-Agent": "rebus"}
                connection.request("GET", target, headers=headers, preload_content=False, decode_content=False)
                yield connection.getresponse()
            finally:
                timer.cancel()
                connection.close()
        except ssl.SSLCertVerificationError as error:
            raise invalid("url", f"{where}: its certificate is not trusted: {error.verify_message}") from None
        except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            reason = "took too long" if late.is_set() else " ".join(str(error).split()) or type(error).__name__
            raise UnavailableError(f"{where}: {reason}") from None

    def _connected(self, parts: SplitResult) -> HTTPConnection:
        """A connection to the first address that takes one; ``InvalidArgumentError`` if one is not allowed."""
        host, port = str(parts.hostname), parts.port or _DEFAULT_PORTS[parts.scheme]
        addresses = self._resolve(host, port)
        refused = next((address for address in addresses if not self._policy.allows(address)), None)
        if refused or not addresses:  # one private address among public ones is a trap
            raise invalid("url", f"{host} resolves to {refused or 'nothing'}, which may not be fetched from")
        failure: Exception | None = None
        for address in addresses:
            connection = self._connection(parts.scheme, host, address, port)
            try:
                connection.connect()
            except ssl.SSLCertVerificationError:
                raise
            except (HTTPError, OSError) as error:
                connection.close()
                failure = error
            else:
                connection.timeout = self._limits.silence_s
                return connection
        raise UnavailableError(f"{shown(parts)}: {failure}") from None

    def _connection(self, scheme: str, host: str, address: str, port: int) -> HTTPConnection:
        timeout = self._limits.connect_s
        if scheme == "http":
            return HTTPConnection(address, port, timeout=timeout)
        return HTTPSConnection(address, port, timeout=timeout, ssl_context=self._trust, server_hostname=host)


def is_web_address(text: str) -> bool:
    """Whether a name is a web address; anything else is a path."""
    return text[:8].lower().startswith(("http://", "https://"))


def shown(parts: SplitResult) -> str:
    """An address without its query, which may hold secrets."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _listed(variable: str) -> list[str]:
    return [text.strip() for text in os.environ.get(variable, "").split(",") if text.strip()]


def _system_addresses(host: str, port: int) -> list[str]:
    """Every address of a host, in the system's order of preference."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UnavailableError(f"{host}: {getattr(error, 'strerror', None) or error}") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _unwrapped(ip: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for: mapped, 6to4, Teredo (its client) or NAT64."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)


def _is_public(ip: Address) -> bool:
    special = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved
    site_local = isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local
    return ip.is_global and not (special or ip.is_unspecified or site_local)


def _hang_up(connection: HTTPConnection, late: threading.Event) -> None:
    """Ends a connection whose time is up, whatever its reader waits for."""
    late.set()
    sock = connection.sock
    if sock is not None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it has ended by itself


def _check_status(status: int, parts: SplitResult) -> None:
    if status in (404, 410):
        raise NotFoundError(f"{shown(parts)}: no such file (HTTP {status})")
    if status in _PASSING:
        raise UnavailableError(f"{shown(parts)}: HTTP {status}")
    if status != http.client.OK:
        raise invalid("url", f"{shown(parts)}: HTTP {status}")


def _copy(answer: BaseHTTPResponse, target: BinaryIO, max_bytes: int, where: str, ends: float) -> None:
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise invalid("url", f"{where}: came compressed although that was not asked for")
    announced = answer.headers.get("Content-Length", "")
    expected = int(announced) if announced.isdecimal() else None
    received = 0
    while expected is None or received < expected:
        if max(received, expected or 0) > max_bytes:
            raise invalid("url", f"{where}: more than the limit of {max_bytes} bytes")
        if time.monotonic() > ends:
            raise UnavailableError(f"{where}: took too long")
        chunk = answer.read1(_CHUNK)
        if not chunk:
            break
        received += len(chunk)
        target.write(chunk)
    if expected is not None and received < expected:
        raise UnavailableError(f"{where}: {received} of {expected} bytes came")
    if received > max_bytes:
        raise invalid("url", f"{where}: more than the limit of {max_bytes} bytes")
