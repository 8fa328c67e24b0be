import math
from functools import partial

import polars as pl
import pytest

from deepdistill_assets.quality.checks import QualityError, check_structure, with_perplexity
from deepdistill_assets.quality.ngrams import frequent_ngrams
from deepdistill_assets.quality.perplexity import (
    CHUNK_TEXTS,
    MEASURED,
    PerplexityWorker,
    measured,
    text_key,
    unmeasured,
)
from deepdistill_assets.quality.structure import query_facts
from deepdistill_assets.recipe import Quality
from deepdistill_assets.tables import FREQUENT_NGRAM, MESSAGES, empty
from deepdistill_resources.chunk_store import ChunkStore
from deepdistill_resources.compute import LocalCompute
from deepdistill_resources.lake import Lake


def user(text="q"):
    return {"role": "user", "content": text}


def assistant(text="a"):
    return {"role": "assistant", "content": text}


def facts(**queries):
    frame = pl.DataFrame(
        {"query_id": list(queries), "messages": list(queries.values())}, schema_overrides={"messages": MESSAGES}
    )
    return query_facts(frame)


def responses(*rows):
    default = {"query_id": "q", "source": "s", "teacher": "t", "think": "so", "answer": "4", "status": "ok"}
    default |= {"text": "<think>so</think><answer>4</answer>", "finish_reason": "stop"}
    return pl.DataFrame(
        [default | {"response_id": f"r{index}"} | row for index, row in enumerate(rows)], infer_schema_length=None
    )


def check(*rows, perplexities=None, frequent=None, query=None, **options):
    chosen = Quality(**{"ngram_scope": "response"} | options)
    table = empty(FREQUENT_NGRAM) if frequent is None else frequent
    known = facts(q=[user()] if query is None else query)
    checked, texts = check_structure(responses(*rows), known, table, chosen)
    return with_perplexity(checked, perplexities(texts) if perplexities and texts else None, chosen)


def reasons(*rows, **options):
    return check(*rows, **options)["drop_reason"].to_list()


def test_a_clean_response_is_kept():
    row = check({}).row(0, named=True)
    assert (row["keep"], row["drop_reason"], row["truncated"], row["turns_valid"]) == (True, None, False, True)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"status": "truncated"}, "truncated"),
        ({"finish_reason": "length"}, "truncated"),
        ({"text": "<think>and then", "answer": None}, "truncated"),
        ({"status": "empty", "text": "", "think": None, "answer": None}, "status_empty"),
        ({"status": "refused"}, "status_refused"),
        ({"think": None}, "missing_think"),
        ({"think": " \n"}, "missing_think"),
        ({"answer": ""}, "missing_answer"),
        ({"text": "again " * 60}, "repeated_ngram"),
    ],
)
def test_each_drop_has_its_reason_and_no_row_is_lost(row, reason):
    table = check({}, row, {})
    assert table["drop_reason"].to_list() == [None, reason, None]
    assert table["keep"].to_list() == [True, False, True]
    assert table["response_id"].to_list() == ["r0", "r1", "r2"]


def test_parts_that_a_recipe_does_not_require():
    assert reasons({"think": None}, require_think=False) == [None]
    assert reasons({"answer": None}, require_answer=False) == [None]
    assert reasons({"status": "truncated"}, drop_truncated=False) == [None]


@pytest.mark.parametrize(
    ("query", "valid"),
    [
        ([user()], True),
        ([{"role": "system", "content": "s"}, user()], True),
        ([user(), assistant(), user()], True),
        ([user(), assistant()], False),
        ([user(), user(), user()], False),
        ([assistant(), user(), assistant()], False),
        ([], False),
    ],
)
def test_turns_alternate_and_end_with_the_assistant(query, valid):
    assert reasons({}, query=query) == [None if valid else "invalid_turns"]


def test_perplexity_is_of_query_and_response_and_only_of_what_is_kept_so_far():
    asked = []

    def perplexities(texts):
        asked.extend(texts)
        return [20.0, 20.5, math.nan, math.inf, None]

    table = check({}, {"think": None}, {}, {}, {}, {}, perplexities=perplexities, query=[user("2+2?")])
    assert asked == ["2+2?\n<think>so</think><answer>4</answer>"] * 5
    assert table["drop_reason"].to_list() == [None, "missing_think", "perplexity", "perplexity", "perplexity", None]
    assert table["perplexity"][1] is None


def test_perplexity_without_a_threshold_is_only_reported():
    assert reasons({}, perplexities=lambda texts: [99.0], max_perplexity=None) == [None]


def test_a_string_frequent_only_over_two_partitions_is_found():
    boilerplate = " ".join(f"word{index}" for index in range(20))
    parts = [pl.Series([boilerplate] * 11), pl.Series([f"{boilerplate} end"] * 10)]
    for part in parts:
        assert frequent_ngrams(lambda part=part: [part], 20, 20, 1 << 16).is_empty()
    frequent = frequent_ngrams(lambda: parts, 20, 20, 1 << 16)
    assert frequent["count"].to_list() == [21]
    table = check({"text": boilerplate}, {"text": "something else"}, frequent=frequent, ngram_scope="corpus")
    assert table["drop_reason"].to_list() == ["repeated_ngram", None]
    assert table["max_repeated_ngram"].to_list() == [21, 0]


def test_a_response_to_an_unknown_query_is_refused():
    with pytest.raises(QualityError, match="r0"):
        check({"query_id": "gone"})


class Numbers:
    """A scoring model whose perplexity of a number is that number; it dies when it is told to."""

    def __init__(self, die_after=math.inf):
        self.asked, self.die_after = [], die_after

    def perplexities(self, texts):
        if len(self.asked) >= self.die_after:
            raise KeyboardInterrupt
        self.asked.extend(texts)
        return [float(text) for text in texts]

    def close(self):
        pass


def measure(store, session, batches):
    """Measure in this process what the store does not know."""
    worker = partial(PerplexityWorker, session, store)
    for outcome in LocalCompute().map_batches(unmeasured(store, batches), worker, name="test"):
        outcome.value()


def test_a_killed_run_keeps_the_chunks_it_measured(tmp_path):
    store = ChunkStore(Lake(root=str(tmp_path)), "p", "text_sha256", MEASURED, {"model_revision": "r"})
    texts = [str(number) for number in range(2, 2 + CHUNK_TEXTS + 10)]
    first, second = Numbers(die_after=CHUNK_TEXTS), Numbers()
    with pytest.raises(KeyboardInterrupt):
        measure(store, first, [texts])
    measure(store, second, [[*texts, texts[0]], texts[:3]])
    assert len(first.asked) == CHUNK_TEXTS and len(second.asked) == 10
    assert measured(store, [text_key(text) for text in texts]) == {text_key(text): float(text) for text in texts}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>a</think><answer>b</answer>", None),
        (" <think>a\nb</think>\n<answer>\nb\n</answer>\n", None),
        ("<think>a</think>b", "tag_format"),
        ("a</think><answer>b</answer>", "tag_format"),
        ("<think>a</think>so <answer>b</answer>", "tag_format"),
        ("<think>a</think><answer>b</answer> done", "tag_format"),
        ("<think>a</think><answer>b</answer><answer>c</answer>", "tag_format"),
    ],
)
def test_a_recipe_may_want_the_tags_exactly(text, reason):
    assert reasons({"text": text}, exact_tags=True) == [reason]
    assert reasons({"text": text}) == [None]


@pytest.mark.parametrize(("times", "reason"), [(5, None), (6, "repeated_word")])
def test_a_word_many_times_in_a_row_drops(times, reason):
    text = f"<think>so {'no ' * times}yes no</think><answer>4</answer>"
    assert reasons({"text": text}, max_repeated_word=5) == [reason]
