"""``fsck`` names what was altered; ``gc`` removes what nothing refers to; ``doctor`` tells what is amiss."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from rebus.errors import InvalidArgumentError
from rebus.store import Store
from tests.tools.rebus.conftest import Command
from tools.rebus.commands import doctor
from tools.rebus.commands.maintenance import parse_duration


def test_a_whole_store_passes(rebus: Command, history: Store) -> None:
    result = rebus("fsck")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"{history.url} is whole\n"


@pytest.mark.parametrize(
    "path",
    [
        "datasets/d/data.lance/data/0.lance",
        "datasets/d/versions/1/dataset_version.json",
        "runs/r/run.json",
        "models/m/versions/1/model.safetensors",
        "models/m/versions/1/manifest.json",
        "evaluations/e/evaluation.json",
    ],
)
def test_one_flipped_byte_is_found_and_named(rebus: Command, history: Store, path: str) -> None:
    data = bytearray(history.get(path))
    data[len(data) // 2] ^= 1
    history.put(path, bytes(data))
    result = rebus("fsck", "--format", "json")
    assert result.exit_code == 1
    assert path in [problem["path"] for problem in json.loads(result.stdout)]


def test_gc_lists_then_removes_what_nothing_refers_to(rebus: Command, history: Store) -> None:
    history.put("runs/gone/checkpoints/step-3/model.safetensors", b"left over")
    assert json.loads(rebus("gc", "--format", "json").stdout) == []
    listed = json.loads(rebus("gc", "--dry-run", "--grace", "0s", "--format", "json").stdout)
    assert [(o["path"], o["size"], o["removed"]) for o in listed] == [
        ("runs/gone/checkpoints/step-3/model.safetensors", 9, False)
    ]
    assert "1 objects, 9 B, removed" in rebus("gc", "--grace", "0s").stderr
    assert not history.exists("runs/gone/checkpoints/step-3/model.safetensors")
    assert rebus("fsck").exit_code == 0


def test_durations_have_units() -> None:
    assert parse_duration("90s") == timedelta(seconds=90)
    assert parse_duration("7d") == timedelta(days=7)
    with pytest.raises(InvalidArgumentError, match="--grace: expected a number and one of s, m, h, d"):
        parse_duration("soon")


def test_doctor_reports_every_check(rebus: Command, store: Store) -> None:
    findings = {f["check"]: f for f in json.loads(rebus("doctor", "--format", "json").stdout)}
    assert set(findings) == {"python", "torch", "memory", "packages", "data, weights", "disk", "store", "port"}
    assert findings["store"]["verdict"] == "ok"
    assert list(store.list("doctor")) == []


def test_doctor_fails_on_a_store_it_cannot_use(rebus: Command) -> None:
    result = rebus("doctor", "--store", "ftp://x", "--format", "json")
    assert result.exit_code == 1
    assert result.stderr == "not ready: store\n"


def test_doctor_notices_a_store_without_conditional_writes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "create", Store.put)
    finding = doctor._store(store.url)
    assert (finding.verdict, finding.found.partition(": ")[2]) == (
        doctor.Verdict.FAIL,
        "it replaces an object that must not be replaced",
    )


def test_doctor_names_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("grpcio", "no-such-package"))
    assert doctor._packages().found == "missing: no-such-package"
    monkeypatch.setattr(doctor, "ASSETS", {"no-such-assets": "pictures"})
    assert (doctor._assets().verdict, doctor._assets().found) == (doctor.Verdict.WARN, "missing: pictures")
