"""Files of a data set in Hugging Face layout, once as parquet and once as JSONL, and what a card says of them.

A repository on the hub holds one file format, so `parquet/` and `jsonl/` are each a whole data set with its card.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from deepdistill_resources.lake import Lake, WrittenFile

KINDS = ("parquet", "jsonl")
ROWS_PER_FILE = 50_000  # of 10,000 tokens each: under 1 GB
_TYPES = {pl.String: "string", pl.Float32: "float32", pl.Float64: "float64", pl.Int64: "int64", pl.Boolean: "bool"}


@dataclass(frozen=True)
class Shard:
    """One shard to write: rows of one split of one configuration; `name` is unique among them."""

    config: str
    split: str
    name: str
    rows: pl.LazyFrame


@dataclass
class Export:
    """What was written: files, rows per configuration and split, columns per configuration."""

    files: list[WrittenFile] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    rows: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    schemas: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, path: str, written: WrittenFile) -> None:
        """Note a written file."""
        self.paths.append(path)
        self.files.append(written)


def write_shards(lake: Lake, root: str, shards: Iterable[Shard]) -> Export:
    """Write the rows of every shard, in order, as `<kind>/<config>/<split>-<name>-<number>.<kind>`.

    Rows are streamed: what is held does not grow with a shard.
    """
    export = Export()
    for shard in shards:
        with tempfile.TemporaryDirectory(prefix="deepdistill-") as directory:
            parts = pl.PartitionBy(directory, max_rows_per_file=ROWS_PER_FILE, approximate_bytes_per_file=None)
            shard.rows.sink_parquet(parts, compression="zstd")
            for number, part in enumerate(sorted(Path(directory).glob("*.parquet"))):
                _publish_part(lake, root, shard, number, part, export)
    return export


def _publish_part(lake: Lake, root: str, shard: Shard, number: int, parquet: Path, export: Export) -> None:
    written = pl.scan_parquet(parquet)
    rows = written.select(pl.len()).collect().item()
    if rows == 0:
        return
    export.rows[shard.config][shard.split] += rows
    export.schemas[shard.config] = dict(written.collect_schema())
    jsonl = parquet.with_suffix(".jsonl")
    written.sink_ndjson(jsonl)
    for kind, file in zip(KINDS, (parquet, jsonl), strict=True):
        path = f"{root}/{kind}/{shard.config}/{shard.split}-{shard.name}-{number:05}.{kind}"
        export.add(path, lake.write_file(path, file))
        file.unlink()


def remove_leftovers(lake: Lake, root: str, keep: Iterable[str]) -> None:
    """Delete files of an earlier export that this one did not write."""
    for path in set(lake.list_files(root)) - set(keep):
        lake.delete(path)


def card_metadata(export: Export, licence: str, kind: str) -> dict[str, Any]:
    """Return the card's YAML front matter: licence, the configurations of one file format, explicit features."""
    configs, infos = [], []
    for config, splits in sorted(export.rows.items()):
        files = [{"split": split, "path": f"{config}/{split}-*.{kind}"} for split in sorted(splits)]
        configs.append({"config_name": config, "data_files": files})
        infos.append({"config_name": config, "features": features(export.schemas[config])})
    return {
        "license": licence,
        "tags": ["reasoning", "distillation", "difficulty-graded"],
        "configs": configs,
        "dataset_info": infos,
    }


def features(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a polars schema as the `features` of a dataset card."""
    return [{"name": name, **_feature(kind)} for name, kind in schema.items()]


def _feature(kind: Any) -> dict[str, Any]:
    if isinstance(kind, pl.List) and isinstance(kind.inner, pl.Struct):
        return {"list": features(dict(kind.inner))}
    if isinstance(kind, pl.Struct):
        return {"struct": features(dict(kind))}
    return {"dtype": _TYPES[type(kind)]}
