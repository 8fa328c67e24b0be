"""Compiled loops over the words of many texts: a rolling hash of n words, and tables with open addressing.

Texts arrive as one Arrow buffer: `data` (uint8) and `offsets` (int64, one more than texts). Words are what ASCII white
space separates, so that indentation makes no empty words. This module imports numba: import it inside functions.
"""

import numba
import numpy as np

FNV_OFFSET, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
BASE = np.uint64(0x9E3779B97F4A7C15)
SATURATED = np.uint16(65535)


@numba.njit(cache=True, nogil=True)
def mixed(value: np.uint64) -> np.uint64:
    """Spread a hash over all its bits (the finaliser of splitmix64); never 0, which marks a free slot."""
    value = (value ^ (value >> np.uint64(30))) * MIX_1
    value = (value ^ (value >> np.uint64(27))) * MIX_2
    value ^= value >> np.uint64(31)
    return value if value != 0 else np.uint64(1)


@numba.njit(cache=True, nogil=True)
def hash_words(data: np.ndarray, start: int, end: int, words: np.ndarray, places: np.ndarray) -> int:
    """Write the hash and first byte of each word of data[start:end]; return the number of words."""
    count, value, inside = 0, FNV_OFFSET, False
    for position in range(start, end):
        byte = data[position]
        if byte == 32 or 9 <= byte <= 13:
            if inside:
                words[count] = mixed(value)
                count += 1
                inside = False
        else:
            if not inside:
                inside, value = True, FNV_OFFSET
                places[count] = position
            value = (value ^ np.uint64(byte)) * FNV_PRIME
    if inside:
        words[count] = mixed(value)
        count += 1
    return count


@numba.njit(cache=True, nogil=True)
def hash_ngrams(words: np.ndarray, count: int, size: int, ngrams: np.ndarray) -> int:
    """Write the hash of each run of `size` words; return how many there are."""
    if count < size:
        return 0
    power = np.uint64(1)
    for _ in range(size):
        power *= BASE
    value = np.uint64(0)
    for index in range(count):
        value = value * BASE + words[index]
        if index >= size:
            value -= words[index - size] * power
        if index >= size - 1:
            ngrams[index - size + 1] = mixed(value)
    return count - size + 1


@numba.njit(cache=True, nogil=True)
def longest_text(offsets: np.ndarray) -> int:
    """Return the bytes of the longest text."""
    longest = 0
    for text in range(len(offsets) - 1):
        longest = max(longest, offsets[text + 1] - offsets[text])
    return longest


@numba.njit(cache=True, nogil=True)
def table_size(entries: int) -> int:
    """Return the power of two that leaves at least half of the slots free."""
    size = 2
    while size < 2 * entries:
        size *= 2
    return size


@numba.njit(cache=True, nogil=True)
def most_frequent(
    ngrams: np.ndarray, found: int, text: int, keys: np.ndarray, owners: np.ndarray, counts: np.ndarray
) -> int:
    """Return how often the most frequent of the n-grams of one text occurs; slots of other texts count as free."""
    highest = 0
    mask = np.uint64(table_size(found) - 1)  # a short text touches few cache lines
    for index in range(found):
        key = ngrams[index]
        slot = key & mask
        while owners[slot] == text and keys[slot] != key:
            slot = (slot + np.uint64(1)) & mask
        if owners[slot] != text:
            owners[slot], keys[slot], counts[slot] = text, key, 0
        counts[slot] += 1
        highest = max(highest, counts[slot])
    return highest


@numba.njit(cache=True, nogil=True)
def max_repeats(data: np.ndarray, offsets: np.ndarray, size: int) -> np.ndarray:
    """Return, per text, how often its most frequent n-gram occurs in it (0 where it has none)."""
    room = longest_text(offsets) // 2 + 1
    words, ngrams = np.empty(room, np.uint64), np.empty(room, np.uint64)
    places = np.empty(room, np.int64)
    slots = table_size(room)
    keys, owners, counts = np.empty(slots, np.uint64), np.full(slots, -1, np.int64), np.empty(slots, np.int64)
    highest = np.zeros(len(offsets) - 1, np.int64)
    for text in range(len(offsets) - 1):
        found = hash_ngrams(words, hash_words(data, offsets[text], offsets[text + 1], words, places), size, ngrams)
        highest[text] = most_frequent(ngrams, found, text, keys, owners, counts)
    return highest


@numba.njit(cache=True, nogil=True)
def max_token_repeats(tokens: np.ndarray, offsets: np.ndarray, size: int) -> np.ndarray:
    """Return the same of responses as token ids: `tokens` (uint32) one after the other, `offsets` as of texts."""
    room = longest_text(offsets) + 1
    words, ngrams = np.empty(room, np.uint64), np.empty(room, np.uint64)
    slots = table_size(room)
    keys, owners, counts = np.empty(slots, np.uint64), np.full(slots, -1, np.int64), np.empty(slots, np.int64)
    highest = np.zeros(len(offsets) - 1, np.int64)
    for text in range(len(offsets) - 1):
        count = offsets[text + 1] - offsets[text]
        for index in range(count):
            words[index] = mixed(np.uint64(tokens[offsets[text] + index]) + np.uint64(1))
        highest[text] = most_frequent(ngrams, hash_ngrams(words, count, size, ngrams), text, keys, owners, counts)
    return highest


@numba.njit(cache=True, nogil=True)
def add_to_sketch(data: np.ndarray, offsets: np.ndarray, size: int, sketch: np.ndarray) -> None:
    """Count every n-gram in `sketch` (uint16, a power of two slots): each slot is an upper bound of its n-grams."""
    room = longest_text(offsets) // 2 + 1
    words, ngrams = np.empty(room, np.uint64), np.empty(room, np.uint64)
    places = np.empty(room, np.int64)
    mask = np.uint64(len(sketch) - 1)
    for text in range(len(offsets) - 1):
        found = hash_ngrams(words, hash_words(data, offsets[text], offsets[text + 1], words, places), size, ngrams)
        for index in range(found):
            slot = ngrams[index] & mask
            if sketch[slot] != SATURATED:
                sketch[slot] += np.uint16(1)


@numba.njit(cache=True, nogil=True)
def occurrences(
    data: np.ndarray, offsets: np.ndarray, size: int, sketch: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return hash and first byte of each n-gram occurrence whose slot in the sketch exceeds `limit`."""
    room = longest_text(offsets) // 2 + 1
    words, ngrams = np.empty(room, np.uint64), np.empty(room, np.uint64)
    places = np.empty(room, np.int64)
    mask = np.uint64(len(sketch) - 1)
    hashes, starts, used = np.empty(1024, np.uint64), np.empty(1024, np.int64), 0
    for text in range(len(offsets) - 1):
        found = hash_ngrams(words, hash_words(data, offsets[text], offsets[text + 1], words, places), size, ngrams)
        for index in range(found):
            if sketch[ngrams[index] & mask] > limit:
                if used == len(hashes):
                    hashes = np.concatenate((hashes, np.empty(used, np.uint64)))
                    starts = np.concatenate((starts, np.empty(used, np.int64)))
                hashes[used], starts[used] = ngrams[index], places[index]
                used += 1
    return hashes[:used], starts[:used]


@numba.njit(cache=True, nogil=True)
def highest_counts(
    data: np.ndarray, offsets: np.ndarray, size: int, frequent: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Return, per text, the highest count among those of its n-grams that are in `frequent` (0 where none is)."""
    room = longest_text(offsets) // 2 + 1
    words, ngrams = np.empty(room, np.uint64), np.empty(room, np.uint64)
    places = np.empty(room, np.int64)
    slots = table_size(len(frequent))
    keys, values = np.zeros(slots, np.uint64), np.zeros(slots, np.int64)
    mask = np.uint64(slots - 1)
    for index in range(len(frequent)):
        slot = frequent[index] & mask
        while keys[slot] != 0:
            slot = (slot + np.uint64(1)) & mask
        keys[slot], values[slot] = frequent[index], counts[index]
    highest = np.zeros(len(offsets) - 1, np.int64)
    for text in range(len(offsets) - 1):
        found = hash_ngrams(words, hash_words(data, offsets[text], offsets[text + 1], words, places), size, ngrams)
        for index in range(found):
            slot = ngrams[index] & mask
            while keys[slot] != 0 and keys[slot] != ngrams[index]:
                slot = (slot + np.uint64(1)) & mask
            if keys[slot] != 0:
                highest[text] = max(highest[text], values[slot])
    return highest
