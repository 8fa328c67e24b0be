"""The columns of every table that an asset writes. A schema maps column to polars type; notes explain them."""

import polars as pl

Schema = dict[str, pl.DataType]

MESSAGES = pl.List(pl.Struct({"role": pl.String(), "content": pl.String()}))

QUERY: Schema = {
    "query_id": pl.String(),
    "source": pl.String(),
    "category": pl.String(),
    "messages": MESSAGES,
    "query_text": pl.String(),
    "reference_answer": pl.String(),
    "options": pl.List(pl.String()),
    "test_cases": pl.String(),
    "constraints": pl.String(),
    "language": pl.String(),
    "license": pl.String(),
    "source_row": pl.Int64(),
    "existing_responses": pl.Int64(),  # how many came with the query; their texts: EXISTING_RESPONSE
    "metadata": pl.String(),
}
EXISTING_RESPONSE: Schema = {
    "query_id": pl.String(),
    "source": pl.String(),
    "teacher": pl.String(),  # key of the recipe's teachers; null: offered to every teacher that reads them
    "pass_index": pl.Int64(),  # from 0; unique per query and teacher
    "text": pl.String(),
    "response_source": pl.String(),  # who made it: a data set or model name
    "released_score": pl.Float64(),  # the verify_score it came with, on its publisher's scale
    "released_perplexity": pl.Float64(),
    "place": pl.String(),  # file:line
}
QUARANTINE: Schema = {
    "source": pl.String(),
    "place": pl.String(),  # file:line, the key of a correction
    "file": pl.String(),
    "line": pl.Int64(),  # or index, from 1; null for a whole file
    "byte_offset": pl.Int64(),  # in the decompressed file; null where there are no lines
    "reason": pl.String(),
    "detail": pl.String(),  # at most 500 characters
    "bytes": pl.Int64(),  # size of the row
    "sha256": pl.String(),  # of the whole row
    "raw": pl.Binary(),  # its first 64 KiB; null where they are not kept
}
QUERY_LABEL: Schema = {
    "query_id": pl.String(),
    "language": pl.String(),
    "characters": pl.Int64(),  # of the normal form
    "words": pl.Int64(),
    "tokens": pl.Int64(),  # null without a tokenizer in the recipe
    "label_category": pl.String(),  # the main one of 13 tags
    "label_tags": pl.List(pl.String()),  # what else fits
    "category_null_reason": pl.String(),
    "label_difficulty": pl.String(),  # "very easy" to "very hard"
    "difficulty_null_reason": pl.String(),
    "label_constraints": pl.String(),  # IFEval constraints read out of the query, as QUERY has them
    "constraints_null_reason": pl.String(),
    "label_model": pl.String(),  # name@revision
    "label_prompts": pl.String(),  # name#hash of each prompt
}
QUERY_SIGNATURE: Schema = {
    "query_id": pl.String(),
    "source": pl.String(),
    "priority": pl.Int64(),
    "has_reference": pl.Boolean(),
    "has_responses": pl.Boolean(),
    "difficulty": pl.Int8(),  # of the label, 1 (very easy) to 5; 0 without one
    "characters": pl.Int64(),
    "exact_hash": pl.UInt64(),
    "number_key": pl.UInt64(),  # hash of the numbers in the text, in order
    "band_keys": pl.List(pl.UInt32()),
}
QUERY_EMBEDDING: Schema = {"query_id": pl.String(), "source": pl.String(), "embedding": pl.List(pl.Float32())}
PROBLEM_EMBEDDING: Schema = {"problem_id": pl.String(), "benchmark": pl.String(), "embedding": pl.List(pl.Float32())}
DUPLICATE_CLUSTER: Schema = {
    "query_id": pl.String(),
    "source": pl.String(),
    "cluster_id": pl.String(),
    "survivor_id": pl.String(),
    "method": pl.String(),
    "similarity": pl.Float64(),
}
BENCHMARK_PROBLEM: Schema = {
    "problem_id": pl.String(),
    "benchmark": pl.String(),
    "category": pl.String(),
    "messages": MESSAGES,
    "problem_text": pl.String(),
    "reference_answer": pl.String(),
    "options": pl.List(pl.String()),
    "test_cases": pl.String(),
    "constraints": pl.String(),
    "license": pl.String(),
    "metadata": pl.String(),
}
CONTAMINATION: Schema = {
    "query_id": pl.String(),
    "source": pl.String(),
    "benchmark": pl.String(),
    "problem_id": pl.String(),
    "method": pl.String(),
    "similarity": pl.Float64(),
    "query_text": pl.String(),
    "problem_text": pl.String(),
}
CONTAMINATION_REPORT: Schema = {
    "benchmark": pl.String(),
    "method": pl.String(),
    "source": pl.String(),
    "matches": pl.Int64(),
    "queries": pl.Int64(),  # distinct ones
    "weakest": pl.Float64(),  # lowest similarity among the matches
}
RESPONSE: Schema = {
    "response_id": pl.String(),
    "query_id": pl.String(),
    "source": pl.String(),
    "category": pl.String(),
    "teacher": pl.String(),
    "pass_index": pl.Int64(),
    "seed": pl.Int64(),
    "think": pl.String(),
    "answer": pl.String(),
    "text": pl.String(),
    "status": pl.String(),
    "finish_reason": pl.String(),
    "prompt_tokens": pl.Int64(),
    "completion_tokens": pl.Int64(),
    "cumulative_logprob": pl.Float64(),
    "engine": pl.String(),
    "model_revision": pl.String(),
    "sampling_fingerprint": pl.String(),
    "started_at": pl.Datetime("us", "UTC"),
    "seconds": pl.Float64(),
    "response_source": pl.String(),  # who made it: the teacher (or its name in the recipe), or where it came from
    "released_score": pl.Float64(),  # of an imported response, as released
    "released_perplexity": pl.Float64(),
}
VERIFICATION: Schema = {
    "response_id": pl.String(),
    "query_id": pl.String(),
    "source": pl.String(),
    "teacher": pl.String(),
    "category": pl.String(),
    "status": pl.String(),
    "verify_score": pl.Float64(),
    "verify_score_normalised": pl.Float64(),
    "cutoff": pl.Float64(),  # what verify_score had to exceed
    "passed": pl.Boolean(),
    "verdict": pl.String(),
    "verifier": pl.String(),
    "rule_verdict": pl.String(),  # what the rule said, where a judge was asked too
    "second_opinion": pl.String(),  # what the judge said: passed, failed, judge_error
    "judge": pl.String(),  # model, revision, prompt and prompt hash
    "judge_score": pl.Float64(),  # 0 to 1
    "released_score": pl.Float64(),  # of an imported response, as released (the science scale may be 0-1)
    "evidence": pl.String(),
}
JUDGE_DISAGREEMENT: Schema = {
    "response_id": pl.String(),
    "query_id": pl.String(),
    "source": pl.String(),
    "teacher": pl.String(),
    "query_text": pl.String(),
    "reference_answer": pl.String(),
    "answer": pl.String(),
    "rule_verdict": pl.String(),
    "judge_verdict": pl.String(),
    "verdict": pl.String(),  # what came out of both
    "verifier": pl.String(),
    "judge": pl.String(),
    "evidence": pl.String(),
}
QUALITY_CHECK: Schema = {
    "response_id": pl.String(),
    "query_id": pl.String(),
    "source": pl.String(),
    "teacher": pl.String(),
    "perplexity": pl.Float64(),
    "max_repeated_ngram": pl.Int64(),
    "max_repeated_word": pl.Int64(),
    "exact_tags": pl.Boolean(),
    "has_think": pl.Boolean(),
    "has_answer": pl.Boolean(),
    "truncated": pl.Boolean(),
    "turns_valid": pl.Boolean(),
    "keep": pl.Boolean(),
    "drop_reason": pl.String(),
}
FREQUENT_NGRAM: Schema = {"ngram_hash": pl.UInt64(), "count": pl.Int64(), "example": pl.String()}
GRADE: Schema = {
    "query_id": pl.String(),
    "source": pl.String(),
    "category": pl.String(),
    "teacher": pl.String(),
    "n": pl.Int64(),
    "n_passed": pl.Int64(),
    "pass_rate": pl.Float64(),
    "mean": pl.Float64(),
    "std": pl.Float64(),
    "cv": pl.Float64(),
    "cv_null_reason": pl.String(),
    "max_score": pl.Float64(),
    "interval_low": pl.Float64(),
    "interval_high": pl.Float64(),
    "level": pl.String(),
    "level_null_reason": pl.String(),
    "easiest_teacher": pl.String(),  # with the highest pass rate on this query; null where fewer than two are graded
    "hardest_teacher": pl.String(),
    "teacher_disagreement": pl.Float64(),  # highest minus lowest pass rate
    "grade_status": pl.String(),
}
DECISION: Schema = {
    "stage": pl.String(),
    "query_id": pl.String(),
    "response_id": pl.String(),
    "source": pl.String(),
    "teacher": pl.String(),
    "category": pl.String(),
    "keep": pl.Boolean(),
    "reason": pl.String(),
    "rank": pl.Int64(),
    "verify_score": pl.Float64(),
    "cv": pl.Float64(),
    "cv_threshold": pl.Float64(),  # what the query's CV had to exceed
    "pass_rate": pl.Float64(),
    "max_score": pl.Float64(),  # of the query; in stage II normalised, as its threshold is
    "threshold": pl.Float64(),  # what max_score had to exceed
    "coin": pl.Float64(),  # drawn for an easy query in stage I: below the category's probability it is kept
    "draw": pl.Float64(),  # drawn for a response: the lowest of its query stays (stage II), or goes first (caps)
}
WHAT_IF: Schema = {
    "population": pl.String(),  # "lake", or "paper figure 8" for the synthetic one
    "category": pl.String(),
    "ddof": pl.Int64(),
    "gate": pl.String(),
    "cv_threshold": pl.Float64(),
    "queries": pl.Int64(),
    "stage1_queries": pl.Int64(),
    "stage1_rows": pl.Int64(),
    "stage1_tokens": pl.Int64(),
    "stage2_rows": pl.Int64(),
    "paper_stage1_rows": pl.Int64(),
    "paper_stage2_rows": pl.Int64(),
    "rule": pl.String(),  # what the threshold amounts to in this category
}
SAMPLING_WHAT_IF: Schema = {
    "plan": pl.String(),  # "stop early", "other teacher first" (both replayed), or "more passes" (estimated)
    "setting": pl.String(),
    "category": pl.String(),
    "queries": pl.Int64(),
    "changed_queries": pl.Float64(),  # with another outcome (never solved, easy, challenging)
    "tokens": pl.Int64(),  # of the training teacher's responses under this plan
    "tokens_now": pl.Int64(),
    "saved_share": pl.Float64(),
    "other_teacher_tokens": pl.Int64(),
    "money_saved": pl.Float64(),  # 0 where the recipe has no prices
    "kept": pl.Int64(),  # responses in stage I
    "kept_now": pl.Int64(),
    "agreement": pl.Float64(),  # kept in both / kept in either
}
DATASET: Schema = {
    "example_id": pl.String(),
    "query_id": pl.String(),
    "source": pl.String(),
    "category": pl.String(),
    "teacher": pl.String(),
    "split": pl.String(),
    "messages": MESSAGES,
    "response": pl.String(),
    "completion_tokens": pl.Int64(),
}
MODEL: Schema = {
    "name": pl.String(),
    "model": pl.String(),
    "origin": pl.String(),
    "revision": pl.String(),
    "sha256": pl.String(),
    "license": pl.String(),
    "path": pl.String(),
}
CHECKPOINT: Schema = {
    "checkpoint": pl.String(),
    "student": pl.String(),
    "stage": pl.String(),
    "path": pl.String(),  # lake path of the checkpoint directory; null for a base model or a teacher
    "model": pl.String(),  # key of the recipe's models, for a base model or a teacher
    "sha256": pl.String(),
    "dataset_version": pl.String(),
    "rows": pl.Int64(),
    "provenance": pl.String(),
}
TRAINING_CURVE: Schema = {
    "run": pl.String(),
    "step": pl.Int64(),
    "epoch": pl.Float64(),
    "loss": pl.Float64(),
    "learning_rate": pl.Float64(),
    "grad_norm": pl.Float64(),
}
TRAINING_STUDY: Schema = {
    "arm": pl.String(),  # a learning rate or a way to select
    "seed": pl.Int64(),
    "rows": pl.Int64(),
    "steps": pl.Int64(),
    "final_loss": pl.Float64(),
    "benchmark": pl.String(),
    "score": pl.Float64(),  # avg@k on the benchmark, after training
    "problems": pl.Int64(),
    "accuracies": pl.List(pl.Struct({"problem_id": pl.String(), "accuracy": pl.Float64()})),  # of verified problems
    "tokens": pl.Int64(),  # tokens trained on
    "curve": pl.List(pl.Struct({"step": pl.Float64(), "loss": pl.Float64()})),
}
STUDY_SUMMARY: Schema = {
    "arm": pl.String(),
    "benchmark": pl.String(),
    "runs": pl.Int64(),
    "final_loss": pl.Float64(),  # mean over seeds
    "score": pl.Float64(),  # mean over seeds
    "score_std_over_seeds": pl.Float64(),  # null for one seed
    "interval_low": pl.Float64(),  # 95 %, bootstrap over seeds and problems
    "interval_high": pl.Float64(),
    "compared_with": pl.String(),  # the arm that the difference is taken from; null for that arm itself
    "difference": pl.Float64(),  # paired: same problems, same seeds
    "difference_low": pl.Float64(),
    "difference_high": pl.Float64(),
    "problems": pl.Int64(),
    "rows": pl.Int64(),
    "tokens": pl.Float64(),  # trained on, mean over seeds
}
BENCHMARK_RESPONSE: Schema = {
    "response_id": pl.String(),
    "problem_id": pl.String(),
    "benchmark": pl.String(),
    "checkpoint": pl.String(),
    "sample_index": pl.Int64(),
    "text": pl.String(),
    "answer": pl.String(),
    "has_format": pl.Boolean(),
    "status": pl.String(),
    "completion_tokens": pl.Int64(),
    "passed": pl.Boolean(),
    "verify_score": pl.Float64(),
    "verdict": pl.String(),
    "verifier": pl.String(),
    "evidence": pl.String(),
    "engine": pl.String(),
    "model_revision": pl.String(),
}
BENCHMARK_SCORE: Schema = {
    "benchmark": pl.String(),
    "checkpoint": pl.String(),
    "metric": pl.String(),  # e.g. "avg@4"
    "value": pl.Float64(),
    "interval_low": pl.Float64(),
    "interval_high": pl.Float64(),
    "problems": pl.Int64(),
    "samples": pl.Int64(),
}
SCOREBOARD: Schema = {
    "benchmark": pl.String(),
    "category": pl.String(),
    "checkpoint": pl.String(),
    "metric": pl.String(),
    "value": pl.Float64(),
    "interval_low": pl.Float64(),
    "interval_high": pl.Float64(),
    "difference_from_base": pl.Float64(),
    "difference_low": pl.Float64(),
    "difference_high": pl.Float64(),
    "problems": pl.Int64(),
    "reported": pl.String(),  # the papers' numbers on this benchmark, percent; other models, prompts and engines
    "contaminated_training_rows": pl.Int64(),  # training rows of this checkpoint that match this benchmark
    "note": pl.String(),
}
TRAINING_CONTAMINATION: Schema = {
    "stage": pl.String(),
    "example_id": pl.String(),
    "query_id": pl.String(),
    "benchmark": pl.String(),
    "problem_id": pl.String(),
    "method": pl.String(),
    "similarity": pl.Float64(),
}
FUNNEL: Schema = {
    "stage": pl.String(),
    "order": pl.Int64(),
    "source": pl.String(),
    "category": pl.String(),
    "rows_in": pl.Int64(),
    "rows_kept": pl.Int64(),
    "reason": pl.String(),  # null on the kept row
    "rows": pl.Int64(),
}
COST: Schema = {
    "teacher": pl.String(),
    "source": pl.String(),
    "category": pl.String(),
    "responses": pl.Int64(),
    "prompt_tokens": pl.Int64(),
    "completion_tokens": pl.Int64(),
    "engine_seconds": pl.Float64(),
    "money": pl.Float64(),
    "accepted_samples": pl.Int64(),
    "prompt_tokens_per_accepted_sample": pl.Float64(),
    "completion_tokens_per_accepted_sample": pl.Float64(),
    "engine_seconds_per_accepted_sample": pl.Float64(),
    "money_per_accepted_sample": pl.Float64(),
}


def conform(frame: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """Return `frame` with exactly the schema's columns, in order, missing ones null; raises on an unknown column."""
    unknown = set(frame.columns) - set(schema)
    if unknown:
        raise ValueError(f"columns not in the schema: {', '.join(sorted(unknown))}")
    return frame.select(
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in schema.items()
    )


def empty(schema: Schema) -> pl.DataFrame:
    """Return a table of the schema without rows."""
    return pl.DataFrame(schema=schema)
