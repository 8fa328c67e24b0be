"""The whole story of one query, read back from the tables: what `deepdistill why` shows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from deepdistill_assets.recipe import Recipe
from deepdistill_resources.errors import DeepDistillError
from deepdistill_resources.io_managers import DATA_FILE, DROPPED_FILE, partition_directory
from deepdistill_resources.lake import Lake


@dataclass
class Chapter:
    """One stage's part of the story."""

    title: str
    lines: list[str] = field(default_factory=list)
    table: pl.DataFrame | None = None


@dataclass(frozen=True)
class Library:
    """Reads rows of one query from the partitions that can hold them."""

    lake: Lake
    recipe: Recipe

    def rows(self, asset: str, keys: dict[str, str] | None, where: pl.Expr, file: str = DATA_FILE) -> pl.DataFrame:
        """Return the matching rows of one partition; no rows where it is not materialized."""
        path = f"{partition_directory(asset, keys)}/{file}"
        return self.lake.scan_tables([path]).filter(where).collect() if self.lake.exists(path) else pl.DataFrame()

    def by_source(self, asset: str, source: str, where: pl.Expr, file: str = DATA_FILE) -> pl.DataFrame:
        """Return matching rows of an asset's partition of one source."""
        return self.rows(asset, {"partition": source}, where, file)

    def by_teacher(self, asset: str, source: str, where: pl.Expr) -> pl.DataFrame:
        """Return matching rows of all teachers for one source."""
        frames = [
            self.rows(asset, {"source": source, "teacher": teacher}, where) for teacher in sorted(self.recipe.teachers)
        ]
        return _stack(frames)


def _stack(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    filled = [frame for frame in frames if frame.height]
    return pl.concat(filled) if filled else pl.DataFrame()


def find_query(lake: Lake, recipe: Recipe, query_id: str | None = None, text: str | None = None) -> pl.DataFrame:
    """Return the raw queries whose id begins with `query_id`, or whose text contains `text` (any case).

    Raises:
        DeepDistillError: no raw query matches; a quarantined row is named with its reason.
    """
    library = Library(lake, recipe)
    if text is not None:
        where = pl.col("query_text").str.to_lowercase().str.contains(text.lower(), literal=True)
    else:
        where = pl.col("query_id").str.starts_with(query_id or "")
    found = _stack(library.by_source("raw_queries", source, where) for source in recipe.sources)
    if found.height:
        return found
    wanted = pl.col("row_id") == query_id if text is None else pl.col("detail").str.contains(text, literal=True)
    frames = [library.by_source("raw_queries", source, wanted, DROPPED_FILE) for source in recipe.sources]
    for row in _stack(frames).iter_rows(named=True):
        raise DeepDistillError(f"{row['row_id']} of {row['source']} is in quarantine: {row['reason']}: {row['detail']}")
    raise DeepDistillError(
        f"no raw query matches {query_id or text!r} in {lake.root}.",
        "check the recipe (--recipe), or run `deepdistill run` first.",
    )


def tell(lake: Lake, recipe: Recipe, query: dict) -> list[Chapter]:
    """Return the story of one row of `raw_queries`, in the order of the stages."""
    library, source = Library(lake, recipe), query["source"]
    # An id is a hash of the content, so two sources can hold the same one.
    same = (pl.col("query_id") == query["query_id"]) & (pl.col("source") == source)
    chapters = [_origin(query), *_filters(library, query, same)]
    chapters += [_responses(library, source, same), _grades(library, source, same)]
    chapters += [_selection(library, same, "stage1"), _selection(library, same, "stage2"), _checkpoints(library, same)]
    return [chapter for chapter in chapters if chapter.lines or chapter.table is not None]


def _origin(query: dict) -> Chapter:
    lines = [f"row {query['source_row']} of {query['source']} ({query['category']}, {query['license']})"]
    lines.append(_cut(query["query_text"], 400))
    if query["reference_answer"] is not None:
        lines.append(f"reference answer: {_cut(query['reference_answer'], 200)}")
    return Chapter("raw_queries", lines)


def _filters(library: Library, query: dict, same: pl.Expr) -> list[Chapter]:
    source, query_id = query["source"], query["query_id"]
    chapters = []
    for asset in ("clean_queries", "deduped_queries", "distillation_queries"):
        if asset == "deduped_queries":
            chapters.append(Chapter("duplicate_clusters", _duplicates(library, query_id, same)))
        if asset == "distillation_queries":
            chapters.append(Chapter("contamination", _contamination(library, source, same)))
        dropped = library.by_source(asset, source, pl.col("row_id") == query_id, DROPPED_FILE)
        if dropped.height:
            reason, detail = dropped.row(0, named=True)["reason"], dropped.row(0, named=True)["detail"]
            return [*chapters, Chapter(asset, [f"dropped: {reason} ({_cut(detail or '', 200)})"])]
        if library.by_source(asset, source, same).height:
            chapters.append(Chapter(asset, ["kept"]))
    return chapters


def _duplicates(library: Library, query_id: str, same: pl.Expr) -> list[str]:
    mine = library.rows("duplicate_clusters", None, same)
    if mine.is_empty():
        return []
    row = mine.row(0, named=True)
    others = library.rows("duplicate_clusters", None, (pl.col("cluster_id") == row["cluster_id"]) & ~same).height
    if not others:
        return ["no duplicates"]
    survivor = f"survivor: {row['survivor_id']}"
    similarity = "" if row["similarity"] is None else f", similarity {row['similarity']:.3f}"
    crowd = _count(others, "other query", "other queries")
    return [f"cluster {row['cluster_id']} with {crowd} ({row['method']}{similarity}); {survivor}"]


def _contamination(library: Library, source: str, same: pl.Expr) -> list[str]:
    matches = library.by_source("contamination", source, same)
    if matches.is_empty():
        return _nearest_problem(library, source, same)
    return [
        f"matches {row['benchmark']} {row['problem_id']} ({row['method']}, {row['similarity']:.3f}): "
        f"{_cut(row['problem_text'] or '', 120)}"
        for row in matches.head(5).iter_rows(named=True)
    ]


def _nearest_problem(library: Library, source: str, same: pl.Expr) -> list[str]:
    """Return the benchmark problem nearest by meaning, where the recipe embeds; vectors have length 1."""
    mine = library.by_source("query_embeddings", source, same)
    if mine.is_empty():
        return []
    vector = np.array(mine["embedding"][0], dtype=np.float32)
    best: tuple[float, str, str] | None = None
    for benchmark in library.recipe.evaluation.benchmarks:
        problems = library.rows("problem_embeddings", {"partition": benchmark}, pl.lit(value=True))
        if problems.height:
            similarity = np.array(problems["embedding"].to_list(), dtype=np.float32) @ vector
            place = int(similarity.argmax())
            found = (float(similarity[place]), benchmark, str(problems["problem_id"][place]))
            best = found if best is None else max(best, found)
    if best is None:
        return []
    similarity_to, benchmark, problem_id = best
    problem = library.rows("benchmark_problems", {"partition": benchmark}, pl.col("problem_id") == problem_id)
    text = _cut(problem["problem_text"][0], 120) if problem.height else problem_id
    return [f"no match; nearest is a problem of {benchmark} (semantic, {similarity_to:.3f}): {text}"]


def _responses(library: Library, source: str, same: pl.Expr) -> Chapter:
    responses = library.by_teacher("responses", source, same)
    if responses.is_empty():
        return Chapter("responses", [])
    table = responses.select("response_id", "teacher", "pass_index", "status", "answer", "completion_tokens")
    verified = library.by_teacher("verified_responses", source, same)
    quality = library.by_teacher("quality_checks", source, same)
    if verified.height:
        columns = ("response_id", "verdict", "verify_score", "verifier")
        table = table.join(verified.select(columns), on="response_id", how="left")
    if quality.height:
        kept = pl.when("keep").then(pl.lit("keep")).otherwise(pl.col("drop_reason")).alias("quality")
        table = table.join(quality.select("response_id", "perplexity", kept), on="response_id", how="left")
    return Chapter("responses", [], table.sort("teacher", "pass_index").drop("response_id"))


def _grades(library: Library, source: str, same: pl.Expr) -> Chapter:
    grades = library.by_source("difficulty_grades", source, same)
    wanted: Sequence[str] = (
        "teacher",
        "n",
        "n_passed",
        "pass_rate",
        "interval_low",
        "interval_high",
        "mean",
        "cv",
        "cv_null_reason",
        "level",
    )
    return Chapter("difficulty_grades", [], grades.select(wanted).sort("teacher") if grades.height else None)


def _selection(library: Library, same: pl.Expr, stage: str) -> Chapter:
    decisions = library.rows(f"{stage}_selection", None, same)
    lines = (
        [
            f"{'kept' if row['keep'] else 'not kept'}: {row['reason']} "
            f"({_count(row['count'], 'response', 'responses')})"
            for row in decisions.group_by("keep", "reason").len("count").sort("keep", "reason").iter_rows(named=True)
        ]
        if decisions.height
        else []
    )
    lines += _numbers(decisions)
    rows = library.rows(f"{stage}_dataset", None, same)
    if rows.height:
        lines.append(
            f"{_count(rows.height, 'row', 'rows')} in {stage}_dataset ({', '.join(sorted(set(rows['split'])))})"
        )
    return Chapter(f"{stage}_selection", lines)


NUMBERS = {"best score": ("max_score", "threshold"), "CV": ("cv", "cv_threshold"), "coin": ("coin", None)}


def _numbers(decisions: pl.DataFrame) -> list[str]:
    """Say what the training teacher's responses were decided on; tables of earlier versions do not tell."""
    facts = []
    for name, (value, limit) in NUMBERS.items():
        if value in decisions.columns and (limit is None or limit in decisions.columns):
            own = decisions.filter(pl.col("reason") != "not_training_teacher").drop_nulls(value)
            facts += [
                f"{name} {row[value]:.3g}" + (f" against {row[limit]:.3g}" if limit else "")
                for row in own.head(1).iter_rows(named=True)
            ]
    return [", ".join(facts)] if facts else []


def _checkpoints(library: Library, same: pl.Expr) -> Chapter:
    """Say which checkpoints were trained on the query; a stage II checkpoint begins at its student's stage I."""
    lines = []
    for student in library.recipe.students:
        inside = False
        for stage in ("stage1", "stage2"):
            train = pl.col("split") == "train"
            rows = library.rows(f"{stage}_dataset", None, same & train).height
            made = library.rows(f"{stage}_checkpoint", {"partition": student}, pl.lit(value=True))
            inside |= rows > 0
            if inside and made.height:
                here = f"{rows} of its {made['rows'][0]:,} rows" if rows else "through its stage I checkpoint"
                lines.append(f"{student}--{stage}: {here}")
    return Chapter("checkpoints", lines)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _cut(text: str, length: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"
