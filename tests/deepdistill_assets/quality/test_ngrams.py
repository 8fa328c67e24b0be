from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepdistill_assets.quality.ngrams import (
    frequent_ngrams,
    highest_corpus_counts,
    max_repeats,
    max_token_repeats,
    ngrams_of,
    sketch_slots,
)

TEXTS = st.lists(st.text(alphabet=st.sampled_from("ab \n\t\r\x0b\x0cé中\xa0"), max_size=60), max_size=6)


def corpus(texts, size, limit, slots=1 << 16, parts=1):
    series = pl.Series(texts, dtype=pl.String)
    cut = max(1, -(-len(texts) // parts))
    return frequent_ngrams(
        lambda: [series[start : start + cut] for start in range(0, len(texts), cut)], size, limit, slots
    )


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(1, 4))
def test_repeats_within_a_response_equal_a_counter_of_tuples(texts, size):
    expected = [max(ngrams_of(text, size).values(), default=0) for text in texts]
    assert max_repeats(pl.Series(texts, dtype=pl.String), size).to_list() == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 2**32 - 1]), max_size=40), max_size=6), st.integers(1, 4))
def test_repeats_of_token_ids_equal_a_counter_of_tuples(responses, size):
    grams = [Counter(tuple(ids[at : at + size]) for at in range(len(ids) - size + 1)) for ids in responses]
    column = pl.Series(responses, dtype=pl.List(pl.UInt32))
    assert max_token_repeats(column, size).to_list() == [max(each.values(), default=0) for each in grams]


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 4, 1 << 16]), st.integers(1, 4))
def test_corpus_counts_equal_a_counter_whatever_the_sketch_and_the_cuts(texts, size, limit, slots, parts):
    expected = sum((ngrams_of(text, size) for text in texts), Counter())
    frequent = {ngram: count for ngram, count in expected.items() if count > limit}
    found = corpus(texts, size, limit, slots, parts)
    assert sorted(found["count"].to_list()) == sorted(frequent.values())
    highest = [max((frequent[n] for n in ngrams_of(text, size) if n in frequent), default=0) for text in texts]
    assert highest_corpus_counts(pl.Series(texts, dtype=pl.String), found, size).to_list() == highest


def test_the_example_is_the_ngram():
    found = corpus(["x\n  y   z w", "é x y z w", "x y z"], 3, 2)
    assert found["example"].to_list() == ["x y z"]


def test_indentation_makes_no_empty_words():
    code = "def f():\n" + "\n".join(" " * 40 + f"line{index}" for index in range(60))
    assert max_repeats(pl.Series([code]), 20).to_list() == [1]


def test_a_loop_counts_its_overlapping_occurrences():
    loop = "wait let me check " * 30
    assert max_repeats(pl.Series([loop, loop.strip() + "\n"]), 20).to_list() == [26, 26]


def test_short_empty_and_missing_texts_have_no_ngrams():
    assert max_repeats(pl.Series(["a b", "", None, " \n "], dtype=pl.String), 20).to_list() == [0, 0, 0, 0]
    assert max_repeats(pl.Series([], dtype=pl.String), 20).to_list() == []
    assert corpus([], 20, 20).is_empty()


def test_slices_of_a_column_count_only_their_own_texts():
    column = pl.Series(["a a a", "b b", "a a a a"])
    assert max_repeats(column[1:], 1).to_list() == [2, 4]


def test_limits_beyond_the_sketch_are_refused():
    with pytest.raises(ValueError, match="65000"):
        corpus(["a"], 1, 70_000)


def test_sketch_size_follows_the_corpus_within_bounds():
    assert [sketch_slots(words) for words in (0, 1_000_000, 10**12)] == [1 << 16, 1 << 20, 1 << 30]
