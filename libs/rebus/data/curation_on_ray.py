"""A stage of a curation on Ray Data: its batches are judged by as many processes as the cluster has room for.

What is said of a batch is a function of that batch alone (``judge_batch``), so the result is the one of
``curation.run_stage``. The extra ``ray`` brings Ray; every node must reach the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rebus.data.curation import Stage, judge_batch
from rebus.data.dataset import DatasetReader, open_version
from rebus.errors import FailedPreconditionError
from rebus.store import Store

# A Ray cluster's address, e.g. ``ray://head:10001``, or ``auto`` for the one that this process is in.
ADDRESS_ENV = "REBUS_RAY_ADDRESS"


class StageOnRay:
    """Runs stages on a Ray cluster; the processes keep their reader and curators from batch to batch."""

    def __init__(self, address: str, *, processes: int = 0) -> None:
        """Connects, unless this process is connected already. ``processes``: at most so many; 0: one a CPU.

        ``FailedPreconditionError`` without the extra ``ray``, or where no cluster answers.
        """
        try:
            import ray
        except ImportError:
            raise FailedPreconditionError(
                f"{ADDRESS_ENV} is set, but Ray is not installed: pip install 'rebus[ray]'"
            ) from None
        try:
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise FailedPreconditionError(f"no Ray cluster answers at {address}: {error}") from None
        self._processes = processes or max(int(ray.cluster_resources().get("CPU", 1)), 1)

    def __call__(self, reader: DatasetReader, stage: Stage, rows: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
        """As ``curation.run_stage``; batches come in any order."""
        import ray.data

        batches = -(-len(rows) // stage.batch_rows)
        done = ray.data.from_arrow(pa.table({"row": rows})).map_batches(
            _Judge,
            fn_constructor_args=(reader.store.url, reader.version.name, stage),
            batch_size=stage.batch_rows,
            batch_format="pyarrow",
            concurrency=(1, max(min(self._processes, batches), 1)),
        )
        table: Any
        for table in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield pa.RecordBatch.from_struct_array(pa.concat_arrays(table.to_struct_array().chunks))


class _Judge:
    """What one process keeps."""

    def __init__(self, store_url: str, version: str, stage: Stage) -> None:
        store = Store.open(store_url)
        self._reader = open_version(store, version)
        self._stage = stage
        self._curators = stage.curators(store)

    def __call__(self, batch: Any) -> pa.Table:
        rows = batch.column("row").to_numpy()
        read = self._reader.table(self._stage.stored_columns, rows).combine_chunks().to_batches()[0]
        said = judge_batch(self._curators, self._stage.first, self._stage.with_known(read, rows), rows)
        return pa.Table.from_batches([said])
