"""One peer reads a JSON Lines file and writes it as zstd Parquet; prints the seconds it took, without its imports.

    PEERS/bin/python benchmarks/ingest_peers.py datatrove|daft FILE OUT

Runs under an environment of its own (`pip install datatrove daft orjson zstandard`): Daft needs an older pyarrow than this project. `ingest.py --peers` calls it.
"""

import sys
import time
from pathlib import Path


def datatrove(file: str, out: str) -> float:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import ParquetWriter

    pipeline = [
        JsonlReader(str(Path(file).parent), glob_pattern=Path(file).name, compression=None),
        ParquetWriter(out, compression="zstd"),
    ]
    began = time.monotonic()
    LocalPipelineExecutor(pipeline=pipeline, tasks=2, workers=2, logging_dir=f"{out}/logs").run()  # a file is one task, whatever its size
    return time.monotonic() - began


def daft(file: str, out: str) -> float:
    import daft

    began = time.monotonic()
    daft.read_json(file).write_parquet(out, compression="zstd")
    return time.monotonic() - began


if __name__ == "__main__":
    seconds = {"datatrove": datatrove, "daft": daft}[sys.argv[1]](*sys.argv[2:])
    print(seconds)
