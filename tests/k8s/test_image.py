"""The image, the manifests and the pipelines speak of the same thing."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from pipelines.components.base import IMAGE

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "services" / "Dockerfile").read_text()


def final_stage() -> str:
    return DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]


def test_the_image_runs_unprivileged_as_the_pods_do() -> None:
    deployment = yaml.safe_load((ROOT / "k8s" / "base" / "service" / "deployment.yaml").read_text())
    security = deployment["spec"]["template"]["spec"]["securityContext"]
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}" in final_stage().splitlines()


def test_one_image_everywhere() -> None:
    name, _, tag = IMAGE.partition(":")
    deployment = yaml.safe_load((ROOT / "k8s" / "base" / "service" / "deployment.yaml").read_text())
    production = yaml.safe_load((ROOT / "k8s" / "overlays" / "production" / "kustomization.yaml").read_text())
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE
    assert production["images"] == [{"name": name, "newTag": tag}]
    assert f"--tag {IMAGE} ." in DOCKERFILE


def test_the_base_is_pinned_and_the_context_holds_what_is_copied() -> None:
    (base,) = re.findall(r"^ARG BASE=(\S+)", DOCKERFILE, re.MULTILINE)
    assert base.partition(":")[2] not in ("", "latest")
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        word for words in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for word in words.split()
    ]
    assert set(copied) == allowed
    assert all((ROOT / path).exists() for path in copied)
