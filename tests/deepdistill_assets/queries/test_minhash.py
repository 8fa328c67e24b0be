import numpy as np
import polars as pl
import pytest
import xxhash
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from deepdistill_assets.queries.kernels import CHARACTER_SHINGLE
from deepdistill_assets.queries.minhash import (
    band_keys,
    exact_hashes,
    jaccards,
    number_keys,
    query_signatures,
    signatures,
)
from deepdistill_assets.queries.text_buffer import TextBuffer
from deepdistill_assets.queries.text_normalisation import normalised
from deepdistill_assets.recipe import Deduplication
from deepdistill_assets.tables import QUERY, QUERY_SIGNATURE, conform

WORDS = st.lists(st.text("abcxyz0123é", min_size=1, max_size=12), max_size=40).map(" ".join)
ANY_TEXT = st.one_of(WORDS, st.text(max_size=60), st.text("求函数的最大值和最小,3x ", max_size=60))


def spaceless(character: str) -> bool:
    code = ord(character)
    ranges = ((0x3000, 0xA000), (0x0E00, 0x0F00), (0x1000, 0x10A0), (0x1780, 0x1800))
    return any(low <= code < high for low, high in ranges)


def shingles(text: str, words: int) -> set[bytes]:
    """The definition, in plain Python."""
    units, width, glue = text.split(" ") if text else [], words, " "
    wide = sum(map(spaceless, text))
    if len(units) < words or (wide and 3 * wide >= len(text)):
        units, width, glue = list(text), CHARACTER_SHINGLE, ""
    width = min(width, len(units))
    return {glue.join(units[place : place + width]).encode() for place in range(len(units) - width + 1)} - {b""}


def xxh64(value: bytes) -> int:
    return xxhash.xxh64_intdigest(value + bytes(-len(value) % 8))


def datasketch_signature(text: str, permutations: int, words: int) -> np.ndarray:
    sketch = MinHash(permutations, hashfunc=lambda value: xxh64(value) & 0xFFFFFFFF)
    if parts := shingles(text, words):
        sketch.update_batch(list(parts))
    return sketch.hashvalues


def buffer_of(texts: list[str]) -> TextBuffer:
    return TextBuffer.of(normalised(pl.Series(texts, dtype=pl.String)))


@settings(max_examples=80, deadline=None)
@given(st.lists(ANY_TEXT, min_size=1, max_size=8), st.sampled_from([2, 3, 5]), st.sampled_from([32, 128]))
def test_signatures_are_those_of_datasketch_bit_for_bit(texts, words, permutations):
    clean = normalised(pl.Series(texts))
    found = signatures(TextBuffer.of(clean), permutations, words)
    expected = np.stack([datasketch_signature(text, permutations, words) for text in clean])
    np.testing.assert_array_equal(found, expected)


def test_a_signature_becomes_a_datasketch_object():
    row = signatures(buffer_of(["how many apples are left at the end of the day"]), 128, 3)[0]
    assert MinHash(hashvalues=row, scheme="affine32").jaccard(MinHash(hashvalues=row, scheme="affine32")) == 1.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=200), min_size=1, max_size=6))
def test_exact_hash_is_xxhash64_of_the_padded_text(texts):
    clean = normalised(pl.Series(texts))
    assert exact_hashes(TextBuffer.of(clean)).tolist() == [xxh64(text.encode()) for text in clean]


@settings(max_examples=80, deadline=None)
@given(ANY_TEXT, ANY_TEXT, st.sampled_from([2, 3]))
def test_jaccard_is_exact(left, right, words):
    clean = normalised(pl.Series([left, right]))
    one, two = (shingles(text, words) for text in clean)
    expected = len(one & two) / len(one | two) if one | two else 1.0
    found = jaccards(TextBuffer.of(clean), np.array([0, 1, 0]), np.array([1, 0, 0]), words)
    assert found.tolist() == [expected, expected, 1.0]


def keys_of(buffer: TextBuffer, chosen: Deduplication) -> np.ndarray:
    return band_keys(buffer, number_keys(buffer)[0], chosen)


def test_band_keys_are_equal_exactly_where_the_rows_of_the_signature_are():
    generator = np.random.default_rng(0)
    words = [f"w{index}" for index in range(30)]
    texts = [" ".join(generator.choice(words, 25)) for _ in range(40)]
    texts += [text.replace(" ", " w7 ", 1) for text in texts]
    buffer, chosen = buffer_of(texts), Deduplication(bands=16, rows=4)
    keys, rows = keys_of(buffer, chosen), signatures(buffer, 128, 3)
    numbers, _ = number_keys(buffer)
    for band in range(16):
        part = rows[:, 4 * band : 4 * band + 4]
        equal = (part[:, None] == part[None]).all(axis=2) & (numbers[:, None] == numbers[None])
        np.testing.assert_array_equal(keys[:, None, band] == keys[None, :, band], equal)


def test_texts_with_other_numbers_share_no_band():
    text = "please compute the sum of the following two numbers and give only the result as your answer: {}"
    keys = keys_of(buffer_of([text.format("2+3"), text.format("2+5"), text.format("2 + 3")]), Deduplication())
    assert not (keys[0] == keys[1]).any()


def test_too_many_bands_are_refused():
    with pytest.raises(ValueError, match="21 bands of 6"):
        keys_of(buffer_of(["a"]), Deduplication(num_permutations=64))


def test_many_texts_in_threads_give_what_one_by_one_gives():
    texts = [f"query number {index} about apples and pears in basket {index % 7}" for index in range(5000)]
    together = keys_of(buffer_of(texts), Deduplication())
    alone = np.concatenate([keys_of(buffer_of([text]), Deduplication()) for text in texts[::500]])
    np.testing.assert_array_equal(together[::500], alone)


def test_signature_table_carries_what_the_survivor_policy_needs():
    rows = {
        "query_id": ["a", "b", "c"],
        "source": ["s"] * 3,
        "query_text": ["Two  WORDS", None, "x"],
        "reference_answer": ["4", "", None],
        "test_cases": [None, None, "{}"],
    }
    queries = conform(pl.DataFrame(rows), QUERY)
    table = pl.concat(query_signatures(queries.lazy(), 7, Deduplication()))
    assert dict(table.schema) == QUERY_SIGNATURE
    assert table["has_reference"].to_list() == [True, False, True]
    assert table["priority"].to_list() == [7, 7, 7]
    assert table["characters"].to_list() == [9, 0, 1]
    assert table["band_keys"].list.len().to_list() == [21, 21, 21]
    assert sum(block.height for block in query_signatures(queries.clear().lazy(), 7, Deduplication())) == 0


def ahead(work, blocks):
    """Ask for all blocks before the first is done, as workers elsewhere may."""
    return iter([work(block) for block in list(blocks)])


@pytest.mark.parametrize("map_blocks", [map, ahead])
def test_signatures_are_made_block_by_block_with_the_difficulty_of_the_label(map_blocks, monkeypatch):
    monkeypatch.setattr("deepdistill_assets.queries.minhash.BLOCK", 3)
    ids = [f"q{number}" for number in range(8)]
    queries = conform(pl.DataFrame({"query_id": ids, "query_text": ids}).with_columns(source=pl.lit("s")), QUERY)
    labels = pl.DataFrame({"query_id": ["q7", "q0", "q4", "q5"], "label_difficulty": ["hard", "easy", None, "medium"]})
    blocks = list(query_signatures(queries.lazy(), 7, Deduplication(), labels.lazy(), map_blocks))
    assert [block.height for block in blocks] == [3, 3, 2]
    table = pl.concat(blocks)
    assert table["query_id"].to_list() == ids
    assert table["difficulty"].to_list() == [2, 0, 0, 0, 0, 3, 0, 4]
