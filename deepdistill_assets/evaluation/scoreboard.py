"""All checkpoints side by side: scores with intervals, paired differences from the base, and cautions."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from deepdistill_assets.evaluation.metrics import Estimate, paired_difference
from deepdistill_assets.partitions import split_checkpoint_key
from deepdistill_assets.recipe import Recipe
from deepdistill_assets.tables import SCOREBOARD, TRAINING_CONTAMINATION, conform, empty


def scoreboard_rows(
    scores: pl.DataFrame,
    responses: pl.DataFrame,
    contamination: pl.DataFrame,
    recipe: Recipe,
    unresolved: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Return the SCOREBOARD: one row per benchmark and checkpoint, metric avg@k, in the recipe's order.

    Args:
        scores: BENCHMARK_SCORE rows of all benchmarks and checkpoints.
        responses: BENCHMARK_RESPONSE rows (benchmark, checkpoint, problem_id, sample_index, answer, passed).
        contamination: CONTAMINATION rows; matched queries were removed, the note says how many.
        unresolved: TRAINING_CONTAMINATION rows; None: there are none.
    """
    found = empty(TRAINING_CONTAMINATION) if unresolved is None else unresolved
    rows = []
    for benchmark in recipe.evaluation.benchmarks:
        ours = scores.filter(pl.col("benchmark") == benchmark)
        for checkpoint in dict.fromkeys(scores["checkpoint"]):
            mine = ours.filter(pl.col("checkpoint") == checkpoint)
            if mine.is_empty():
                continue
            average = mine.filter(pl.col("metric").str.starts_with("avg@"))
            # A benchmark that nothing here can verify has a row without a score: it must not vanish.
            score = average.row(0, named=True) if average.height else _unverified(mine.row(0, named=True))
            contaminated = contaminated_rows(found, benchmark, checkpoint)
            rows.append(_row(score, ours, responses, contamination, recipe, contaminated))
    return conform(pl.DataFrame(rows, schema=SCOREBOARD), SCOREBOARD)


def _unverified(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "metric": f"avg@{row['samples']}", "value": None, "interval_low": None, "interval_high": None}


def _row(
    score: dict[str, Any],
    scores: pl.DataFrame,
    responses: pl.DataFrame,
    contamination: pl.DataFrame,
    recipe: Recipe,
    contaminated: int,
) -> dict[str, Any]:
    benchmark, checkpoint = score["benchmark"], score["checkpoint"]
    difference = _difference_from_base(benchmark, checkpoint, responses, recipe)
    facts = {
        row["metric"]: row["value"] for row in scores.filter(pl.col("checkpoint") == checkpoint).iter_rows(named=True)
    }
    return {
        "benchmark": benchmark,
        "category": recipe.evaluation.benchmarks[benchmark].category,
        "checkpoint": checkpoint,
        "metric": score["metric"],
        "value": score["value"],
        "interval_low": score["interval_low"],
        "interval_high": score["interval_high"],
        "difference_from_base": difference.value if difference else None,
        "difference_low": difference.low if difference else None,
        "difference_high": difference.high if difference else None,
        "problems": score["problems"],
        "reported": ", ".join(
            f"{name} {value:g}" for name, value in recipe.evaluation.benchmarks[benchmark].reported.items()
        )
        or None,
        "contaminated_training_rows": contaminated,
        "note": "; ".join(_notes(benchmark, checkpoint, facts, contamination, recipe, contaminated)),
    }


def base_of(checkpoint: str, recipe: Recipe) -> str | None:
    """Return the base checkpoint that a checkpoint is compared with (the first student's for a teacher)."""
    owner, stage = split_checkpoint_key(checkpoint)
    if owner == "teacher":
        owner = next(iter(recipe.students))
    return None if stage == "base" else f"{owner}--base"


def _difference_from_base(benchmark: str, checkpoint: str, responses: pl.DataFrame, recipe: Recipe) -> Estimate | None:
    base = base_of(checkpoint, recipe)
    if base is None:
        return None
    ours = responses.filter((pl.col("benchmark") == benchmark) & pl.col("passed").is_not_null())
    left, right = (ours.filter(pl.col("checkpoint") == key) for key in (checkpoint, base))
    shared = set(left["problem_id"]) & set(right["problem_id"])
    if not shared:
        return None
    left, right = (frame.filter(pl.col("problem_id").is_in(list(shared))) for frame in (left, right))
    return paired_difference(left, right, recipe.evaluation.bootstrap_samples, recipe.seed)


def _notes(
    benchmark: str,
    checkpoint: str,
    facts: dict[str, float],
    contamination: pl.DataFrame,
    recipe: Recipe,
    contaminated: int,
) -> list[str]:
    settings = recipe.evaluation.benchmarks[benchmark]
    owner, stage = split_checkpoint_key(checkpoint)
    notes = [f"CONTAMINATED: {contaminated} training rows match this benchmark"] if contaminated else []
    notes += [f"answer format in {facts['format_share']:.0%}"] if "format_share" in facts else ["no score"]
    if facts.get("truncated_share"):
        notes.append(f"truncated {facts['truncated_share']:.0%}")
    if facts.get("unverifiable_problems"):
        notes.append(f"{facts['unverifiable_problems']:.0f} problems unverifiable")
    notes += _instruction_notes(facts)
    if facts.get("judged_share"):
        notes.append(f"{facts['judged_share']:.0%} judged by {recipe.evaluation.judge_model}")
    if stage in recipe.evaluation.checkpoints:
        notes.append(f"given weights: {recipe.evaluation.checkpoints[stage].model}")
    elif owner == "teacher":
        notes.append("few-shot teacher" if recipe.teachers[stage].style.mode == "few_shot" else "teacher")
    elif stage != "base" and _is_self_distilled(owner, recipe):
        notes.append("self-distillation")
    if settings.generator_of_training:
        notes.append("same generator as training, disjoint problems")
    matches = contamination.filter(pl.col("benchmark") == benchmark)["query_id"].n_unique()
    if matches:
        notes.append(f"{matches} contaminated queries removed from training")
    return notes


def _instruction_notes(facts: dict[str, float]) -> list[str]:
    names = {"prompt_loose": "prompts loose", "instruction_strict": "instructions strict", "instruction_loose": "loose"}
    found = [f"{text} {100 * facts[name]:.1f}" for name, text in names.items() if name in facts]
    return [", ".join(found)] if found else []


def contaminated_rows(unresolved: pl.DataFrame, benchmark: str, checkpoint: str) -> int:
    """Return how many training rows of a checkpoint match a benchmark; stage II was trained on those of stage I too."""
    stages = {"stage1": ["stage1"], "stage2": ["stage1", "stage2"]}.get(split_checkpoint_key(checkpoint)[1], [])
    mine = unresolved.filter((pl.col("benchmark") == benchmark) & pl.col("stage").is_in(stages))
    return mine["example_id"].n_unique()


def training_contamination(datasets: Mapping[str, pl.DataFrame], contamination: pl.DataFrame) -> pl.DataFrame:
    """Return the TRAINING_CONTAMINATION: matches of queries that are trained on all the same.

    Matched queries leave before they are distilled; what is left was selected before a benchmark was added or its check
    was sharpened, or came past it.

    Args:
        datasets: DATASET rows by stage.
        contamination: CONTAMINATION rows of all sources.
    """
    matches = contamination.select("query_id", "benchmark", "problem_id", "method", "similarity").unique()
    frames = [
        rows.select("example_id", "query_id").join(matches, on="query_id").with_columns(stage=pl.lit(stage))
        for stage, rows in datasets.items()
    ]
    found = conform(
        pl.concat([empty(TRAINING_CONTAMINATION), *(conform(f, TRAINING_CONTAMINATION) for f in frames)]),
        TRAINING_CONTAMINATION,
    )
    return found.sort("stage", "example_id", "benchmark", "problem_id", "method")


def _is_self_distilled(student: str, recipe: Recipe) -> bool:
    return recipe.students[student].model == recipe.teachers[recipe.selection.stage1.teacher].model


def claim_differences(board: pl.DataFrame, recipe: Recipe) -> pl.DataFrame:
    """Return the trained checkpoints' rows on the benchmarks on which the recipe claims its gain."""
    claims = [name for name, item in recipe.evaluation.benchmarks.items() if item.claim]
    trained = pl.col("difference_low").is_not_null() & pl.col("checkpoint").str.contains("--stage[12]$")
    return board.filter(pl.col("benchmark").is_in(claims) & trained)


def render_scoreboard(board: pl.DataFrame) -> str:
    """Return the scoreboard as plain text, one line per benchmark and checkpoint.

    Scores and differences are percent; brackets hold 95 % bootstrap intervals over problems.
    """
    lines, last = [], None
    for row in board.iter_rows(named=True):
        if row["benchmark"] != last:
            last = row["benchmark"]
            lines.append(f"\n{last} ({row['category']}, {row['problems']} problems, {row['metric']})")
            if row["reported"]:
                lines.append(f"  papers: {row['reported']}")
        score, difference = "    -", ""
        if row["value"] is not None:
            score = f"{100 * row['value']:5.1f} [{100 * row['interval_low']:5.1f}, {100 * row['interval_high']:5.1f}]"
        if row["difference_from_base"] is not None:
            low, high = 100 * row["difference_low"], 100 * row["difference_high"]
            difference = f"{100 * row['difference_from_base']:+6.1f} [{low:+6.1f}, {high:+6.1f}]"
        lines.append(f"  {row['checkpoint']:<24} {score:<20}  {difference:<26} {row['note']}")
    return "\n".join(lines).strip("\n")
