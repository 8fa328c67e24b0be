"""All readers by name: a reader turns its options into raw rows. A recipe's source or benchmark names one."""

from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import field_validator

from deepdistill_assets.queries import generators
from deepdistill_assets.queries.code_tests import CodeTests
from deepdistill_assets.queries.columns import Column, Options
from deepdistill_assets.queries.formats import MAX_DECOMPRESSED_BYTES, read_records
from deepdistill_assets.queries.hub import hub_records
from deepdistill_assets.queries.mapping import Mapping, TableOptions, map_records, parse_options, taken
from deepdistill_assets.queries.package_data import package_file
from deepdistill_assets.queries.reading import UNREADABLE_FILE, Reading
from deepdistill_assets.queries.released import (
    Released14MOptions,
    Released40MOptions,
    read_released_1_4m,
    read_released_40m,
)
from deepdistill_assets.queries.rows import MalformedRow, RawRow
from deepdistill_resources.errors import RecipeError, SourceError
from deepdistill_resources.hub import unpinned

Rows = Iterator[RawRow | MalformedRow]
Reader = Callable[[dict[str, Any], int | None, int, Reading], Rows]

BUNDLED_MAPPING = Mapping(
    query=Column(path="query"),
    reference_answer=Column(path="reference_answer", optional=True),
    options=Column(path="options", optional=True, kind="list"),
    test_cases=CodeTests(style="ready", tests=Column(path="test_cases", optional=True)),
    category=Column(path="category", optional=True),
    language=Column(path="language", optional=True),
)


class FileOptions(TableOptions):
    """Options of the `file` reader.

    Args:
        path: a file, or a glob in the last part; files are read in the order of their names.
        format: `jsonl | json | csv | tsv | parquet`; None: from the name.
        records: dotted path to the records inside a JSON document.
        strict_files: one unreadable file fails the source; else it is quarantined and the others go on.
        follow_links: read files that are links to places outside their directory.
        max_decompressed_bytes: of one file.
    """

    path: str
    format: str | None = None
    records: str | None = None
    strict_files: bool = False
    follow_links: bool = False
    max_decompressed_bytes: int = MAX_DECOMPRESSED_BYTES

    @field_validator("path")
    @classmethod
    def _stays_below(cls, value: str) -> str:
        place = Path(value).expanduser()
        if not place.is_absolute() and ".." in place.parts:
            raise ValueError("a relative path must not lead out of its directory; give the absolute path.")
        return value


class PackageOptions(TableOptions):
    """Options of the `package_file` reader: `file` is a glob below the distribution's files."""

    package: str
    file: str
    format: str | None = None
    records: str | None = None


class HubOptions(TableOptions):
    """Options of the `hub` reader: a data set's id (or saved directory), config, split and pinned revision.

    `data_files` names files of a repository that declares no configs (a glob inside it).
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    revision: str = "main"
    data_files: str | None = None


class BundledOptions(TableOptions):
    """Options of the `bundled` reader: `file` is a name in `queries/data/`."""

    file: str
    mapping: Mapping = BUNDLED_MAPPING


def read_file(options: dict[str, Any], limit: int | None, seed: int, reading: Reading) -> Rows:
    """Read local files: JSONL, JSON, CSV, TSV, parquet; `.gz` and `.zst`."""
    chosen = parse_options(FileOptions, options, "file")
    paths = source_files(chosen.path)
    if not chosen.follow_links:
        _refuse_links(paths)
    reading.expect(paths)
    return taken(_rows_of_files(paths, chosen, reading), chosen.shuffle, limit, seed)


def source_files(path: str) -> list[Path]:
    """Return the files that a path or glob names, in the order of names; the path itself where there is none."""
    place = Path(path).expanduser()
    return [place] if place.is_file() else sorted(place.parent.glob(place.name)) or [place]


def _refuse_links(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
            fix = "set options.follow_links if this is meant."
            raise SourceError(f"{path}: is a link to {path.resolve()}, outside its directory.", fix)


def _rows_of_files(paths: list[Path], chosen: FileOptions, reading: Reading) -> Rows:
    for path in paths:
        limit = chosen.max_decompressed_bytes
        records = read_records(path, chosen.format, chosen.records, reading, limit)
        try:
            yield from map_records(records, chosen, str(path), reading)
        except SourceError as error:
            if chosen.strict_files or len(paths) == 1:
                raise
            reading.log(str(error))
            yield MalformedRow(path.name, UNREADABLE_FILE, str(error)[:500], whole_file=True)


def read_package_file(options: dict[str, Any], limit: int | None, seed: int, reading: Reading) -> Rows:
    """Read a file inside an installed distribution, which is never imported."""
    chosen = parse_options(PackageOptions, options, "package_file")
    path = package_file(chosen.package, chosen.file)
    records = read_records(path, chosen.format, chosen.records, reading)
    return taken(map_records(records, chosen, f"{chosen.package}: {path.name}", reading), chosen.shuffle, limit, seed)


def read_bundled(options: dict[str, Any], limit: int | None, seed: int, reading: Reading) -> Rows:
    """Read a small set that ships with the project."""
    chosen = parse_options(BundledOptions, options, "bundled")
    folder = Path(str(files("deepdistill_assets") / "queries" / "data"))
    names = sorted(path.name for path in folder.glob("*.jsonl"))
    if chosen.file not in names:
        raise SourceError(f"no bundled file {chosen.file!r}; there are {', '.join(names)}.")
    records = read_records(folder / chosen.file, reading=reading)
    return taken(map_records(records, chosen, chosen.file, reading), chosen.shuffle, limit, seed)


def read_hub(options: dict[str, Any], limit: int | None, seed: int, reading: Reading) -> Rows:
    """Stream a data set of the Hugging Face hub."""
    chosen = parse_options(HubOptions, options, "hub")
    records = hub_records(chosen.dataset, chosen.config, chosen.split, chosen.revision, chosen.data_files)
    return taken(map_records(records, chosen, chosen.dataset, reading), chosen.shuffle, limit, seed)


def unpinned_dataset(reader: str, options: dict[str, Any]) -> dict[str, str]:
    """Return a warning, as metadata, where a source reads a data set of the hub at a branch or tag; else nothing."""
    if reader != "hub":
        return {}
    chosen = parse_options(HubOptions, options, "hub")
    return {} if Path(chosen.dataset).is_dir() else unpinned(chosen.dataset, chosen.revision)


def _generated(make: Callable[[dict[str, Any], int | None, int], Iterator[RawRow]]) -> Reader:
    """Return a generator of queries as a reader; what a program makes has nothing malformed."""
    return lambda options, limit, seed, reading: iter(make(options, limit, seed))


def _released_40m(options: dict[str, Any], limit: int | None, seed: int, reading: Reading) -> Rows:
    return read_released_40m(parse_options(Released40MOptions, options, "released_40m"), limit, reading)


def _released_1_4m(options: dict[str, Any], limit: int | None, seed: int, reading: Reading) -> Rows:
    return read_released_1_4m(parse_options(Released14MOptions, options, "released_1_4m"), limit, reading)


READERS: dict[str, Reader] = {
    "arithmetic": _generated(generators.arithmetic),
    "digits": _generated(generators.digits),
    "reasoning_gym": _generated(generators.reasoning_gym),
    "bundled": read_bundled,
    "file": read_file,
    "package_file": read_package_file,
    "hub": read_hub,
    "released_40m": _released_40m,
    "released_1_4m": _released_1_4m,
}


OPTIONS: dict[str, type[Options]] = {
    "arithmetic": generators.ArithmeticOptions,
    "digits": generators.DigitsOptions,
    "reasoning_gym": generators.GymOptions,
    "bundled": BundledOptions,
    "file": FileOptions,
    "package_file": PackageOptions,
    "hub": HubOptions,
    "released_40m": Released40MOptions,
    "released_1_4m": Released14MOptions,
}


FILE_READERS = ("file", "released_40m", "released_1_4m")  # whose options name local files


def check_options(key: str, reader: str, options: dict[str, Any]) -> None:
    """Check a source's reader and options before anything is read; raises RecipeError that begins with `key`."""
    if reader not in OPTIONS:
        raise RecipeError(f"{key}: no reader named {reader!r}; there are {', '.join(OPTIONS)}.")
    try:
        parse_options(OPTIONS[reader], options, reader)
    except RecipeError as error:
        raise RecipeError(f"{key}: {error.message}") from error


def gives_responses(reader: str, options: dict[str, Any]) -> bool:
    """Whether rows of this source can come with responses."""
    return parse_options(OPTIONS[reader], options, reader).gives_responses()


def read_rows(
    reader: str, options: dict[str, Any], limit: int | None, seed: int, reading: Reading | None = None
) -> Rows:
    """Read a source or benchmark with the reader of that name.

    Raises:
        RecipeError: unknown reader or wrong options.
        SourceError, MissingPackageError: the source as a whole cannot be read.
    """
    check_options(reader, reader, options)
    reading = reading or Reading()
    return reading.watched(READERS[reader](options, limit, seed, reading))


def input_stamp(reader: str, options: dict[str, Any], corrections: str | None) -> list[str]:
    """Return what tells that local inputs changed: name, size and time of each file."""
    paths = source_files(str(options.get("path", ""))) if reader in FILE_READERS else []
    paths += [Path(corrections).expanduser()] if corrections else []
    stats = [(path.name, path.stat()) for path in paths if path.is_file()]
    return [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
