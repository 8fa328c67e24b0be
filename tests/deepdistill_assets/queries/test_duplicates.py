import itertools
import random

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepdistill_assets.queries import candidates
from deepdistill_assets.queries.candidates import CandidateSearch
from deepdistill_assets.queries.clusters import UNLIKE, Verdicts, clustered
from deepdistill_assets.queries.duplicates import duplicate_clusters, policy_order, without_duplicates
from deepdistill_assets.queries.minhash import jaccards, number_keys, query_signatures
from deepdistill_assets.queries.text_buffer import TextBuffer
from deepdistill_assets.queries.text_normalisation import normalised
from deepdistill_assets.recipe import Deduplication
from deepdistill_assets.tables import DUPLICATE_CLUSTER, QUERY, QUERY_EMBEDDING, QUERY_SIGNATURE, conform, empty
from deepdistill_resources.compute import LocalCompute

SETTINGS = Deduplication()
NO_VECTORS = empty(QUERY_EMBEDDING).lazy()
STORY = (
    "A farmer walks to the market every morning with a basket full of eggs, sells most of them to the baker and to "
    "the old school teacher, and carries the rest back home where the children wait. How many eggs come back "
    "if {} were in the basket and {} were sold before noon, while nobody broke any on the long way?"
)


def queries_of(texts, source="s", answers=None, ids=None):
    return conform(
        pl.DataFrame(
            {
                "query_id": ids or [f"q{index:04}" for index in range(len(texts))],
                "source": [source] * len(texts),
                "query_text": list(texts),
                "reference_answer": answers or [None] * len(texts),
            },
            schema_overrides={"reference_answer": pl.String},
        ),
        QUERY,
    )


def signatures_of(queries, priority=100, chosen=SETTINGS):
    return pl.concat([empty(QUERY_SIGNATURE), *query_signatures(queries.lazy(), priority, chosen)])


def clusters_of(*parts, priorities=(), vectors=NO_VECTORS, chosen=SETTINGS):
    ranks = priorities or [100] * len(parts)
    tables = [signatures_of(part, rank, chosen) for part, rank in zip(parts, ranks, strict=True)]
    return duplicate_clusters(pl.concat(tables).lazy(), pl.concat(parts).lazy(), vectors, chosen)


def removed(clusters):
    return {row["query_id"]: row for row in clusters.filter(pl.col("method") != "survivor").iter_rows(named=True)}


def test_planted_pairs_have_known_verdicts():
    texts = [
        STORY.format(48, 30),  # 0
        "  " + STORY.format(48, 30).upper().replace(" ", "\n"),  # 1: exact
        STORY.format(48, 30).replace("farmer", "smith"),  # 2: near
        STORY.format(48, 31),  # 3: another number, its own question
        STORY.format("forty", "thirty"),  # 4: numbers as words, its own question
        "What is 2+3?",  # 5
        "What is 2+5?",  # 6
        "what is  2+3?",  # 7: exact
        "What is 2*3?",  # 8
    ]
    gone = removed(clusters_of(queries_of(texts)))
    verdicts = {name: (row["method"], row["survivor_id"]) for name, row in gone.items()}
    assert verdicts == {"q0001": ("exact", "q0000"), "q0002": ("near", "q0000"), "q0007": ("exact", "q0005")}
    assert 0.8 <= gone["q0002"]["similarity"] < 1


def test_chinese_and_very_short_queries_are_compared_by_characters():
    story = "小明今天早上去市场买了一篮子新鲜的水果准备送给住在城里的奶奶他一共花了多少钱呢请你算一算并写出答案"
    texts = [
        story,
        story.replace("新鲜", "新奇"),
        story + "3",
        "求函数的最大值",
        "求函数的最小值",
        "abc",
        "abc!",
        "Abc",
    ]
    gone = removed(clusters_of(queries_of(texts)))
    assert {name: row["method"] for name, row in gone.items()} == {"q0001": "near", "q0007": "exact"}


def test_the_survivor_has_a_reference_then_priority_then_length_then_id():
    same = "Name the largest planet."
    one = queries_of([same, same], "low", ids=["b", "a"])
    two = queries_of([same], "high", ids=["c"])
    assert set(clusters_of(one, two, priorities=[100, 10])["survivor_id"]) == {"c"}
    assert set(clusters_of(one, two, priorities=[10, 100])["survivor_id"]) == {"a"}
    story = STORY.format(48, 30)
    longer = clusters_of(queries_of([story, story.replace("old", "very old")]))
    assert set(longer["survivor_id"]) == {"q0001"}
    answered = queries_of([same], "last", answers=["Jupiter"], ids=["z"])
    assert set(clusters_of(one, two, answered, priorities=[100, 10, 900])["survivor_id"]) == {"z"}


def test_the_same_query_in_two_sources_leaves_one_of_them():
    one, two = queries_of(["What is 7+8?"], "one"), queries_of(["What is 7+8?"], "two")
    clusters = clusters_of(one, two)
    kept = [without_duplicates(part.lazy(), clusters.lazy()).rows_kept for part in (one, two)]
    assert kept == [1, 0]
    dropped = without_duplicates(two.lazy(), clusters.lazy()).dropped.row(0, named=True)
    assert dropped["reason"] == "duplicate_exact"
    assert dropped["detail"] == "survivor q0000 of one, similarity 1.0"


def generated(count, seed):
    """Texts with planted copies in which 0 to 25 % of the words are replaced."""
    random_ = random.Random(seed)
    words = [f"word{letter}{other}" for letter in "abcdefghijklmnopq" for other in "abcdefghijklmnopq"]
    texts = []
    for _ in range(count):
        if texts and random_.random() < 0.6:
            share, original = random_.uniform(0, 0.12), random_.choice(texts)
            new = [random_.choice(words) if random_.random() < share else word for word in original.split()]
        else:
            new = random_.choices(words, k=random_.randint(10, 60))
        if random_.random() < 0.1:
            new[random_.randrange(len(new))] = str(random_.randint(1, 9))
        texts.append(" ".join(new))
    return texts


def exact_pairs(texts):
    """All pairs at Jaccard >= threshold with equal numbers, by brute force."""
    buffer = TextBuffer.of(normalised(pl.Series(texts)))
    left, right = np.triu_indices(len(texts), 1)
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    numbers, _ = number_keys(buffer)
    found = (jaccards(buffer, left, right, 3) >= 0.8) & (numbers[left] == numbers[right])
    return set(zip(left[found].tolist(), right[found].tolist(), strict=True))


def test_recall_and_precision_against_exact_jaccard():
    texts = generated(1500, seed=3)
    pairs = exact_pairs(texts)
    assert len(pairs) > 500
    queries = queries_of(texts)
    signatures = signatures_of(queries)
    clusters = duplicate_clusters(signatures.lazy(), queries.lazy(), NO_VECTORS, SETTINGS)
    gone = {int(name[1:]): int(row["survivor_id"][1:]) for name, row in removed(clusters).items()}
    # Precision: every removal is itself a true pair with its survivor.
    assert all((min(pair), max(pair)) in pairs for pair in gone.items())
    # Recall: true pairs meet in a band, and no two of them both survive.
    keys = np.array(signatures["band_keys"].to_list(), np.uint64)
    met = [pair for pair in pairs if (keys[pair[0]] == keys[pair[1]]).any()]
    assert len(met) >= 0.999 * len(pairs)
    missed = [pair for pair in pairs if pair[0] not in gone and pair[1] not in gone]
    assert len(missed) <= 0.001 * len(pairs)


TEMPLATES = (
    "A train leaves the old station at {} and meets another one after {} hours on the long way to the sea",
    "Write a function that returns the sum of the first {} even numbers and prints {} of them on the screen",
    "小明今天早上去市场买了{}篮子新鲜的水果准备送给住在城里的奶奶他一共花了{}元钱请你写出答案",
    "Name {} of {}",
)
QUERIES = st.lists(
    st.tuples(
        st.sampled_from(TEMPLATES),
        st.sampled_from(["7", "12", "red"]),
        st.sampled_from(["7", "green", "very green"]),
        st.sampled_from(["one", "two", "three"]),
        st.sampled_from([None, "4"]),
    ),
    max_size=14,
)


def signed(rows, chosen=SETTINGS):
    """Signatures and queries of (template, word, word, source, answer).

    Priorities go by source, ids often tie in length.
    """
    tables, parts = [], []
    for rank, source in enumerate(("one", "two", "three", "new")):
        own = [(f"{source}{number}", *row) for number, row in enumerate(rows) if row[3] == source]
        texts = [template.format(left, right) for _, template, left, right, *_ in own]
        parts.append(queries_of(texts, source, [row[-1] for row in own], [row[0] for row in own]))
        tables.append(signatures_of(parts[-1], 10 * (rank // 2), chosen))
    return pl.concat(tables).lazy(), pl.concat(parts).lazy()


@settings(max_examples=25, deadline=None)
@given(QUERIES, st.integers(0, 100))
def test_the_order_of_queries_and_sources_changes_nothing(rows, seed):
    tables = signed(rows)
    expected = duplicate_clusters(*tables, NO_VECTORS, SETTINGS)
    shuffled = [table.collect().sample(fraction=1.0, shuffle=True, seed=seed).lazy() for table in tables]
    assert duplicate_clusters(*shuffled, NO_VECTORS, SETTINGS).equals(expected)


@settings(max_examples=25, deadline=None)
@given(QUERIES, st.lists(st.tuples(st.sampled_from(["7", "12", "red"]), st.sampled_from(["5", "9"])), max_size=5))
def test_a_new_source_changes_only_the_clusters_that_it_joins(rows, added):
    before = duplicate_clusters(*signed(rows), NO_VECTORS, SETTINGS)
    more = [*rows, *((TEMPLATES[1], left, right, "new", "4") for left, right in added)]
    after = duplicate_clusters(*signed(more), NO_VECTORS, SETTINGS)
    joined = set(after.filter(pl.col("source") == "new")["cluster_id"])
    untouched = after.filter(~pl.col("cluster_id").is_in(joined))
    members = after.filter(pl.col("cluster_id").is_in(joined))["query_id"].implode()
    touched = set(before.filter(pl.col("query_id").is_in(members))["cluster_id"])
    assert untouched.equals(before.filter(~pl.col("cluster_id").is_in(touched)))


class Divided(LocalCompute):
    """This process, as if there were so many workers."""

    count: int

    def workers(self, *_):
        return self.count


@settings(max_examples=25, deadline=None)
@given(QUERIES, st.integers(2, 30), st.integers(1, 400))
def test_into_how_many_parts_the_search_is_divided_changes_nothing(rows, workers, held):
    tables = signed(rows)
    expected = duplicate_clusters(*tables, NO_VECTORS, SETTINGS)
    spread = CandidateSearch(Divided(count=workers))
    assert duplicate_clusters(*tables, NO_VECTORS, SETTINGS, spread).equals(expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "HELD_BYTES", held)
        assert duplicate_clusters(*tables, NO_VECTORS, SETTINGS).equals(expected)


def test_bands_are_divided_among_workers_and_by_what_one_may_hold(monkeypatch):
    signatures = signatures_of(queries_of(["one", "two"])).lazy()

    def sizes(workers):
        return [len(group) for group in CandidateSearch(Divided(count=workers))._groups(signatures, 2)]

    assert [sizes(count) for count in (1, 7, 21, 50)] == [[6, 6, 6, 3], [3] * 7, [1] * 21, [1] * 21]
    monkeypatch.setattr(candidates, "HELD_BYTES", 5 * 4 * 2)
    assert sizes(1) == [5, 5, 5, 5, 1]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(-2, 2), st.integers(0, 2), st.sampled_from(["", "é", "éééé", "a", "a\0"])),
        max_size=12,
    )
)
def test_the_survivor_policy_is_a_plain_sort(rows):
    long = "0123456"
    keys = pl.DataFrame(
        [
            (f"{long}{name}{place % 3}", f"s{place}", answered, rank % 2 == 0, rank % 6, rank, size)
            for place, (answered, rank, size, name) in enumerate(rows)
        ],
        schema={
            "query_id": pl.String,
            "source": pl.String,
            "has_reference": pl.Boolean,
            "has_responses": pl.Boolean,
            "difficulty": pl.Int8,
            "priority": pl.Int64,
            "characters": pl.Int64,
        },
        orient="row",
    )
    policy = ["has_reference", "priority", "characters", "query_id", "source"]
    expected = keys.with_row_index().sort(policy, descending=[True, False, True, False, False])["index"]
    assert policy_order(keys, Deduplication().survivor).tolist() == expected.to_list()
    policy = ["has_reference", "has_responses", "difficulty", "characters", "priority", "query_id", "source"]
    order = ("reference", "responses", "difficulty", "length", "priority")
    expected = keys.with_row_index().sort(policy, descending=[True] * 4 + [False] * 3)["index"]
    assert policy_order(keys, order).tolist() == expected.to_list()


def test_stored_tables_give_what_tables_in_memory_give(tmp_path, monkeypatch):
    queries = queries_of(generated(900, seed=11))
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(900, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = Deduplication(semantic_threshold=0.99)
    signatures, embeddings = signatures_of(queries, 100, chosen), vectors_of(queries, vectors).collect()
    expected = duplicate_clusters(signatures.lazy(), queries.lazy(), embeddings.lazy(), chosen)
    assert {"near", "semantic", "exact"} <= set(expected["method"])
    signatures.write_parquet(tmp_path / "signatures.parquet", row_group_size=50)
    queries.write_parquet(tmp_path / "queries.parquet", row_group_size=60)
    embeddings.sample(fraction=1.0, shuffle=True).write_parquet(tmp_path / "embeddings.parquet", row_group_size=70)
    for name in ("duplicates.BLOCK", "candidates.BATCH", "candidates.VECTOR_BLOCK", "vectors.BLOCK"):
        monkeypatch.setattr(f"deepdistill_assets.queries.{name}", 64)
    stored = [pl.scan_parquet(tmp_path / f"{name}.parquet") for name in ("signatures", "queries", "embeddings")]
    assert duplicate_clusters(*stored, chosen).equals(expected)


def test_an_unrelated_source_changes_no_cluster_of_the_others():
    one = queries_of(generated(300, seed=7), "one")
    texts = [f"nothing like it, item {index}" for index in range(50)]
    other = queries_of(texts, "other", ids=[f"z{index}" for index in range(50)])
    assert clusters_of(one, other).filter(pl.col("source") == "one").equals(clusters_of(one))


def vectors_of(queries, vectors):
    return (
        queries.lazy()
        .select("query_id", "source")
        .with_columns(embedding=pl.Series(np.array(vectors, np.float32)).cast(pl.List(pl.Float32)))
    )


def test_semantic_duplicates_need_the_cosine_and_equal_numbers():
    texts = ["Say hello to the moon", "Greet the earth's satellite", "Add 2 and 3", "Sum up 2 and 5", "Compute 2 and 3"]
    queries = queries_of(texts)
    angle = np.deg2rad([0, 10, 90, 91, 92])
    vectors = vectors_of(queries, np.stack([np.cos(angle), np.sin(angle)], axis=1))
    gone = removed(clusters_of(queries, vectors=vectors, chosen=Deduplication(semantic_threshold=0.9)))
    methods = {name: (row["method"], row["survivor_id"]) for name, row in gone.items()}
    assert methods == {"q0000": ("semantic", "q0001"), "q0002": ("semantic", "q0004")}
    assert gone["q0000"]["similarity"] == pytest.approx(np.cos(np.deg2rad(10)), abs=1e-6)
    assert not removed(clusters_of(queries, vectors=vectors))  # threshold off


def test_a_chain_of_neighbours_is_no_cluster():
    """0, 20, 40 and 60 degrees: neighbours are alike (cosine > 0.9), the ends are not."""
    queries = queries_of(["alpha", "bravo", "delta", "gamma"])
    angle = np.deg2rad([0, 20, 40, 60])
    vectors = vectors_of(queries, np.stack([np.cos(angle), np.sin(angle)], axis=1))
    clusters = clusters_of(queries, vectors=vectors, chosen=Deduplication(semantic_threshold=0.9))
    assert {name: row["survivor_id"] for name, row in removed(clusters).items()} == {"q0001": "q0000", "q0003": "q0002"}


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.data())
def test_clustering_keeps_its_promises_on_any_graph(count, data):
    possible = list(itertools.combinations(range(count), 2))
    edges = set(data.draw(st.lists(st.sampled_from(possible), unique=True)))

    def verdicts(left, right):
        alike = [pair in edges for pair in zip(left.tolist(), right.tolist(), strict=True)]
        return Verdicts(np.where(alike, 2, UNLIKE), np.ones(len(left)))

    survivors, _ = clustered(count, np.array(sorted(edges), np.int64).reshape(-1, 2), verdicts)
    for row, head in enumerate(survivors.tolist()):
        assert head <= row
        assert survivors[head] == head
        assert head == row or (head, row) in edges
    # No two that stay are alike.
    for left, right in edges:
        both_stay = survivors[left] == left and survivors[right] == right
        assert not both_stay


def test_equal_hashes_of_different_texts_are_no_duplicates():
    queries = queries_of(["one thing", "another thing"])
    collided = signatures_of(queries).with_columns(exact_hash=pl.lit(1, pl.UInt64))
    assert duplicate_clusters(collided.lazy(), queries.lazy(), NO_VECTORS, SETTINGS).is_empty()


@pytest.mark.parametrize(
    ("one", "two", "named"),
    [
        (["a", "b", "c"], ["d", "e"], "one"),  # a new query
        (["a"], ["d", "e"], "one"),  # one that went
        (["b", "a"], ["d", "e"], "one"),
        (["a", "b"], ["d", "x"], "two"),
        (["a", "b"], ["d"], "two"),
        (["a", "b"], ["d", "e", "f"], "two"),
        (["a", "b"], [], "two"),
    ],
)
@pytest.mark.parametrize("block", [1, 2, 100])
def test_signatures_of_other_queries_are_refused(one, two, named, block, monkeypatch):
    def tables(*ids):
        return [queries_of(names, source, ids=names) for names, source in zip(ids, ("one", "two"), strict=True)]

    signatures = pl.concat([signatures_of(table) for table in tables(["a", "b"], ["d", "e"])]).lazy()
    monkeypatch.setattr("deepdistill_assets.queries.duplicates.BLOCK", block)
    with pytest.raises(ValueError, match=f"beginning with source '{named}'"):
        duplicate_clusters(signatures, pl.concat(tables(one, two)).lazy(), NO_VECTORS, SETTINGS)


def test_survivors_of_a_large_source_are_written_block_by_block(monkeypatch):
    monkeypatch.setattr("deepdistill_assets.queries.duplicates.BLOCK", 64)
    queries = queries_of(generated(500, seed=5))
    clusters = clusters_of(queries)
    result = without_duplicates(queries.lazy(), clusters.lazy())
    gone = removed(clusters)
    assert len(result.parts) == 8
    assert result.kept.collect().equals(queries.filter(~pl.col("query_id").is_in(list(gone))))
    assert result.dropped["row_id"].to_list() == sorted(gone)
    nothing = without_duplicates(queries.clear().lazy(), clusters.lazy())
    assert nothing.rows_in == 0
    assert dict(nothing.kept.collect_schema()) == QUERY


def test_nothing_in_nothing_out():
    assert dict(clusters_of(queries_of([])).schema) == DUPLICATE_CLUSTER
    assert clusters_of(queries_of(["only one"])).is_empty()


def test_a_query_without_a_vector_is_named():
    queries = queries_of(["one thing", "another thing"])
    vectors = vectors_of(queries.head(1), [[1.0, 0.0]])
    with pytest.raises(ValueError, match=r"1 rows have no embedding.*q0001"):
        clusters_of(queries, vectors=vectors, chosen=Deduplication(semantic_threshold=0.9))
