"""A curation that embeds by a model of the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rebus.data.curation import curate
from rebus.data.dataset import open_version, write_version
from rebus.data.sample import Sample, Segment
from rebus.data.versions import dataset_of
from rebus.retrieval import Embedder
from rebus.store import Store
from tests.libs.retrieval import tiny


def test_vectors_are_those_of_the_model_and_later_curators_compare_them(store: Store, tmp_path: Path) -> None:
    tiny.publish_model(store, tmp_path / "model")
    version = tiny.publish_pictures(store, 4)
    embed = {"name": "embed", "embedder": {"name": "dual-encoder", "model_version": f"{tiny.MODEL}"}}

    curated = curate(store, version.name, [embed, {"name": "image-text-alignment", "min_similarity": -1.0}])

    reader = open_version(store, curated.version.name)
    table = reader.table(["image_embeddings", "text_embeddings", "image_text_similarity"]).to_pylist()
    embedder = Embedder.load(tmp_path / "model")
    for sample, row in zip(reader.scan(), table, strict=True):
        texts = embedder.embed_texts([segment.text for segment in sample.segments if segment.type == "text"])
        shown = [sample.media[segment.media] for segment in sample.segments if segment.type == "image"]
        images = embedder.embed_images(shown)
        np.testing.assert_allclose(np.array(row["text_embeddings"]), texts, atol=1e-5)
        np.testing.assert_allclose(np.array(row["image_embeddings"]).reshape(images.shape), images, atol=1e-5)
        expected = (images @ texts.T).max() if shown else None
        assert (row["image_text_similarity"] is None) == (expected is None)
        if expected is not None:
            np.testing.assert_allclose(row["image_text_similarity"], expected, atol=1e-5)


def test_only_rows_that_were_appended_since_are_embedded(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.publish_model(store, tmp_path / "model")
    version = tiny.publish_pictures(store, 4)
    embed = {"name": "embed", "embedder": {"name": "dual-encoder", "model_version": f"{tiny.MODEL}"}}
    curated = curate(store, version.name, [embed])
    before = open_version(store, curated.version.name).table(["text_embeddings"]).column(0).to_pylist()
    added = Sample(id="added", segments=[Segment(text="one more")])
    longer = write_version(store, dataset_of(version.name), [added], base=curated.version.name)
    embedded: list[str] = []
    real = Embedder.embed_texts

    def counted(self: Embedder, texts: Sequence[str]) -> np.ndarray:
        embedded.extend(texts)
        return real(self, texts)

    monkeypatch.setattr(Embedder, "embed_texts", counted)
    alignment = {"name": "image-text-alignment", "min_similarity": -1.0}
    again = curate(store, longer.name, [embed, alignment])

    after = open_version(store, again.version.name).table(["text_embeddings", "image_text_similarity"])
    assert embedded == ["one more"]
    assert after.column(0).to_pylist()[:-1] == before
    assert len(after.column(0).to_pylist()[-1]) == 1
    told = curate(store, curated.version.name, [alignment]).version.name  # later curators see what was stored
    assert after.column(1).to_pylist()[:-1] == open_version(store, told).table(["image_text_similarity"])[0].to_pylist()
