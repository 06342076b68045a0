"""What an evaluation leaves in the store beside its document: predictions, scores, a page to read."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf import json_format
from google.protobuf.message import Message

from rebus.config import canonical_json
from rebus.errors import NotFoundError
from rebus.evaluation.report import render_evaluation
from rebus.store import Store, manifests
from rebus.v1.common_pb2 import Manifest
from rebus.v1.contamination_pb2 import Contamination
from rebus.v1.evaluation_pb2 import Evaluation, Prediction, Score

PREDICTIONS, SCORES, REPORT = "predictions.parquet", "scores.json", "report.html"
CONTAMINATION = "contamination.json"

_SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("group", pa.string()),
        ("sample_id", pa.string()),
        ("question", pa.string()),
        ("prediction", pa.string()),
        ("references", pa.list_(pa.string())),
        ("score", pa.float64()),
        ("text_only_prediction", pa.string()),
    ]
)


def publish(
    store: Store, evaluation: Evaluation, predictions: Sequence[Prediction], images: Mapping[str, Sequence[bytes]]
) -> Manifest:
    """Writes the outputs of ``evaluation`` (its scores filled in), then the manifest that makes them visible.

    ``images`` holds the encoded images of some samples by id; the report shows them.
    """
    store.put(f"{evaluation.name}/{PREDICTIONS}", predictions_to_parquet(predictions))
    store.put(f"{evaluation.name}/{SCORES}", messages_to_json(evaluation.scores))
    store.put(f"{evaluation.name}/{CONTAMINATION}", messages_to_json(evaluation.contamination))
    page = render_evaluation(evaluation, predictions, images)
    store.put(f"{evaluation.name}/{REPORT}", page.encode())
    return manifests.publish(store, evaluation.name, [PREDICTIONS, SCORES, CONTAMINATION, REPORT])


def predictions_to_parquet(predictions: Sequence[Prediction]) -> bytes:
    """The predictions, one row each, columns named as the message's fields."""
    columns = {name: [getattr(message, name) for message in predictions] for name in _SCHEMA.names}
    columns["references"] = [list(references) for references in columns["references"]]
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=_SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def predictions_from_parquet(data: bytes) -> list[Prediction]:
    """The inverse of ``predictions_to_parquet``."""
    return [Prediction(**row) for row in pq.read_table(io.BytesIO(data), schema=_SCHEMA).to_pylist()]


def read_predictions(store: Store, name: str) -> list[Prediction]:
    """All predictions of evaluation ``name``; none while it has not published any."""
    try:
        return predictions_from_parquet(manifests.read_part(store, name, PREDICTIONS))
    except NotFoundError:
        return []


def messages_to_json(messages: Iterable[Message]) -> bytes:
    """The messages as canonical JSON, a list of objects named as the message's fields."""
    return canonical_json(
        [json_format.MessageToDict(message, preserving_proto_field_name=True) for message in messages]
    )


def read_scores(store: Store, name: str) -> list[Score]:
    """The scores of a published evaluation."""
    return [json_format.ParseDict(item, Score()) for item in json.loads(manifests.read_part(store, name, SCORES))]


def read_contamination(store: Store, name: str) -> list[Contamination]:
    """What a published evaluation found of its benchmarks in the training data; nothing if it did not look."""
    try:
        stored = json.loads(manifests.read_part(store, name, CONTAMINATION))
    except NotFoundError:  # published by an earlier release
        return []
    return [json_format.ParseDict(item, Contamination()) for item in stored]
