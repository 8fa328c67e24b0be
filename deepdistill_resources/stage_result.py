"""What a stage hands to the lake: kept rows, and one row with a reason for each dropped one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from deepdistill_resources.errors import RowLawError

DROPPED_SCHEMA: dict[str, pl.DataType] = {
    "row_id": pl.String(),  # the key of the dropped row: query_id, response_id, or file:line for malformed input
    "source": pl.String(),
    "reason": pl.String(),  # a short code, e.g. "contains_url"
    "detail": pl.String(),  # evidence for a reader, at most 500 characters
}


def empty_drops() -> pl.DataFrame:
    """Return a drops table without rows."""
    return pl.DataFrame(schema=DROPPED_SCHEMA)


@dataclass(frozen=True)
class StageResult:
    """The outcome of one stage on one partition; construction enforces the row law.

    Args:
        kept: rows that go on; any schema.
        dropped: columns of `DROPPED_SCHEMA`, one row for each row that leaves.
        rows_in: number of rows the stage was given.

    Raises:
        RowLawError: if `rows_in != len(kept) + len(dropped)`.
    """

    kept: pl.DataFrame
    rows_in: int
    dropped: pl.DataFrame = field(default_factory=empty_drops)

    def __post_init__(self) -> None:
        _enforce_row_law(self.rows_in, self.kept.height, self.dropped.height)

    @property
    def rows_kept(self) -> int:
        """Number of rows that go on."""
        return self.kept.height

    def dropped_by_reason(self) -> dict[str, int]:
        """Return `{reason: rows}` in descending order of rows."""
        return _by_reason(self.dropped)


@dataclass(frozen=True)
class StreamedResult:
    """A `StageResult` whose kept rows wait in files, for partitions that should not be in memory.

    Args:
        parts: parquet files of one schema, at least one.
        rows_kept: rows in all of them.
        directory: where they are; it goes when this object goes.
    """

    parts: tuple[Path, ...]
    rows_kept: int
    rows_in: int
    dropped: pl.DataFrame
    directory: "TemporaryDirectory[str]"

    def __post_init__(self) -> None:
        _enforce_row_law(self.rows_in, self.rows_kept, self.dropped.height)

    @staticmethod
    def of(kept: "TableParts", rows_in: int, dropped: pl.DataFrame) -> "StreamedResult":
        """Return the result whose kept rows are a table in parts."""
        if not kept.paths:
            kept.add(pl.DataFrame(schema=kept.schema))
        return StreamedResult(tuple(kept.paths), kept.rows, rows_in, dropped, kept.directory)

    @property
    def kept(self) -> pl.LazyFrame:
        """The rows that go on, as one scan."""
        return pl.scan_parquet(list(self.parts))

    def collected(self) -> StageResult:
        """Return the same in memory."""
        return StageResult(self.kept.collect(), self.rows_in, self.dropped)

    def dropped_by_reason(self) -> dict[str, int]:
        """Return `{reason: rows}` in descending order of rows."""
        return _by_reason(self.dropped)


class TableParts:
    """A table that is made part by part and waits in files, for partitions that should not be in memory.

    The files go when this object goes.
    """

    def __init__(self, schema: Mapping[str, pl.DataType]) -> None:
        self.schema, self.rows, self.paths = dict(schema), 0, list[Path]()
        self.directory = TemporaryDirectory(prefix="deepdistill-")

    def add(self, frame: pl.DataFrame) -> None:
        """Append rows; raises ValueError if they have another schema."""
        if dict(frame.schema) != self.schema:
            raise ValueError(f"rows have schema {frame.schema}, the table has {self.schema}")
        self.paths.append(Path(self.directory.name) / f"{len(self.paths):06}.parquet")
        frame.write_parquet(self.paths[-1], compression="lz4", statistics=False)
        self.rows += frame.height

    def scan(self) -> pl.LazyFrame:
        """Return all rows, in order, as one scan."""
        return pl.scan_parquet(self.paths) if self.paths else pl.LazyFrame(schema=self.schema)

    def frames(self) -> Iterator[pl.DataFrame]:
        """Yield the parts."""
        return (pl.read_parquet(path) for path in self.paths)


def _enforce_row_law(rows_in: int, kept: int, dropped: int) -> None:
    if rows_in != kept + dropped:
        raise RowLawError(f"rows in ({rows_in}) != rows kept ({kept}) + rows dropped ({dropped}).")


def _by_reason(dropped: pl.DataFrame) -> dict[str, int]:
    counts = dropped.group_by("reason").len().sort(["len", "reason"], descending=[True, False])
    return dict(counts.iter_rows())
