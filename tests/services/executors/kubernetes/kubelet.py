"""Runs the pods of Jobs as processes of this machine: in short, what a Job controller and a kubelet would do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.executors.kubernetes.pods import CACHE
from tests.services.executors.kubernetes.cluster import Cluster, Object

POLL_SECONDS = 0.1


class Kubelet:
    """Makes a pod for each Job, runs its command, and reports how that ends; a deleted Job's command gets SIGTERM."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        assert cluster.logs is not None
        self._cluster, self._folder, self._logs = cluster, folder, cluster.logs
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: set[str] = set()
        self._disrupted: set[str] = set()
        self._signalled: set[str] = set()

    def tick(self) -> None:
        """One look at every Job."""
        for item in self._cluster.call("GET", "jobs")["items"]:
            name = item["metadata"]["name"]
            if name not in self.processes:
                self._start(name, item)
            elif "deletionTimestamp" in item["metadata"]:
                self._stop(name)
            elif name not in self._ended and self.processes[name].poll() is not None:
                self._report(name)
                self._close(name)

    def drain(self, name: str) -> None:
        """Takes the node from a Job: its pod is marked, its process gets SIGTERM."""
        self._disrupted.add(name)
        self._cluster.disrupt(f"{name}-pod")
        self.processes[name].send_signal(signal.SIGTERM)

    def _start(self, name: str, item: Object) -> None:
        pod = self._cluster.start_pod(name)
        (container,) = item["spec"]["template"]["spec"]["containers"]
        cache = self._folder / name
        command = [sys.executable, *(str(cache) if word == CACHE else word for word in container["command"][1:])]
        variables = {v["name"]: v["value"] for v in container["env"] if "value" in v}
        environment = {**{n: os.environ[n] for n in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if n in os.environ}}
        with (self._logs / f"{pod}.log").open("wb") as output:
            self.processes[name] = subprocess.Popen(
                command, env={**environment, **variables}, cwd=self._folder, stdout=output, stderr=subprocess.STDOUT
            )
        self._cluster.set_container(pod, {"running": {}})

    def _stop(self, name: str) -> None:
        process = self.processes[name]
        if name not in self._signalled:
            self._signalled.add(name)
            process.send_signal(signal.SIGTERM)
        elif process.poll() is not None:
            self._report(name)
            self._cluster.finish_deletion(name)

    def _report(self, name: str) -> None:
        code = self.processes[name].returncode
        self._cluster.end_container(f"{name}-pod", code if code >= 0 else 128 - code)
        self._ended.add(name)

    def _close(self, name: str) -> None:
        code = self.processes[name].returncode
        if code == 0:
            self._cluster.complete(name)
        else:
            self._cluster.fail(name, "PodFailurePolicy" if name in self._disrupted else "BackoffLimitExceeded")

    def kill(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@contextmanager
def running(cluster: Cluster, folder: Path) -> Iterator[Kubelet]:
    """Looks at the cluster's Jobs in a thread until the block ends, then kills what is left."""
    kubelet, stopping = Kubelet(cluster, folder), threading.Event()

    def loop() -> None:
        while not stopping.is_set():
            kubelet.tick()
            time.sleep(POLL_SECONDS)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield kubelet
    finally:
        stopping.set()
        thread.join()
        kubelet.kill()
