"""What a serving process has loaded is out of sight of garbage collections."""

from __future__ import annotations

import subprocess
import sys

from rebus.store import Store


def test_a_server_that_serves_keeps_what_is_loaded(store: Store) -> None:
    program = """
import asyncio, gc, os, signal, sys
from services.harness.runtime import Runtime
from services.harness.server import Host, load

async def serve():
    host = Host(load(["ingest"]), Runtime.open(sys.argv[1]), address="127.0.0.1:0")
    serving = asyncio.create_task(host.serve())
    while not host.port or not gc.get_freeze_count():
        await asyncio.sleep(0.01)
    seen, kept = len(gc.get_objects()), gc.get_freeze_count()
    os.kill(os.getpid(), signal.SIGTERM)
    await serving
    print(seen, kept)

asyncio.run(asyncio.wait_for(serve(), 30))
"""
    done = subprocess.run([sys.executable, "-c", program, store.url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen, kept = map(int, done.stdout.split())
    assert seen < kept / 20
