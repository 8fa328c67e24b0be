"""Repeated n-grams: our compiled counter beside a Counter of word tuples, in one run, on the same texts.

    python tests/benchmarks/benchmark_ngrams.py --texts 600

Responses of some 20 kB, a few with loops, some with indented code; then the same words as token ids. Prints MB of text
per CPU second (user and system) and whether the verdicts (an n-gram of 20 words more than 20 times) are equal.
"""

import argparse
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import polars as pl

sys.path[:0] = [str(Path(__file__).parents[2])]

from deepdistill_assets.quality.ngrams import (  # noqa: E402
    frequent_ngrams,
    max_repeats,
    max_token_repeats,
    ngrams_of,
    sketch_slots,
)

SIZE, LIMIT = 20, 20


def response(drawn: random.Random) -> str:
    """Make one response: words, code lines, and in one of twelve a loop."""
    words = [f"w{drawn.randrange(4000)}" for _ in range(2000)]
    code = "\n".join(
        " " * 4 * drawn.randrange(8) + f"x{drawn.randrange(99)} = {drawn.randrange(999)}" for _ in range(150)
    )
    loop = "so let me check this again step by step " * drawn.randrange(60) if drawn.random() < 1 / 12 else ""
    return " ".join(words) + "\n" + code + "\n" + loop


def token_ids(texts: pl.Series) -> pl.Series:
    """Return the words of each text as numbers, as a sampler's token ids are."""
    numbers: defaultdict[str, int] = defaultdict(lambda: len(numbers))
    return pl.Series([[numbers[word] for word in text.split()] for text in texts], dtype=pl.List(pl.UInt32))


def most_repeated(ids: list[int]) -> int:
    """Return how often the most frequent n-gram of tuples occurs."""
    return max(Counter(tuple(ids[at : at + SIZE]) for at in range(len(ids) - SIZE + 1)).values(), default=0)


def main() -> None:
    """Measure both, three times in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=600)
    options = parser.parse_args()
    drawn = random.Random(0)
    texts = pl.Series([response(drawn) for _ in range(options.texts)])
    megabytes = texts.str.len_bytes().sum() / 1e6
    ids = token_ids(texts)
    listed = ids.to_list()
    max_repeats(texts[:2], SIZE)  # compile
    max_token_repeats(ids[:2], SIZE)
    frequent_ngrams(lambda: [texts[:2]], SIZE, LIMIT, 1 << 16)
    methods = {
        "Counter of word tuples": lambda: [max(ngrams_of(t, SIZE).values(), default=0) > LIMIT for t in texts],
        "ours, per response": lambda: (max_repeats(texts, SIZE) > LIMIT).to_list(),
        "Counter of token id tuples": lambda: [most_repeated(each) > LIMIT for each in listed],
        "ours, token ids": lambda: (max_token_repeats(ids, SIZE) > LIMIT).to_list(),
        "ours, whole corpus (two reads)": lambda: (
            frequent_ngrams(lambda: [texts], SIZE, LIMIT, sketch_slots(len(texts) * 3000)).height
        ),
    }
    seconds, verdicts = {name: [] for name in methods}, {}
    for _ in range(3):
        for name, method in methods.items():
            start = time.process_time()
            verdicts[name] = method()
            seconds[name].append(time.process_time() - start)
    slow, ours, slow_ids, ours_ids, _ = verdicts
    assert verdicts[slow] == verdicts[ours] == verdicts[slow_ids] == verdicts[ours_ids], "verdicts differ"
    print(f"{megabytes:.1f} MB, {sum(verdicts[ours])} of {len(texts)} texts flagged by both")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        base = medians[slow_ids if name == ours_ids else slow]
        print(f"{name}: {megabytes / median:.0f} MB per CPU second, {base / median:.1f} times its Counter")


if __name__ == "__main__":
    main()
