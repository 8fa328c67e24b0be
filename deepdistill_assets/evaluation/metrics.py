"""Scores of one benchmark and checkpoint, with intervals over problems; every sample counts, a missing one is an error.

avg@k is the papers' pass@1: the mean accuracy over k samples. pass@k is the unbiased estimator of Chen et al. 2021.
maj@k is the share of problems whose most frequent answer is right; tied answers share the vote. Answers that are
written differently are one where they are exactly equal (1/2 and 0.5), or where the verifier called both right.
Instruction following has four accuracies (Zhou et al. 2023): of whole prompts and of single instructions, read strictly
and loosely; avg@k is that of prompts read strictly.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
import polars as pl

from deepdistill_assets.tables import BENCHMARK_SCORE, conform
from deepdistill_resources.errors import EvaluationError
from deepdistill_resources.verifiers.math_forms import normal_form


@dataclass(frozen=True)
class Estimate:
    """A value with its bootstrap interval over problems (95 %)."""

    value: float
    low: float
    high: float


def check_complete(responses: pl.DataFrame, problem_ids: Sequence[str], samples: int) -> None:
    """Raise EvaluationError naming the problems that have fewer than `samples` scored responses."""
    scored = responses.filter(pl.col("passed").is_not_null())
    counts = dict(scored.group_by("problem_id").len().iter_rows())
    short = [f"{key} ({counts.get(key, 0)} of {samples})" for key in problem_ids if counts.get(key, 0) < samples]
    if short:
        raise EvaluationError(
            f"{len(short)} problems lack samples: {', '.join(short[:5])}.",
            "materialize benchmark_responses again; a score over fewer samples would be another score.",
        )


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the unbiased probability that at least one of k samples out of n is right.

    >>> round(pass_at_k(4, 1, 2), 3)
    0.5
    """
    if k > n:
        raise EvaluationError(f"pass@{k} needs at least {k} samples, there are {n}.")
    return 1.0 - comb(n - correct, k) / comb(n, k)


def majority_at_k(answers: Sequence[str | None], passed: Sequence[bool]) -> float:
    """Return 1 if the most frequent answer is right, 0 if not; ties count as the mean over the tied answers.

    An answer that could not be read votes for nothing.

    >>> majority_at_k(["0.5", "1/2", "2", "2", "3"], [True, True, False, False, False])
    0.5
    """
    ballots = [_ballot(answer) if answer else None for answer in answers]
    right = {ballot for ballot, good in zip(ballots, passed, strict=True) if good}
    votes = Counter(_RIGHT if ballot in right else ballot for ballot in ballots if ballot)
    if not votes:
        return 0.0
    most = max(votes.values())
    tied = [ballot for ballot, count in votes.items() if count == most]
    return (_RIGHT in tied) / len(tied)


_RIGHT = "the right answer"


@lru_cache(100_000)
def _ballot(answer: str) -> str:
    """Return what an answer is counted by."""
    form = normal_form(answer)
    return answer if form is None else f"={sorted(form.items())}"


def bootstrap(values: np.ndarray, samples: int, seed: int) -> Estimate:
    """Return the mean of per-problem values with its percentile bootstrap interval over problems.

    Samples of one problem are not independent, so whole problems are drawn. Memory is bounded by drawing in blocks.
    """
    if not len(values):
        raise EvaluationError("a benchmark without problems has no score.")
    generator = np.random.default_rng(seed)
    block = max(1, 4_000_000 // len(values))
    means = [
        values[generator.integers(0, len(values), (min(block, samples - start), len(values)))].mean(axis=1)
        for start in range(0, samples, block)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high))


def bootstrap_ratio(parts: np.ndarray, wholes: np.ndarray, samples: int, seed: int) -> Estimate:
    """Return sum(parts) / sum(wholes) with its percentile bootstrap interval over problems."""
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(0, len(parts), len(parts)) for _ in range(samples))
    low, high = np.percentile([parts[places].sum() / wholes[places].sum() for places in drawn], [2.5, 97.5])
    return Estimate(float(parts.sum() / wholes.sum()), float(low), float(high))


def instruction_accuracies(responses: pl.DataFrame, samples: int, seed: int) -> dict[str, Estimate]:
    """Return accuracies of prompts and of instructions, strict and loose; empty where the evidence holds no outcomes.

    Args:
        responses: problem_id and evidence, whose JSON has `strict` and `loose_outcomes`: instruction -> followed.
    """
    counts: dict[str, np.ndarray] = {}  # problem -> prompts, instructions; of each: all, strictly, loosely followed
    for problem, evidence in responses.select("problem_id", "evidence").iter_rows():
        outcomes = json.loads(evidence) if evidence else {}
        if "strict" in outcomes and "loose_outcomes" in outcomes:
            strict, loose = ([*outcomes[name].values()] for name in ("strict", "loose_outcomes"))
            row = np.array([[1, all(strict), all(loose)], [len(strict), sum(strict), sum(loose)]])
            counts[problem] = counts.get(problem, 0) + row
    if not counts:
        return {}
    table = np.stack([counts[problem] for problem in sorted(counts)]).astype(float)
    return {
        f"{unit}_{reading}": bootstrap_ratio(table[:, level, column], table[:, level, 0], samples, seed)
        for level, unit in enumerate(("prompt", "instruction"))
        for column, reading in ((1, "strict"), (2, "loose"))
    }


def per_problem(responses: pl.DataFrame) -> pl.DataFrame:
    """Return one row per problem: n, correct, accuracy and the lists of answers and verdicts, by sample."""
    return (
        responses.sort("problem_id", "sample_index")
        .group_by("problem_id", maintain_order=True)
        .agg(
            pl.len().alias("n"),
            pl.col("passed").sum().alias("correct"),
            pl.col("passed").mean().alias("accuracy"),
            pl.col("answer"),
            pl.col("passed"),
        )
    )


def _shares(responses: pl.DataFrame) -> dict[str, float]:
    total = responses.height
    by_status = dict(responses.group_by("status").len().iter_rows())
    judged = int(responses["evidence"].str.contains('"judged_by"', literal=True).fill_null(False).sum())
    shares = {"judged_share": judged / total} if judged else {}
    return shares | {
        "stop_ratio": by_status.get("ok", 0) / total,
        "truncated_share": by_status.get("truncated", 0) / total,
        "format_share": float(responses["has_format"].fill_null(False).sum()) / total,
        "unparsable_share": float(responses["answer"].is_null().sum()) / total,
        "timeout_share": float((responses["verdict"] == "timeout").sum()) / total,
        "infra_error_share": float((responses["verdict"] == "infra_error").sum()) / total,
        "mean_tokens": float(responses["completion_tokens"].mean() or 0.0),  # type: ignore[arg-type]
    }


def benchmark_scores(
    responses: pl.DataFrame,
    benchmark: str,
    checkpoint: str,
    samples: int,
    bootstrap_samples: int,
    seed: int,
    votes: bool = True,
    problem_ids: Sequence[str] | None = None,
    contaminated: int = 0,
) -> pl.DataFrame:
    """Return the BENCHMARK_SCORE rows of one benchmark and checkpoint.

    A problem that no verifier here can judge is left out and counted (`unverifiable_problems`); where that is all of
    them, there is no score.

    Args:
        responses: BENCHMARK_RESPONSE rows of this benchmark and checkpoint.
        samples: k, the number of samples every problem must have.
        votes: whether answers are short enough to be voted on (maj@k); programs and essays are not.
        problem_ids: all problems of the benchmark; None: those that have a response.
        contaminated: training rows of this checkpoint that match this benchmark; a mark on the table.

    Raises:
        EvaluationError: samples are missing (they are named).
    """
    judged = responses.filter(pl.col("verdict") != "unverifiable")
    unverifiable = responses["problem_id"].n_unique() - judged["problem_id"].n_unique()
    rows: list[dict[str, object]] = [{"metric": "unverifiable_problems", "value": float(unverifiable)}]
    if contaminated:
        rows.append({"metric": "contaminated_training_rows", "value": float(contaminated)})
    problems = per_problem(judged)
    left_out = set(responses["problem_id"]) - set(judged["problem_id"])
    wanted = problems["problem_id"].to_list() if problem_ids is None else sorted(set(problem_ids) - left_out)
    if wanted:
        check_complete(judged, wanted, samples)
        rows += _score_rows(judged, problems, samples, bootstrap_samples, seed, votes)
    frame = pl.DataFrame(rows, schema={name: BENCHMARK_SCORE[name] for name in _ESTIMATED}).with_columns(
        benchmark=pl.lit(benchmark),
        checkpoint=pl.lit(checkpoint),
        problems=pl.lit(problems.height, pl.Int64),
        samples=pl.lit(samples, pl.Int64),
    )
    return conform(frame, BENCHMARK_SCORE)


_ESTIMATED = ("metric", "value", "interval_low", "interval_high")


def _score_rows(
    responses: pl.DataFrame, problems: pl.DataFrame, samples: int, bootstrap_samples: int, seed: int, votes: bool
) -> list[dict[str, object]]:
    pairs = list(zip(problems["n"], problems["correct"], strict=True))
    metrics: dict[str, np.ndarray] = {
        f"avg@{samples}": problems["accuracy"].to_numpy(),
    }
    if samples > 1:
        metrics[f"pass@{samples}"] = np.array([pass_at_k(n, correct, samples) for n, correct in pairs])
    if votes and samples > 2:
        ballots = zip(problems["answer"].to_list(), problems["passed"].to_list(), strict=True)
        metrics[f"maj@{samples}"] = np.array([majority_at_k(answers, passed) for answers, passed in ballots])
    rows: list[dict[str, object]] = []
    for metric, values in metrics.items():
        rows.append(_estimated_row(metric, bootstrap(values, bootstrap_samples, seed)))
    if responses["evidence"].str.contains('"loose_outcomes"', literal=True).any():
        for metric, found in instruction_accuracies(responses, bootstrap_samples, seed).items():
            rows.append(_estimated_row(metric, found))
    by_run = responses.group_by("sample_index").agg(pl.col("passed").mean())["passed"]
    if by_run.len() > 1:
        rows.append({"metric": "standard_deviation_over_runs", "value": by_run.std()})
    return rows + [{"metric": metric, "value": value} for metric, value in _shares(responses).items()]


def _estimated_row(metric: str, found: Estimate) -> dict[str, object]:
    return {"metric": metric, "value": found.value, "interval_low": found.low, "interval_high": found.high}


def paired_difference(ours: pl.DataFrame, base: pl.DataFrame, bootstrap_samples: int, seed: int) -> Estimate:
    """Return the mean difference in accuracy on the same problems, with its bootstrap interval.

    Raises:
        EvaluationError: the two were not asked the same problems.
    """
    left, right = per_problem(ours), per_problem(base)
    if left["problem_id"].to_list() != right["problem_id"].to_list():
        raise EvaluationError("a paired difference needs the same problems on both sides.")
    return bootstrap(left["accuracy"].to_numpy() - right["accuracy"].to_numpy(), bootstrap_samples, seed)
