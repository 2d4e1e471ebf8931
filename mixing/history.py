"""What of the documents was read before a plan begins: the memory that a remix in the middle of a run hands on.

The plan of such a manifest goes on where its parent stopped, and its parent's folder need not be at hand. So it has one table more, listed and
digested like every other: `plan/consumed.visits.arrow`, a row for each stored document that was read before the plan's first sequence, in pool-row order. A
document's visits are counted over the whole chain of remixes; the last one may be open: `read` says how far it went.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mixing import UserError
from mixing.findings import Stored
from mixing.manifest import Manifest

VISITS_PATH = "plan/consumed.visits.arrow"
"""Beside the stages, none of which can have a dot in its name."""

VISITS = pa.schema([("pool_row", pa.uint64()), ("visits", pa.uint16()), ("read", pa.uint32()), ("tokens", pa.uint64())])

_BLOCK_IDS = 1 << 26


class History(NamedTuple):
    """An entry for each stored document: its visits so far, the tokens read in the last of them, and those read in all of them."""

    visits: npt.NDArray[np.uint16]
    read: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]


def stored(manifest: Manifest) -> Stored:
    """The documents of `tokens/`, planned or not."""
    files = [manifest.token_file(number) for number in range(manifest.token_files)]
    rows = np.concatenate([np.zeros(0, np.uint64), *(file.pool_row for file in files)]).astype(np.int64)
    lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(file.offsets) for file in files)])
    counts = [len(file.pool_row) for file in files]
    return Stored(rows, lengths, np.cumsum([0, *counts], dtype=np.int64)[:-1])


def remembers(manifest: Manifest) -> bool:
    """Whether something was read before the plan begins."""
    return any(entry["path"] == VISITS_PATH for entry in manifest.header["files"])


def before(manifest: Manifest, documents: Stored) -> History:
    """What was read before the plan's first sequence: nothing, unless it goes on from another."""
    size = len(documents.row)
    history = History(np.zeros(size, np.uint16), np.zeros(size, np.int64), np.zeros(size, np.int64))
    if remembers(manifest):
        with pa.memory_map(str(manifest.folder / VISITS_PATH)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        if table.schema != VISITS:
            raise UserError(f"{manifest.folder / VISITS_PATH}: its columns are {', '.join(table.column_names)}; rebuild the manifest")
        row = table["pool_row"].to_numpy().astype(np.int64)
        place = np.searchsorted(documents.row, row)
        if len(row) and (place[-1] >= size or (documents.row[place] != row).any() or (row[1:] <= row[:-1]).any()):
            raise UserError(f"{manifest.folder / VISITS_PATH}: names documents that are not stored; copy the manifest again or rebuild it")
        history.visits[place], history.read[place], history.tokens[place] = (table[name].to_numpy() for name in VISITS.names[1:])
    return history


def after(manifest: Manifest, consumed: int, documents: Stored) -> History:
    """What was read before the plan and in its first `consumed` sequences. The last visit of a document is the one read last."""
    history = before(manifest, documents)
    step = max(1, _BLOCK_IDS // manifest.sequence_length)
    for low in range(0, consumed, step):
        spans = manifest.spans(low, min(low + step, consumed))
        document = documents.first[spans.file] + spans.token_row
        np.maximum.at(history.visits, document, spans.epoch + np.uint16(1))
        history.read[document] = spans.start.astype(np.int64) + spans.length  # of a document's spans the last one counts
        np.add.at(history.tokens, document, spans.length.astype(np.int64))
    return history


def visits_table(history: History, documents: Stored) -> pa.RecordBatch:
    read = np.flatnonzero(history.visits)
    columns = [
        documents.row[read].astype(np.uint64),
        history.visits[read],
        history.read[read].astype(np.uint32),
        history.tokens[read].astype(np.uint64),
    ]
    return pa.record_batch([pa.array(column) for column in columns], schema=VISITS)
