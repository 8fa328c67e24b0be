"""Duplicates across all sources: exact, near (MinHash, verified) and semantic, as clusters with one survivor each.

Rows are first put in the order of the survivor policy, so that a row's rank says who survives and the order in which
queries arrive changes nothing. Of every query only ids, hashes and band keys are held; texts are read from the table
for those that may be duplicates.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import polars as pl

from deepdistill_assets.queries.candidates import CandidateSearch, packed, semantic_candidates, unpacked
from deepdistill_assets.queries.clusters import UNLIKE, Verdicts, clustered
from deepdistill_assets.queries.minhash import jaccards
from deepdistill_assets.queries.text_buffer import TextBuffer
from deepdistill_assets.queries.text_normalisation import normalised_buffer
from deepdistill_assets.queries.vectors import aligned_vectors
from deepdistill_assets.recipe import Deduplication
from deepdistill_assets.tables import DUPLICATE_CLUSTER, QUERY, conform
from deepdistill_resources.memory import give_back_freed_memory
from deepdistill_resources.stage_result import DROPPED_SCHEMA, StreamedResult, TableParts

SURVIVOR, EXACT, NEAR, SEMANTIC = "survivor", "exact", "near", "semantic"
METHODS = (SURVIVOR, EXACT, NEAR, SEMANTIC)  # a verdict's code is its index here
POLICY = ["has_reference", "has_responses", "difficulty", "priority", "characters"]
KEYS = ["query_id", "source", *POLICY, "exact_hash", "number_key"]
_BITS = {"reference": 1, "responses": 1, "difficulty": 3, "priority": 20, "length": 36}  # 61 of 64
BLOCK = 16_384  # rows read at a time
PAIR_BLOCK = 2048  # pairs of vectors compared at a time


class Likeness:
    """Decides whether two texts are near or semantic duplicates, always on the texts or vectors themselves.

    Args:
        buffer: normalised texts.
        places: of each text in the buffer.
        number_keys: hash of the number sequence of each text.
        vectors: their unit vectors, float32 (texts, dimension), or None where semantic duplicates are off.
        settings: thresholds and shingle words count here.
    """

    def __init__(
        self,
        buffer: TextBuffer,
        places: np.ndarray,
        number_keys: np.ndarray,
        vectors: np.ndarray | None,
        settings: Deduplication,
    ) -> None:
        self.buffer = buffer
        self.places = places
        self.number_keys = number_keys
        self.vectors = vectors
        self.settings = settings

    def verdicts(self, left: np.ndarray, right: np.ndarray) -> Verdicts:
        """Return near before semantic; texts that differ in a number are never alike."""
        codes = np.full(len(left), UNLIKE, np.int8)
        similarities = jaccards(self.buffer, self.places[left], self.places[right], self.settings.shingle_words)
        close = similarities >= self.settings.jaccard_threshold
        codes[close] = METHODS.index(NEAR)
        threshold = self.settings.semantic_threshold
        if self.vectors is not None and threshold is not None:
            others = np.flatnonzero(~close)
            similarities[others] = self._cosines(self.vectors, left[others], right[others])
            codes[others[similarities[others] > threshold]] = METHODS.index(SEMANTIC)
        codes[self.number_keys[left] != self.number_keys[right]] = UNLIKE
        return Verdicts(codes, similarities)

    @staticmethod
    def _cosines(vectors: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        blocks = (slice(start, start + PAIR_BLOCK) for start in range(0, len(left), PAIR_BLOCK))
        found = [np.einsum("ij,ij->i", vectors[left[part]], vectors[right[part]]) for part in blocks]
        return np.concatenate([np.empty(0, np.float32), *found]).astype(np.float64)


class Remembered:
    """Verdicts on pairs that were looked at before, and those of `likeness` on the others.

    Args:
        pairs: packed pairs, ascending.
        likeness: decides.
    """

    def __init__(self, pairs: np.ndarray, likeness: Likeness) -> None:
        self.pairs = pairs
        self.likeness = likeness
        self.known = likeness.verdicts(*unpacked(pairs))

    def alike(self) -> np.ndarray:
        """Return the pairs that are alike, int64 (pairs, 2)."""
        return np.stack(unpacked(self.pairs[self.known.codes != UNLIKE]), axis=1)

    def verdicts(self, left: np.ndarray, right: np.ndarray) -> Verdicts:
        """Return what the texts left[i] and right[i] are to each other."""
        wanted = packed(left, right)
        places = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        codes, similarities = self.known.codes[places], self.known.similarities[places]
        new = np.flatnonzero(self.pairs[places] != wanted)
        fresh = self.likeness.verdicts(left[new], right[new])
        codes[new], similarities[new] = fresh.codes, fresh.similarities
        return Verdicts(codes, similarities)


def duplicate_clusters(
    signatures: pl.LazyFrame,
    queries: pl.LazyFrame,
    embeddings: pl.LazyFrame,
    settings: Deduplication,
    search: CandidateSearch | None = None,
) -> pl.DataFrame:
    """Return one row of `DUPLICATE_CLUSTER` per member of every cluster of two or more.

    The survivor (method `survivor`) is the first by the recipe's `survivor` order, then by the smallest id and source.
    Every other member is itself like its survivor: equal normalised text, or
    a Jaccard similarity of at least `jaccard_threshold`, or a cosine above `semantic_threshold`; members that only a
    chain of other members connects to it are clustered again among themselves. `cluster_id` is the survivor's id.

    Args:
        signatures: columns of `QUERY_SIGNATURE`, all sources.
        queries: columns query_id, source and query_text of what was signed, in the same order.
        embeddings: columns of `QUERY_EMBEDDING`, all sources; not read where semantic duplicates are off.
        settings: bands, thresholds, shingle words and who survives.
        search: finds near candidates; None: in this process.

    Raises:
        ValueError: rows of `queries` are not those of `signatures`, or a query that is compared by meaning has no
            embedding.
    """
    keys = signatures.select(KEYS).collect(engine="streaming")
    _refuse_others(keys, queries)
    texts = queries.select("query_text")
    order = policy_order(keys, settings.survivor)
    first = exact_groups(keys["exact_hash"].to_numpy()[order], order, texts)
    distinct = np.flatnonzero(first == np.arange(len(first)))
    numbers = np.full(len(order), -1)  # of the distinct texts, best survivor first; -1: a copy of another
    numbers[order[distinct]] = np.arange(len(distinct))
    pairs = (search or CandidateSearch()).pairs(signatures, numbers)
    del numbers
    give_back_freed_memory()  # what the search held
    survivors, verdicts = _near_survivors(keys, order[distinct], pairs, texts, embeddings, settings)
    give_back_freed_memory()  # texts that may be duplicates
    return _cluster_rows(keys.select("query_id", "source"), order, first, distinct, survivors, verdicts)


def _refuse_others(keys: pl.DataFrame, queries: pl.LazyFrame) -> None:
    """Raise ValueError unless `queries` has the rows of `keys` in their order."""
    names, start = keys.select("query_id", "source"), 0
    for block in queries.select("query_id", "source").collect_batches(chunk_size=BLOCK, engine="streaming"):
        signed = names[start : start + block.height]
        if not block.equals(signed):
            raise _other_queries(signed, block)
        start += block.height
    if start != keys.height:
        raise _other_queries(names[start:], names.clear())


def _other_queries(signed: pl.DataFrame, queries: pl.DataFrame) -> ValueError:
    """Name the source of the first row that differs; where it ends too soon, that is the one before the other's."""
    both = min(signed.height, queries.height)
    unequal = signed[:both].hash_rows() != queries[:both].hash_rows()
    row = unequal.arg_max() if unequal.any() else both
    sources = [part["source"][row] for part in (signed, queries) if row is not None and row < part.height]
    return ValueError(
        f"signatures and queries differ, beginning with source {min(sources)!r}: query_signatures of this source were "
        "made from other clean_queries; make them again"
    )


def _near_survivors(
    keys: pl.DataFrame,
    rows: np.ndarray,
    pairs: np.ndarray,
    texts: pl.LazyFrame,
    embeddings: pl.LazyFrame,
    settings: Deduplication,
) -> tuple[np.ndarray, Verdicts]:
    """Return the survivor of each distinct text and what the text is to it; `rows` has their rows in the tables."""
    number_keys, vectors = keys["number_key"].to_numpy(), None
    if settings.semantic_threshold is not None and len(rows):
        vectors = aligned_vectors(keys.select("query_id", "source")[rows], embeddings)
        pairs = np.union1d(pairs, semantic_candidates(vectors, number_keys[rows], settings.semantic_threshold))
    members = np.unique(np.concatenate(unpacked(pairs)))
    near = stored_texts(texts, rows[members])
    likeness = Likeness(*near, number_keys[rows[members]], None if vectors is None else vectors[members], settings)
    return _survivors(members, pairs, likeness, len(rows))


def _survivors(members: np.ndarray, pairs: np.ndarray, likeness: Likeness, count: int) -> tuple[np.ndarray, Verdicts]:
    """Return the survivor of each of `count` texts and what the text is to it; only `members` are in pairs."""
    left, right = (np.searchsorted(members, texts) for texts in unpacked(pairs))
    known = Remembered(packed(left, right), likeness)
    heads, found = clustered(len(members), known.alike(), known.verdicts)
    survivors, codes, similarities = np.arange(count), np.zeros(count, np.int8), np.ones(count)
    survivors[members] = members[heads]
    codes[members], similarities[members] = found.codes, found.similarities
    return survivors, Verdicts(codes, similarities)


def policy_order(keys: pl.DataFrame, survivor: Sequence[str]) -> np.ndarray:
    """Return the row numbers with the one that should survive first, int64.

    Two integers decide nearly always: what `survivor` names in one, the first bytes of the id in the other.
    """
    policy = np.zeros(keys.height, np.uint64)
    for name in survivor:
        policy = policy << np.uint64(_BITS[name]) | _lateness(keys, name)
    padded = pl.col("query_id").str.pad_end(8, "\0").cast(pl.Binary).bin.head(8)
    prefix = keys.select(padded.bin.reinterpret(dtype=pl.UInt64, endianness="big")).to_series().to_numpy()
    order = np.lexsort((prefix, policy))
    again = (policy[order[1:]] == policy[order[:-1]]) & (prefix[order[1:]] == prefix[order[:-1]])
    places = np.union1d(np.flatnonzero(again), np.flatnonzero(again) + 1)
    groups = np.concatenate([[0], np.cumsum(~again)])[places]
    tied = keys.select("query_id", "source")[order[places]].with_columns(group=groups, row=order[places])
    order[places] = tied.sort("group", "query_id", "source")["row"].to_numpy()
    return order


def _lateness(keys: pl.DataFrame, name: str) -> np.ndarray:
    """Return how late each row comes by one rule, uint64 of at most `_BITS[name]` bits."""
    match name:
        case "reference":
            late = ~keys["has_reference"]
        case "responses":
            late = ~keys["has_responses"]
        case "difficulty":
            late = 5 - keys["difficulty"]
        case "priority":
            late = keys["priority"].rank("dense")
        case _:
            late = (1 << _BITS["length"]) - 1 - keys["characters"]
    return late.to_numpy().astype(np.uint64)


def exact_groups(hashes: np.ndarray, order: np.ndarray, texts: pl.LazyFrame) -> np.ndarray:
    """Return for each rank the first rank with the same normalised text, int64.

    Args:
        hashes: of the texts, by rank.
        order: row of `texts` of each rank.
        texts: read for equal hashes only: 64 bits find candidates, 128 bits of BLAKE2b decide, whose
            collisions nobody can make.
    """
    first = np.arange(len(order))
    if not len(order):
        return first
    by_hash = np.argsort(hashes, kind="stable")
    begins = np.concatenate([[True], hashes[by_hash[1:]] != hashes[by_hash[:-1]]])
    heads = np.empty(len(order), np.int64)
    heads[by_hash] = by_hash[begins][np.cumsum(begins) - 1]
    copies = np.flatnonzero(heads != first)
    involved = np.union1d(heads[copies], copies)
    digests = stored_digests(texts, order[involved])
    left, right = (np.searchsorted(involved, ranks) for ranks in (heads[copies], copies))
    equal = digests[left] == digests[right]
    first[copies[equal]] = heads[copies[equal]]
    return first


def stored_texts(texts: pl.LazyFrame, rows: np.ndarray) -> tuple[TextBuffer, np.ndarray]:
    """Return the normalised texts of some rows of the table as a buffer, and the place of each of `rows` in it."""
    places = np.empty(len(rows), np.int64)
    places[np.argsort(rows)] = np.arange(len(rows))
    return TextBuffer.joined(_normalised(texts, np.sort(rows))), places


def stored_digests(texts: pl.LazyFrame, rows: np.ndarray) -> np.ndarray:
    """Return 128 bits of BLAKE2b of the normalised text of some rows of the table, void (rows)."""
    found = [_digests(part) for part in _normalised(texts, np.sort(rows))]
    out = np.empty(len(rows), "V16")
    out[np.argsort(rows)] = np.frombuffer(b"".join(found), "V16")
    return out


def _digests(buffer: TextBuffer) -> bytes:
    data, bounds = buffer.data.data, buffer.offsets.tolist()
    return b"".join(blake2b(data[start:end], digest_size=16).digest() for start, end in pairwise(bounds))


def _normalised(texts: pl.LazyFrame, ascending: np.ndarray) -> Iterator[TextBuffer]:
    """Yield the normalised texts of some rows of the table, part by part."""
    start = 0
    for batch in texts.collect_batches(chunk_size=BLOCK, engine="streaming"):
        low, high = np.searchsorted(ascending, (start, start + batch.height))
        yield normalised_buffer(batch["query_text"].gather(ascending[low:high] - start))
        start += batch.height


def _cluster_rows(
    keys: pl.DataFrame,
    order: np.ndarray,
    first: np.ndarray,
    distinct: np.ndarray,
    survivors: np.ndarray,
    verdicts: Verdicts,
) -> pl.DataFrame:
    """Return the members of clusters; `order` leads from ranks to rows of `keys`, `distinct` from texts to ranks."""
    text = np.searchsorted(distinct, first)  # of each rank
    head = distinct[survivors[text]]
    members = np.flatnonzero(np.bincount(head, minlength=len(head))[head] > 1)
    text, head = text[members], head[members]
    copy = (first[members] != members) & (first[members] == head)
    codes = np.where(copy, METHODS.index(EXACT), verdicts.codes[text])
    survivor_ids = keys["query_id"].gather(order[head])
    return conform(
        keys[order[members]].with_columns(
            cluster_id=survivor_ids,
            survivor_id=survivor_ids,
            method=pl.Series(METHODS).gather(codes),
            similarity=verdicts.similarities[text],
        ),
        DUPLICATE_CLUSTER,
    ).sort("cluster_id", pl.col("method") != SURVIVOR, "query_id", "source")


def without_duplicates(queries: pl.LazyFrame, clusters: pl.LazyFrame) -> StreamedResult:
    """Return the queries that survive; each other one leaves with its survivor and the similarity.

    Args:
        queries: columns of `QUERY`, one source; read block by block.
        clusters: columns of `DUPLICATE_CLUSTER`, all sources; only rows of these sources are held.
    """
    keys = queries.select("query_id", "source").collect(engine="streaming")
    dropped = removed_queries(keys, clusters)
    stays = np.ones(keys.height, bool)
    stays[dropped["row"].to_numpy()] = False
    kept, start = TableParts(QUERY), 0
    for block in queries.collect_batches(chunk_size=BLOCK, engine="streaming"):
        kept.add(block.filter(pl.Series(stays[start : start + block.height])))
        start += block.height
    return StreamedResult.of(kept, keys.height, conform(dropped.drop("row"), DROPPED_SCHEMA))


def removed_queries(keys: pl.DataFrame, clusters: pl.LazyFrame) -> pl.DataFrame:
    """Return the queries that another one stands for: columns of `DROPPED_SCHEMA` and `row`, their row in `keys`.

    Args:
        keys: columns query_id and source, one source.
        clusters: columns of `DUPLICATE_CLUSTER`, all sources.
    """
    sources = keys["source"].unique().to_list()
    mine = clusters.filter(pl.col("method") != SURVIVOR, pl.col("source").is_in(sources))
    homes = clusters.filter(pl.col("method") == SURVIVOR).select("cluster_id", survivor_source="source")
    removed = mine.join(homes, on="cluster_id", how="left").collect(engine="streaming")
    candidates = keys.with_row_index("row").filter(pl.col("query_id").is_in(removed["query_id"].implode()))
    detail = pl.format(
        "survivor {} of {}, similarity {}", "survivor_id", "survivor_source", pl.col("similarity").round(4)
    )
    return candidates.join(removed, on=["query_id", "source"], maintain_order="left").select(
        "row", "source", row_id="query_id", reason=pl.format("duplicate_{}", "method"), detail=detail
    )
