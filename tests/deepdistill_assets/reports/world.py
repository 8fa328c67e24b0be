"""A small lake with every table that the reports read, written by hand."""

import polars as pl

from deepdistill_assets import tables
from deepdistill_assets.recipe import Recipe
from deepdistill_resources.io_managers import DATA_FILE, DROPPED_FILE, partition_directory
from deepdistill_resources.lake import Lake
from deepdistill_resources.stage_result import DROPPED_SCHEMA

SERVED = {"kind": "served", "name": "m", "base_url": "http://127.0.0.1:1/v1", "license": "apache-2.0"}


ON = {"max_score": 1.0, "threshold": 0.99, "cv": 1.41, "cv_threshold": 0.05}  # what a decision was made on


def recipe_of(stage2=True):
    parameters = {"learning_rate": 1e-5, "epochs": 1}
    source = {"category": "math", "license": "CC0-1.0", "reader": "bundled"}
    return Recipe.model_validate(
        {
            "name": "small",
            "title": "Small",
            "description": "For tests.",
            "models": {"m": SERVED},
            "sources": {"sums": source, "words": {**source, "category": "other"}},
            "teachers": {
                "weak": {"model": "m", "completion_price": 1_000_000.0},
                "strong": {"model": "m", "prompt_price": 2_000_000.0},
            },
            "selection": {"stage1": {"teacher": "weak"}, "stage2": {} if stage2 else None},
            "students": {"s": {"model": "m"}},
            "training": {"stage1": parameters, "stage2": parameters if stage2 else None},
            "evaluation": {"benchmarks": {}},
        }
    )


class World:
    """Writes tables of the two sources `sums` and `words`; only `sums` goes all the way."""

    def __init__(self, root):
        self.lake = Lake(root=str(root))

    def put(self, asset, keys, schema, rows, dropped=None):
        directory = partition_directory(asset, keys)
        frame = tables.conform(pl.DataFrame(rows) if rows else pl.DataFrame(schema=schema), schema)
        self.lake.write_table(f"{directory}/{DATA_FILE}", frame)
        if dropped is not None:
            table = pl.DataFrame(dropped, schema=DROPPED_SCHEMA, orient="row")
            self.lake.write_table(f"{directory}/{DROPPED_FILE}", table)

    def fill(self):
        """Write the story of q1 (trained on), q2 (contaminated), q3 (a duplicate), q4 (dropped) and w1 (read only)."""

        def query(name, source="sums"):
            text = f"What is {name}?"
            return {
                "query_id": name,
                "source": source,
                "category": "math",
                "query_text": text,
                "license": "CC0-1.0",
                "reference_answer": "4",
                "source_row": 7,
                "messages": [{"role": "user", "content": text}],
            }

        sums, words = {"partition": "sums"}, {"partition": "words"}
        four = [query(name) for name in ("q1", "q2", "q3", "q4")]
        self.put("raw_queries", sums, tables.QUERY, four, [("f.jsonl:9", "sums", "malformed_json", "line 9: not JSON")])
        self.put("raw_queries", words, tables.QUERY, [query("w1", "words")], [])
        self.put("clean_queries", sums, tables.QUERY, four[:3], [("q4", "sums", "contains_url", "http://x")])
        self.put(
            "duplicate_clusters",
            None,
            tables.DUPLICATE_CLUSTER,
            [
                {
                    "query_id": "q1",
                    "source": "sums",
                    "cluster_id": "c",
                    "survivor_id": "q1",
                    "method": "near",
                    "similarity": 0.91,
                },
                {
                    "query_id": "q3",
                    "source": "sums",
                    "cluster_id": "c",
                    "survivor_id": "q1",
                    "method": "near",
                    "similarity": 0.91,
                },
            ],
        )
        self.put("deduped_queries", sums, tables.QUERY, four[:2], [("q3", "sums", "near_duplicate", "of q1")])
        self.put(
            "contamination",
            sums,
            tables.CONTAMINATION,
            [
                {
                    "query_id": "q2",
                    "source": "sums",
                    "benchmark": "b",
                    "problem_id": "p",
                    "method": "exact",
                    "similarity": 1.0,
                    "query_text": "x",
                    "problem_text": "the same problem",
                },
            ],
        )
        self.put("distillation_queries", sums, tables.QUERY, four[:1], [("q2", "sums", "contaminated", "b p exact")])
        for teacher in ("weak", "strong"):
            both = {"source": "sums", "teacher": teacher}
            ids = [f"{teacher}-{index}" for index in range(3)]
            common = {**both, "query_id": "q1", "category": "math"}
            status = ["ok", "ok", "truncated"]
            self.put(
                "responses",
                both,
                tables.RESPONSE,
                [
                    {
                        **common,
                        "response_id": name,
                        "pass_index": index,
                        "status": status[index],
                        "answer": "4",
                        "prompt_tokens": 10,
                        "completion_tokens": 20,
                        "seconds": 0.5,
                    }
                    for index, name in enumerate(ids)
                ],
            )
            self.put(
                "verified_responses",
                both,
                tables.VERIFICATION,
                [
                    {
                        **common,
                        "response_id": name,
                        "passed": index == 0,
                        "verify_score": float(index == 0),
                        "verdict": "passed" if index == 0 else "failed",
                        "verifier": "math:rational",
                    }
                    for index, name in enumerate(ids)
                ],
            )
            self.put(
                "quality_checks",
                both,
                tables.QUALITY_CHECK,
                [
                    {
                        **both,
                        "query_id": "q1",
                        "response_id": name,
                        "keep": index != 1,
                        "drop_reason": None if index != 1 else "no_think",
                        "perplexity": 3.5,
                    }
                    for index, name in enumerate(ids)
                ],
            )
        self.put(
            "difficulty_grades",
            sums,
            tables.GRADE,
            [
                {
                    "query_id": "q1",
                    "source": "sums",
                    "category": "math",
                    "teacher": teacher,
                    "n": 3,
                    "n_passed": 1,
                    "pass_rate": 1 / 3,
                    "mean": 1 / 3,
                    "cv": 1.41,
                }
                for teacher in ("weak", "strong")
            ],
        )
        decision = {"stage": "stage1", "query_id": "q1", "source": "sums", "teacher": "weak", "category": "math"}
        self.put(
            "stage1_selection",
            None,
            tables.DECISION,
            [
                {**decision, **ON, "response_id": "weak-0", "keep": True, "reason": "cv_above_threshold"},
                {**decision, **ON, "response_id": "weak-1", "keep": False, "reason": "not_passed"},
            ],
        )
        self.put(
            "stage1_dataset",
            None,
            tables.DATASET,
            [
                {"example_id": "e", "query_id": "q1", "source": "sums", "split": "train", "teacher": "weak"},
            ],
        )
        return self
