"""What all assets share: how one is declared, and how its result is reported to Dagster."""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import dagster as dg
import polars as pl

from deepdistill_assets.content_hash import content_digest
from deepdistill_assets.recipe import Recipe, fingerprint
from deepdistill_assets.tables import Schema
from deepdistill_resources.pods import CONFIG_TAG, gpu_request
from deepdistill_resources.stage_result import StageResult, StreamedResult, TableParts

ROW_LAW = "row_law"
OWNERS = ["team:deepdistill"]
PARTITION_VERSIONS = "deepdistill/partition_versions"  # in a definition's metadata: {partition: version}
PARTITION_VERSION = "deepdistill/partition_version"  # a tag of a materialization
GPU_POOL = "gpu"
ANY_TABLE = dg.PythonObjectDagsterType(
    (pl.DataFrame, pl.LazyFrame, StageResult, StreamedResult, TableParts), name="Table"
)


@dataclass(frozen=True)
class Stage:
    """One room of the house: declares assets of one group for one recipe.

    `asset` fills in what every asset has: group, owners, kinds, column schema, code version and the row-law check.
    """

    group: str
    recipe: Recipe
    declared: list[dg.AssetsDefinition] = field(default_factory=list)

    def asset(
        self,
        *,
        schema: Schema | None,
        version: int,
        knobs: Sequence[Any] = (),
        partitions_def: dg.PartitionsDefinition | None = None,
        kinds: Sequence[str] = ("polars", "parquet"),
        pool: str | None = None,
        ins: Mapping[str, dg.AssetIn] | None = None,
        deps: Sequence[Any] = (),
        checks: Sequence[str] = (),
        row_law: bool = False,
        retry: bool = False,
        partition_versions: Mapping[str, str] | None = None,
    ) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
        """Return the decorator of one asset.

        Args:
            schema: columns of the table it writes (None: it writes files, not a table).
            version: bumped by hand when the logic changes.
            knobs: parts of the recipe that change the asset's data; hashed into its code version.
            checks: names of the check results it reports, beside the row law.
            row_law: the asset returns a StageResult and reports the row law.
            retry: the asset talks to something that can fail for a moment.
            partition_versions: what in the recipe belongs to one partition alone, by partition key; a changed value
                makes that partition stale and no other (a code version is per asset).
        """

        def declare(function: Callable[..., Any]) -> dg.AssetsDefinition:
            names = [*checks, *([ROW_LAW] if row_law else [])]
            asset = dg.asset(
                group_name=self.group,
                owners=OWNERS,
                kinds=set(kinds),
                tags={"stage": self.group},
                description=inspect.getdoc(function) or "",
                metadata=_definition_metadata(schema, partition_versions),
                code_version=f"{version}-{fingerprint([_plain(knob) for knob in knobs])}",
                partitions_def=partitions_def,
                pool=pool,
                op_tags={CONFIG_TAG: gpu_request(1)} if pool == GPU_POOL else None,
                ins=ins,
                deps=list(deps),
                check_specs=[dg.AssetCheckSpec(name, asset=function.__name__) for name in names] or None,
                retry_policy=dg.RetryPolicy(max_retries=2, delay=2) if retry else None,
                io_manager_key="io_manager",
                # A table is handed to the IO manager as it is; files only are Nothing to it.
                dagster_type=ANY_TABLE if schema else None,
            )(function)
            self.declared.append(asset)
            return asset

        return declare


def _definition_metadata(schema: Schema | None, partition_versions: Mapping[str, str] | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"dagster/column_schema": column_schema(schema)} if schema else {}
    return metadata | ({PARTITION_VERSIONS: dict(partition_versions)} if partition_versions else {})


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def column_schema(schema: Schema) -> dg.TableSchema:
    """Return a polars schema as Dagster column metadata."""
    return dg.TableSchema(columns=[dg.TableColumn(name, str(kind)) for name, kind in schema.items()])


def content_version(*tables: Iterable[pl.DataFrame], volatile: Sequence[str] = ()) -> dg.DataVersion:
    """Return a data version from content, so that an upstream re-run that changes nothing makes nothing stale.

    Args:
        tables: blocks of each table; row order counts, where a block ends does not.
        volatile: columns that may differ between equal runs (timings).
    """
    stable = ((block.drop(volatile, strict=False) for block in blocks) for blocks in tables)
    digests = [content_digest(blocks) for blocks in stable]
    return dg.DataVersion(hashlib.sha256(b"".join(digests)).hexdigest()[:32])


def materialized(
    result: StageResult | StreamedResult | TableParts | pl.DataFrame,
    metadata: Mapping[str, Any] | None = None,
    checks: Sequence[dg.AssetCheckResult] = (),
    volatile: Sequence[str] = (),
    partition_version: str | None = None,
) -> dg.MaterializeResult:
    """Return the asset's value with its row count, drops by reason, row-law check and content data version."""
    tags = {PARTITION_VERSION: partition_version} if partition_version else None
    if isinstance(result, pl.DataFrame):
        return dg.MaterializeResult(
            value=result,
            tags=tags,
            metadata={"dagster/row_count": result.height, **(metadata or {})},
            check_results=list(checks) or None,
            data_version=content_version([result], volatile=volatile),
        )
    if isinstance(result, TableParts):
        return dg.MaterializeResult(
            value=result,
            tags=tags,
            metadata={"dagster/row_count": result.rows, **(metadata or {})},
            check_results=list(checks) or None,
            data_version=content_version(
                chain([pl.DataFrame(schema=result.schema)], result.frames()), volatile=volatile
            ),
        )
    facts = {
        "dagster/row_count": result.rows_kept,
        "rows_in": result.rows_in,
        "rows_kept": result.rows_kept,
        "rows_dropped": result.dropped.height,
        "dropped_by_reason": counts_table(result.dropped_by_reason()),
        **(metadata or {}),
    }
    law = dg.AssetCheckResult(
        check_name=ROW_LAW,
        passed=result.rows_in == result.rows_kept + result.dropped.height,
        metadata={"rows_in": result.rows_in, "rows_kept": result.rows_kept, "rows_dropped": result.dropped.height},
    )
    return dg.MaterializeResult(
        value=result,
        tags=tags,
        metadata=facts,
        check_results=[*checks, law],
        data_version=content_version(_frames(result), [result.dropped], volatile=volatile),
    )


def _frames(result: StageResult | StreamedResult) -> Iterable[pl.DataFrame]:
    if isinstance(result, StageResult):
        return [result.kept]
    return (pl.read_parquet(path) for path in result.parts)


def counts_table(
    counts: Mapping[str, int | float], name: str = "reason", value: str = "rows"
) -> dg.MarkdownMetadataValue:
    """Return `{name: value}` as a small table for the UI."""
    rows = "\n".join(f"| {key} | {number:,} |" for key, number in counts.items())
    return dg.MetadataValue.md(f"| {name} | {value} |\n|---|---:|\n{rows}")


def frame_table(frame: pl.DataFrame, rows: int = 20) -> dg.MarkdownMetadataValue:
    """Return the first rows of a small frame as a table for the UI; cells are cut at 120 characters."""

    def cell(value: Any) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        return text[:120].replace("|", "\\|").replace("\n", " ")

    head = "| " + " | ".join(frame.columns) + " |\n|" + "---|" * frame.width
    body = "\n".join("| " + " | ".join(cell(value) for value in row) + " |" for row in frame.head(rows).iter_rows())
    return dg.MetadataValue.md(f"{head}\n{body}")


def partition_of(context: dg.AssetExecutionContext, dimension: str) -> str:
    """Return the partition key of one dimension of a two-dimensional partition."""
    key = context.partition_key
    if not isinstance(key, dg.MultiPartitionKey):
        raise TypeError(f"asset partition {key!r} has one dimension")
    return key.keys_by_dimension[dimension]
