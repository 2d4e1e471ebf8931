"""A sample of a file's records from all over it, as far as its format can be entered in the middle; the same records for the same file."""

from __future__ import annotations

from collections.abc import Iterator

from curation.formats import FORMATS, streams
from curation.formats.records import Fields, Record, records_of
from mixing.remote import Place

SAMPLE_RECORDS = 500
WINDOWS = 8
COMPRESSED_BYTES = 4 << 20


def spread_records(whole: Place, size: int, form: str, fields: Fields, enough: int = COMPRESSED_BYTES) -> tuple[list[Record], float]:
    """Records of a file of `size` bytes, and the share of the file they are: windows of plain lines, a quarter of `enough` together, the middle and last of row groups and batches, the first `enough` bytes of a stream."""
    spans = FORMATS[form].spans(whole, size, 1)  # row groups or batches one by one; bytes, if it is entered anywhere
    read = FORMATS[form].read
    if form != "lines" and spans and spans[0][1] is not None:
        middle, last = (list(records_of(read(whole, fields, *spans[index]))) for index in ((len(spans) - 1) // 2, -1))
        records = middle + last if len(spans) > 1 else middle
        found = records[:: max(1, len(records) // SAMPLE_RECORDS)]
        return found, len(found) / max(len(middle) * (len(spans) - 1) + len(last), 1)
    if form != "lines" or streams.is_stream(whole):
        found = _until_enough(records_of(read(whole, fields, 0, None)), enough)
        decoded = sum(record.size for record in found) or 1
        return found, min(1.0, decoded / max(streams.decoded_size(whole, decoded), 1))
    window = min(size, enough // 4) // WINDOWS + 1
    starts = sorted({round(index * max(size - window, 0) / (WINDOWS - 1)) for index in range(WINDOWS)})
    found = [record for start in starts for record in records_of(read(whole, fields, start, start + window))]
    return found, min(1.0, sum(record.size for record in found) / max(size, 1))


def _until_enough(records: Iterator[Record], enough: int) -> list[Record]:
    found: list[Record] = []
    size = 0
    for record in records:
        found.append(record)
        size += record.size
        if size >= enough:
            break
    return found
