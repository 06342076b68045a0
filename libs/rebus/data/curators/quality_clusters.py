"""Topics that are bad as a whole: clusters of texts whose mean quality is low."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rebus.data.clusters import clustered, matrix
from rebus.data.columns import vectors
from rebus.data.curators.base import KEEP, Curator, Judgement
from rebus.data.curators.embed import TEXT_EMBEDDINGS
from rebus.data.curators.text_quality import QUALITY
from rebus.registry import register

CLUSTER = "text_cluster"


@dataclass(frozen=True, kw_only=True)
class QualityClustersConfig:
    """Clusters of texts and the mean score from which one stays."""

    min_mean_score: float = 0.5
    # 0: one for every 512 rows.
    clusters: int = 0
    seed: int = 0
    text_column: str = TEXT_EMBEDDINGS
    score_column: str = QUALITY

    def __post_init__(self) -> None:
        if self.clusters < 0:
            raise ValueError(f"clusters={self.clusters} must not be negative")


@register("curator", "quality-clusters", config=QualityClustersConfig, paper="yi")
class QualityClusters(Curator):
    """Drops clusters of texts whose mean score is low; adds ``text_cluster``. Rows without vector or score stay."""

    adds: Mapping[str, pa.DataType] = {CLUSTER: pa.int32()}
    whole = True

    def __init__(self, config: QualityClustersConfig) -> None:
        self._config = config
        self.reads = ("id", config.text_column, config.score_column)

    def observe(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """One unit vector a row, of the mean direction of its texts, and its score."""
        means = [texts.mean(axis=0) if len(texts) else texts for texts in vectors(batch, self._config.text_column)]
        packed = [(mean / max(np.linalg.norm(mean), 1e-12)).astype(np.float32).tobytes() for mean in means]
        score = batch.column(self._config.score_column).cast(pa.float32())
        return pa.record_batch({"id": batch.column("id"), "text": pa.array(packed, pa.binary()), "score": score})

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """Takes the rows in the order of their ids, so that clusters do not depend on that of the rows."""
        scores = observed.column("score").to_numpy(zero_copy_only=False)
        texts = observed.column("text").to_pylist()
        ids = observed.column("id").to_pylist()
        rows = [at for at in sorted(range(len(ids)), key=lambda at: ids[at]) if texts[at] and not np.isnan(scores[at])]
        cluster = np.full(len(ids), -1, np.int32)
        reasons = [KEEP] * len(ids)
        if rows:
            found = matrix([texts[at] for at in rows], self._config.text_column)
            cluster[rows], _ = clustered(found, self._config.clusters, self._config.seed)
            for number in np.unique(cluster[rows]).tolist():
                members = np.flatnonzero(cluster == number)
                mean = float(scores[members].mean())
                if mean < self._config.min_mean_score:
                    told = (
                        f"is in cluster {number}, whose mean score is {mean:.2f}, below {self._config.min_mean_score:g}"
                    )
                    for at in members.tolist():
                        reasons[at] = told
        return Judgement(reasons, {CLUSTER: pa.array(cluster, mask=cluster < 0)})
