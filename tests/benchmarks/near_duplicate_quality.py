"""What near-duplicate removal gets right, against every pair's exact Jaccard similarity.

    python tests/benchmarks/near_duplicate_quality.py --queries 8000

The generated queries hold planted copies with 0 to 20 % of their words replaced. True pairs have a similarity of at
least 0.8 and the same numbers. Recall: share of true pairs of which at least one leaves. Precision: share of removed
queries that are in a true pair with one that stays.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import polars as pl

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]


def true_pairs(texts: pl.Series) -> np.ndarray:
    """Return all pairs of true near duplicates, by brute force, int64 (pairs, 2)."""
    from deepdistill_assets.queries.minhash import jaccards, number_keys
    from deepdistill_assets.queries.text_buffer import TextBuffer
    from deepdistill_assets.queries.text_normalisation import normalised

    buffer = TextBuffer.of(normalised(texts))
    numbers, found = number_keys(buffer)[0], [np.empty((0, 2), np.int64)]
    for row in range(len(texts) - 1):
        others = row + 1 + np.flatnonzero(numbers[row + 1 :] == numbers[row])
        close = others[jaccards(buffer, np.full(len(others), row), others, 3) >= 0.8]
        found.append(np.stack([np.full(len(close), row), close], axis=1))
    return np.concatenate(found)


def ours(texts: pl.Series) -> np.ndarray:
    """Return which texts stay, by the product's default settings."""
    from deepdistill_assets.queries.duplicates import duplicate_clusters, without_duplicates
    from deepdistill_assets.queries.minhash import query_signatures
    from deepdistill_assets.recipe import Deduplication
    from deepdistill_assets.tables import QUERY, QUERY_EMBEDDING, conform, empty

    rows = pl.DataFrame({"query_text": texts}).with_row_index("query_id").with_columns(source=pl.lit("s"))
    queries = conform(rows, QUERY)
    signatures = pl.concat(query_signatures(queries.lazy(), 100, Deduplication()))
    clusters = duplicate_clusters(signatures.lazy(), queries.lazy(), empty(QUERY_EMBEDDING).lazy(), Deduplication())
    result, kept = without_duplicates(queries.lazy(), clusters.lazy()), np.zeros(len(texts), bool)
    kept[result.kept.collect()["query_id"].cast(pl.Int64).to_numpy()] = True
    return kept


def datasketch_buckets(texts: pl.Series) -> np.ndarray:
    """Return which texts stay where a shared bucket of datasketch's LSH is a duplicate."""
    from benchmark_near_duplicates import PERMUTATIONS, shingle_sets
    from datasketch import MinHash, MinHashLSH

    index, kept = MinHashLSH(params=(16, 8), num_perm=PERMUTATIONS), np.zeros(len(texts), bool)
    for row, sketch in enumerate(MinHash.bulk(shingle_sets(texts.to_list()), num_perm=PERMUTATIONS)):
        if not index.query(sketch):
            index.insert(row, sketch)
            kept[row] = True
    return kept


def main() -> None:
    """Print recall and precision of both."""
    from generate_queries import queries

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=8000)
    texts = pl.Series(list(queries(parser.parse_args().queries)))
    pairs = true_pairs(texts)
    print(f"{len(texts):,} queries, {len(pairs):,} true pairs\n{'method':20}{'kept':>8}{'recall':>9}{'precision':>11}")
    for method in (ours, datasketch_buckets):
        kept = method(texts)
        recall = 1 - kept[pairs].all(axis=1).mean()
        justified = np.zeros(len(texts), bool)
        for one, other in (pairs.T, pairs.T[::-1]):
            justified[one[kept[other]]] = True
        print(f"{method.__name__:20}{kept.sum():8,}{recall:9.4f}{justified[~kept].mean():11.4f}")


if __name__ == "__main__":
    main()
