import pytest
from world import recipe_of

from deepdistill_assets import tables
from deepdistill_assets.recipe import Recipe
from deepdistill_assets.reports.story import find_query, tell
from deepdistill_resources.errors import DeepDistillError


def story_of(world, query_id):
    recipe = recipe_of()
    query = find_query(world.lake, recipe, query_id).row(0, named=True)
    return {chapter.title: chapter for chapter in tell(world.lake, recipe, query)}


def test_a_query_that_went_all_the_way(world):
    story = story_of(world, "q1")
    assert list(story) == [
        "raw_queries",
        "clean_queries",
        "duplicate_clusters",
        "deduped_queries",
        "distillation_queries",
        "responses",
        "difficulty_grades",
        "stage1_selection",
    ]
    assert story["duplicate_clusters"].lines == ["cluster c with 1 other query (near, similarity 0.910); survivor: q1"]
    assert story["responses"].table.height == 6
    assert set(story["responses"].table["quality"]) == {"keep", "no_think"}
    assert story["stage1_selection"].lines == [
        "not kept: not_passed (1 response)",
        "kept: cv_above_threshold (1 response)",
        "best score 1 against 0.99, CV 1.41 against 0.05",
        "1 row in stage1_dataset (train)",
    ]


@pytest.mark.parametrize(
    ("query_id", "stage", "line"),
    [
        ("q4", "clean_queries", "dropped: contains_url (http://x)"),
        ("q3", "deduped_queries", "dropped: near_duplicate (of q1)"),
        ("q2", "distillation_queries", "dropped: contaminated (b p exact)"),
    ],
)
def test_a_dropped_query_ends_where_it_was_dropped(world, query_id, stage, line):
    story = story_of(world, query_id)
    assert list(story)[-1] == stage
    assert story[stage].lines == [line]


def test_only_the_partitions_of_its_own_source_are_read(world):
    before = {title: chapter.lines for title, chapter in story_of(world, "q1").items()}
    for asset in ("clean_queries", "deduped_queries", "distillation_queries", "contamination", "difficulty_grades"):
        world.lake.write_bytes(f"{asset}/partition=words/data.parquet", b"whoever reads this fails")
    for asset in ("responses", "verified_responses", "quality_checks"):
        for teacher in ("weak", "strong"):
            world.lake.write_bytes(f"{asset}/source=words/teacher={teacher}/data.parquet", b"whoever reads this fails")
    assert {title: chapter.lines for title, chapter in story_of(world, "q1").items()} == before


def test_contamination_names_the_benchmark_and_the_problem(world):
    assert story_of(world, "q2")["contamination"].lines == ["matches b p (exact, 1.000): the same problem"]


def test_a_query_is_found_by_the_beginning_of_its_id_or_a_part_of_its_text(world):
    assert find_query(world.lake, recipe_of(), "q").height == 4
    assert find_query(world.lake, recipe_of(), text="IS W1")["query_id"].to_list() == ["w1"]


def test_a_quarantined_row_is_named_with_its_reason(world):
    with pytest.raises(DeepDistillError, match=r"f.jsonl:9 of sums is in quarantine: malformed_json: line 9: not JSON"):
        find_query(world.lake, recipe_of(), "f.jsonl:9")


def test_an_unknown_query_says_where_it_looked(world):
    with pytest.raises(DeepDistillError, match="no raw query matches 'nobody'"):
        find_query(world.lake, recipe_of(), "nobody")


def test_without_a_match_the_nearest_benchmark_problem_is_named(world):
    benchmark = {"category": "math", "license": "MIT", "reader": "bundled", "options": {"file": "x"}}
    recipe = Recipe.model_validate(recipe_of().model_dump() | {"evaluation": {"benchmarks": {"near": benchmark}}})
    vectors = [{"query_id": "q1", "source": "sums", "embedding": [1.0, 0.0]}]
    world.put("query_embeddings", {"partition": "sums"}, tables.QUERY_EMBEDDING, vectors)
    problems = [
        {"problem_id": name, "benchmark": "near", "embedding": at}
        for name, at in (("x", [0.6, 0.8]), ("y", [0.0, 1.0]))
    ]
    world.put("problem_embeddings", {"partition": "near"}, tables.PROBLEM_EMBEDDING, problems)
    texts = [{"problem_id": "x", "benchmark": "near", "problem_text": "What is w1?"}]
    world.put("benchmark_problems", {"partition": "near"}, tables.BENCHMARK_PROBLEM, texts)
    query = find_query(world.lake, recipe, "q1").row(0, named=True)
    story = {chapter.title: chapter.lines for chapter in tell(world.lake, recipe, query)}
    assert story["contamination"] == ["no match; nearest is a problem of near (semantic, 0.600): What is w1?"]


def test_checkpoints_trained_on_the_query_are_named(world):
    for stage in ("stage1", "stage2"):
        world.put(
            f"{stage}_checkpoint", {"partition": "s"}, tables.CHECKPOINT, [{"checkpoint": f"s--{stage}", "rows": 5}]
        )
    assert story_of(world, "q1")["checkpoints"].lines == [
        "s--stage1: 1 of its 5 rows",
        "s--stage2: through its stage I checkpoint",
    ]
    assert "checkpoints" not in story_of(world, "q2")
