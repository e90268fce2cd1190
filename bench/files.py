"""One array of features in the formats that people keep them in, and how each is read whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np


def write_all(folder: Path, rows: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """Write rows (rows, dim) in every format; for each a function that reads all of it into memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file, save_file

    flat, tensors, columns = folder / "rows.npy", folder / "rows.safetensors", folder / "rows.parquet"
    np.save(flat, rows)
    save_file({"rows": rows}, tensors)
    width = rows.shape[1]
    pq.write_table(pa.table({"rows": pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), width)}), columns,
                   compression="none", use_dictionary=False)

    def parquet() -> np.ndarray:
        read = pq.read_table(columns).column("rows").combine_chunks()
        return read.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)

    return {"np.load": lambda: np.load(flat), "memory map": lambda: np.array(np.load(flat, mmap_mode="r")),
            "safetensors": lambda: load_file(tensors)["rows"], "parquet": parquet}
