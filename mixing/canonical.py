"""What equal values have in common, whoever wrote them: canonical JSON (RFC 8785) and the content digest of a table.

Standard library, numpy and pyarrow only: the trainer's side of a manifest stands on this module.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

# A double holds every integer up to here; beyond it RFC 8785 readers would disagree about the value.
_LARGEST_INTEGER = 2**53


def canonical_json(value: object) -> str:
    """`value` as RFC 8785 writes it: keys by UTF-16 code units, numbers as ECMAScript prints them, no white space.

    Refuses what JSON cannot hold: NaN and infinities, integers beyond 2**53, lone surrogates, and any other type by its name.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        value.encode()  # a lone surrogate has no UTF-8 form: UnicodeEncodeError is a ValueError
        return json.dumps(value, ensure_ascii=False)
    if type(value) is int:
        if abs(value) > _LARGEST_INTEGER:
            raise ValueError(f"canonical JSON cannot hold the integer {value}: beyond 2**53 it is not the same number everywhere")
        return str(value)
    if type(value) is float:
        return _ecmascript(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"canonical JSON has text as keys, not {type(key).__name__}")
        keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{canonical_json(key)}:{canonical_json(value[key])}" for key in keys) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(canonical_json, value)) + "]"
    raise TypeError(f"canonical JSON cannot hold a {type(value).__name__}")


def _ecmascript(number: float) -> str:
    """ECMA-262 Number::toString: the shortest digits that read back, plain from 1e-6 up to 1e21, with an exponent outside."""
    if not math.isfinite(number):
        raise ValueError(f"canonical JSON cannot hold {number!r}")
    if number == 0:
        return "0"
    sign, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    text = "".join(map(str, digits))
    point = len(text) + int(exponent)  # where the decimal point stands, counted from the first digit
    if len(text) <= point <= 21:
        plain = text + "0" * (point - len(text))
    elif 0 < point <= 21:
        plain = f"{text[:point]}.{text[point:]}"
    elif -6 < point <= 0:
        plain = f"0.{'0' * -point}{text}"
    else:
        plain = f"{text[0]}{'.' if len(text) > 1 else ''}{text[1:]}e{point - 1:+d}"
    return "-" + plain if sign else plain


_VALIDITY = 1 << 22


def content_digest(table: pa.Table) -> str:
    """sha256 over the values of `table`, whatever the chunks, the compression and the encoding they arrived in.

    Per column in schema order: `name NUL type NUL`, the row count (u64 LE), a validity byte a row, then the non-null values: bool as bytes;
    numbers little-endian, -0.0 as 0.0; strings and binary as u64 lengths, then the bytes joined; lists as u64 lengths, then the child as the
    column `item`; structs field by field. Values are hashed where they lie; only a column with nulls is copied, chunk by chunk.
    """
    sha = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        _feed(sha, name, column.type, column.chunks)
    return sha.hexdigest()


def _feed(sha: hashlib._Hash, name: str, kind: pa.DataType, chunks: Sequence[pa.Array]) -> None:
    while pa.types.is_dictionary(kind):
        kind = kind.value_type
        chunks = [chunk.dictionary_decode() for chunk in chunks]
    sha.update(f"{name}\0{digest_type(kind)}\0".encode())
    sha.update(np.array(sum(map(len, chunks)), "<u8").tobytes())
    for chunk in chunks:
        for first in range(0, len(chunk), _VALIDITY):  # a byte a row: 0.3 GB for a file of token ids at once
            sha.update(chunk.slice(first, _VALIDITY).is_valid().cast(pa.uint8()).to_numpy())
    if digest_type(kind) in ("string", "binary"):
        chunks = [chunk.cast(pa.large_binary()) for chunk in chunks]
    chunks = [chunk.drop_null() if chunk.null_count else chunk for chunk in chunks]
    if pa.types.is_null(kind):
        return
    if digest_type(kind) in ("string", "binary"):
        for chunk in chunks:
            sha.update(np.diff(list_offsets(chunk)).astype("<u8").data)
        for chunk in chunks:
            offsets = list_offsets(chunk)
            if offsets[-1] > offsets[0]:
                sha.update(memoryview(chunk.buffers()[2])[offsets[0] : offsets[-1]])
    elif _is_list(kind):
        for chunk in chunks:
            sha.update(pc.list_value_length(chunk).to_numpy(zero_copy_only=False).astype("<u8").data)
        _feed(sha, "item", kind.value_type, [chunk.flatten() for chunk in chunks])
    elif pa.types.is_struct(kind):
        children = [chunk.flatten() for chunk in chunks]
        for position, field in enumerate(kind):
            _feed(sha, field.name, field.type, [child[position] for child in children])
    else:
        for chunk in chunks:
            sha.update(_numbers(chunk).data)


def digest_type(kind: pa.DataType) -> str:
    """The type as the digest spells it: encodings of the same values share a name. Types whose bytes are not defined here are refused."""
    if pa.types.is_dictionary(kind):
        return digest_type(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        return "string"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind) or kind == pa.binary_view():
        return "binary"
    if _is_list(kind):
        return f"list<{digest_type(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return "struct<" + ",".join(f"{field.name}:{digest_type(field.type)}" for field in kind) + ">"
    if pa.types.is_null(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or _is_time(kind):
        return str(kind)
    raise TypeError(f"no content digest is defined for the Arrow type {kind}")


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind) and not pa.types.is_interval(kind))


def list_offsets(chunk: pa.Array) -> npt.NDArray[np.int64]:
    """The n+1 offsets of a large list or large binary array, a slice taken into account."""
    if len(chunk) == 0:
        return np.zeros(1, np.int64)
    offsets = np.frombuffer(chunk.buffers()[1], np.int64)
    return offsets[chunk.offset : chunk.offset + len(chunk) + 1]


def _numbers(chunk: pa.Array) -> npt.NDArray[Any]:
    if pa.types.is_boolean(chunk.type):
        chunk = chunk.cast(pa.uint8())
    elif pa.types.is_temporal(chunk.type):
        chunk = chunk.view(pa.int32() if chunk.type.bit_width == 32 else pa.int64())
    values: npt.NDArray[Any] = chunk.to_numpy()
    if values.dtype.kind == "f":
        values = values + values.dtype.type(0)
    return values.astype(values.dtype.newbyteorder("<"), copy=False)
