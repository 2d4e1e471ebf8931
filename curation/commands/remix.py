"""`curate remix`: another mixture from what a manifest stores.

In: a manifest, and a YAML file with a recipe's `mixture` and perhaps a name, a version and a seed of its own. The predicates are evaluated over the manifest's
pool, a file and the columns they name at a time; neither texts nor the work directory are needed. `mixing.remix` does the rest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from curation.corpus.sources import SourceName
from curation.decisions.components import assign, predicates
from curation.engine.local import Engine, Run
from curation.engine.work_directory import Digests, Work
from curation.recipe import check_order, learned_mixture, read_yaml
from curation.rules import Rule, rule_schema
from mixing import UserError, validated
from mixing.manifest import NO_COMPONENT, Manifest
from mixing.plan import Mixture
from mixing.pool import POOL
from mixing.progress import watched
from mixing.remix import Assigned, Named
from mixing.remix import remix as remix_manifest


class Remix(BaseModel):
    """What a remix may say: all else is the manifest's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mixture: Mixture
    name: SourceName | None = Field(None, description="as the manifest's unless given")
    version: int | None = Field(None, ge=0, description="as the manifest's unless given")
    seed: int | None = Field(None, ge=0, le=2**53, description="of the shuffles; as the manifest's unless given")


class Remixed(NamedTuple):
    """A new manifest and how long it took."""

    folder: Path
    digest: str
    seconds: float


def remix(
    manifest: Manifest,
    path: Path,
    target: Path,
    *,
    consumed: int | None = None,
    replace: bool = False,
    roots: Mapping[str, str] | None = None,
) -> Remixed:
    """Writes into `target` what the mixture in the file `path` makes of the documents in `manifest`. Files of measurements are found as a recipe finds them."""
    began = time.monotonic()
    values = read_yaml(path, "a mixture")
    if "sources" in values or "steps" in values:
        raise UserError(
            f"{path}: is a whole recipe; a remix takes its `mixture` alone (and name, version, seed): the documents are those of {manifest.folder}"
        )
    config = validated(Remix, values)
    with TemporaryDirectory() as room, Engine(1) as engine:
        run = Run(Path(room), roots=dict(roots or {}))
        mixture = learned_mixture(config.mixture, path.parent, run, Digests(Work(run.work)), engine)
    header = manifest.header
    named = Named(
        config.name or header["name"],
        header["version"] if config.version is None else config.version,
        header["seed"] if config.seed is None else config.seed,
    )
    provenance = {
        **_provenance(manifest),
        "remixed_from": str(manifest.folder.resolve()),
        "remixed_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with watched("remix"):
        assigned = assigned_components(manifest, mixture)
        digest = remix_manifest(manifest, mixture, assigned, named, target, consumed=consumed, replace=replace, provenance=provenance)
    return Remixed(target, digest, time.monotonic() - began)


def _provenance(manifest: Manifest) -> dict[str, object]:
    """What the manifest's build said of itself: where its texts are, for `show` and `why`."""
    path = manifest.folder / "provenance.json"
    found: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
    return found


def assigned_components(manifest: Manifest, mixture: Mixture) -> Assigned:
    """The component of every kept document, and of the held-out ones that no rule dropped."""
    files = manifest.pool_files()
    extra = {field.name: field.type for field in pq.read_schema(files[0]) if field.name not in POOL.names}
    checked = predicates(mixture, rule_schema(extra, {}))
    check_order(mixture, rule_schema(extra, {}))
    columns = ["source", "decision", "reason", "origin", *(name for rule in checked.values() for name in rule.columns)]
    parts, kept = [], dict.fromkeys(manifest.sources, 0)
    for file in files:
        table = pq.read_table(file, columns=list(dict.fromkeys(columns)))
        component = _components(mixture, checked, table)
        parts.append(component)
        counted = pc.and_(pa.array(component != NO_COMPONENT), pc.equal(table["decision"], "kept"))
        for one in pc.value_counts(table["source"].filter(counted)).to_pylist():
            kept[one["values"]] += one["counts"]
    return Assigned(np.concatenate(parts), kept)


def _components(mixture: Mixture, checked: dict[str, Rule], table: pa.Table) -> npt.NDArray[np.uint16]:
    """The component of each row of a pool file."""
    decision = table["decision"]
    held_out = pc.and_(pc.equal(decision, "held_out"), pc.is_null(table["reason"]))
    rows = np.flatnonzero(pc.or_(pc.equal(decision, "kept"), held_out).to_numpy())
    alive = table.take(pa.array(rows))
    frame = pl.DataFrame(pl.from_arrow(alive))

    def inside(name: str) -> npt.NDArray[np.int64]:
        return np.flatnonzero(checked[name].decide(frame)[0])

    def described(row: int) -> str:
        return f"{alive['origin'][row]} of source '{alive['source'][row]}'"

    component = np.full(table.num_rows, NO_COMPONENT, np.uint16)
    component[rows] = assign(mixture, len(rows), inside, described)
    return component
