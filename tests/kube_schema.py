"""Checks an object strictly against the schema of its kind: Kubernetes' own, or that of a custom resource."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

# The schemas of CRDs (Apache-2.0), descriptions and status dropped, unknown fields refused: the Gateway API v1, the
# Kubeflow Trainer v1alpha1 and the Kubeflow training operator v1.9.0.
SCHEMAS = Path(__file__).resolve().parent / "k8s" / "schemas"
CUSTOM_GROUPS = ("gateway.networking.k8s.io", "trainer.kubeflow.org", "kubeflow.org")
KUBERNETES = "1.32"


@cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{kind.lower()}.json").read_text()))


def check_schema(item: dict[str, Any]) -> None:
    """Raises where a field is unknown or wrong; a kind without a schema is an error."""
    if item["apiVersion"].partition("/")[0] in CUSTOM_GROUPS:
        _validator(item["kind"]).validate(item)
    else:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
