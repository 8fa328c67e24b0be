"""Compiled loops over the bytes of many texts: hashing, shingles, MinHash, exact Jaccard, n-gram look-up.

Texts arrive as one Arrow buffer: `data` (uint8) and `offsets` (int64, one more than texts). All kernels release the
GIL. This module imports numba, so it is imported inside functions only.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])

PRIME_1 = np.uint64(0x9E3779B185EBCA87)
PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
PRIME_3 = np.uint64(0x165667B19E3779F9)
PRIME_4 = np.uint64(0x85EBCA77C2B2AE63)
PRIME_5 = np.uint64(0x27D4EB2F165667C5)

CHARACTER_SHINGLE = 5  # characters that weigh about as much as three words
SPACE, STAR, POINT, COMMA = np.uint8(0x20), np.uint8(0x2A), np.uint8(0x2E), np.uint8(0x2C)
ZERO, SMALL_A = np.uint8(0x30), np.uint8(0x61)
CARET, UNDERSCORE = np.uint8(0x5E), np.uint8(0x5F)
PLAIN, SPACELESS, RAISED, LOWERED, JOINED = range(5)  # how the form of a character beyond ASCII is written
OPERATORS = np.isin(np.arange(256), list(b"+-*/^=<>"))
LANES = np.uint64(0x0101010101010101)  # times a byte: the byte in all eight lanes of a word
LOW_BITS, HIGH_BITS = np.uint64(0x7F7F7F7F7F7F7F7F), np.uint64(0x8080808080808080)
GATHER = np.uint64(0x0102040810204080)  # moves the lowest bits of eight lanes into the highest byte
# "one" and its like are left out: mostly pronouns and articles.
NUMBER_WORDS = (
    *("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"),
    *("fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty", "forty", "fifty"),
    *("sixty", "seventy", "eighty", "ninety", "hundred", "thousand", "million", "half", "twice", "double", "triple"),
    *"零二三四五六七八九十百千万两半",
)


def _number_word_table() -> tuple[int, np.ndarray]:
    """Return a multiplier and a table of the first eight bytes of each number word (0: empty) without a collision."""
    packed = [int.from_bytes(word.encode()[:8], "little") for word in NUMBER_WORDS]
    multiplier = int(PRIME_1)
    while True:
        slots = [(word * multiplier & 0xFFFFFFFFFFFFFFFF) >> 52 for word in packed]
        if len(set(slots)) == len(slots):
            break
        multiplier += 2
    table = np.zeros(4096, np.uint64)
    table[slots] = np.array(packed, np.uint64)
    return multiplier, table


NUMBER_WORD_MULTIPLIER, NUMBER_WORD_TABLE = _number_word_table()


def compiled(function: Function) -> Function:
    """Compile without the GIL; the machine code is kept on disk beside the module or in the user's cache."""
    return numba.njit(cache=True, nogil=True)(function)


def inlined(function: Function) -> Function:
    """Compile a helper into its callers."""
    return numba.njit(cache=True, nogil=True, forceinline=True)(function)


@intrinsic
def load_64(typing_context: Any, data: Any, index: Any) -> Any:
    """Read eight bytes at any byte of a uint8 array as a little-endian word."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.gep(array.data, [arguments[1]])
        value = builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()))
        value.align = 1
        return value

    return types.uint64(data, types.int64), generate


@intrinsic
def _store_64(typing_context: Any, data: Any, index: Any, value: Any) -> Any:
    """Write eight bytes at any byte of a uint8 array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.gep(array.data, [arguments[1]])
        builder.store(arguments[2], builder.bitcast(address, ir.IntType(64).as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(data, types.int64, types.uint64), generate


@intrinsic
def _lowest_bit(typing_context: Any, value: Any) -> Any:
    """Return the index of the lowest set bit of a uint64 (64 if there is none)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


@inlined
def _rotate(value: np.uint64, bits: int) -> np.uint64:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@inlined
def _lane(value: np.uint64) -> np.uint64:
    return _rotate(value * PRIME_2, 31) * PRIME_1


@inlined
def _merge(total: np.uint64, accumulator: np.uint64) -> np.uint64:
    return (total ^ _lane(accumulator)) * PRIME_1 + PRIME_4


@inlined
def _eight_bytes(data: np.ndarray, position: int) -> np.uint64:
    """Return data[position:position + 8] as a little-endian word, zeros beyond the end of the buffer."""
    if position + 8 <= data.shape[0]:
        return load_64(data, position)
    word = np.uint64(0)
    for index in range(data.shape[0] - position):
        word |= np.uint64(data[position + index]) << np.uint64(8 * index)
    return word


@inlined
def _up_to(count: int) -> np.uint64:
    """Return a mask of the lowest `count` bits, 64 at most."""
    return ~np.uint64(0) if count >= 64 else (np.uint64(1) << np.uint64(count)) - np.uint64(1)


@inlined
def _padded(data: np.ndarray, position: int, end: int) -> np.uint64:
    """Return eight bytes from `position`, zeros from `end` on."""
    return _eight_bytes(data, position) & _up_to(8 * (end - position))


@compiled
def _stripes(data: np.ndarray, start: int, end: int) -> np.uint64:
    """Return the state of xxHash64 after the 32-byte stripes of data[start:end], of which the last may lack 7 bytes."""
    one, two, three, four = PRIME_1 + PRIME_2, PRIME_2, np.uint64(0), np.uint64(0) - PRIME_1
    position = start
    while position + 25 <= end:
        one = _rotate(one + load_64(data, position) * PRIME_2, 31) * PRIME_1
        two = _rotate(two + load_64(data, position + 8) * PRIME_2, 31) * PRIME_1
        three = _rotate(three + load_64(data, position + 16) * PRIME_2, 31) * PRIME_1
        four = _rotate(four + _padded(data, position + 24, end) * PRIME_2, 31) * PRIME_1
        position += 32
    total = _rotate(one, 1) + _rotate(two, 7) + _rotate(three, 12) + _rotate(four, 18)
    return _merge(_merge(_merge(_merge(total, one), two), three), four)


@inlined
def xxh64(data: np.ndarray, start: int, end: int) -> np.uint64:
    """Return xxHash64 (seed 0) of data[start:end], padded with zeros to a multiple of eight bytes.

    Without a tail of odd bytes the hash of a short text has no branch that is hard to predict.
    """
    length = (end - start + 7) & ~7
    total = (_stripes(data, start, end) if length >= 32 else PRIME_5) + np.uint64(length)
    position = start + (length & ~31)
    while position + 8 <= end:
        total = _rotate(total ^ _lane(load_64(data, position)), 27) * PRIME_1 + PRIME_4
        position += 8
    if position < end:
        total = _rotate(total ^ _lane(_padded(data, position, end)), 27) * PRIME_1 + PRIME_4
    total = (total ^ (total >> np.uint64(33))) * PRIME_2
    total = (total ^ (total >> np.uint64(29))) * PRIME_3
    return total ^ (total >> np.uint64(32))


@compiled
def text_hashes(data: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
    """Write xxHash64 of every text to `out` (uint64)."""
    for row in range(out.shape[0]):
        out[row] = xxh64(data, offsets[row], offsets[row + 1])


@compiled
def character_counts(data: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
    """Write the number of characters of every text to `out` (int64)."""
    for row in range(out.shape[0]):
        position, end, later = offsets[row], offsets[row + 1], np.uint64(0)
        while position < end:
            word = _padded(data, position, end)
            # Every byte of a character but its first is 10xxxxxx.
            later += (((word & ~(word << np.uint64(1)) & HIGH_BITS) >> np.uint64(7)) * LANES) >> np.uint64(56)
            position += 8
        out[row] = end - offsets[row] - np.int64(later)


@inlined
def _gathered(lanes: np.uint64) -> np.uint64:
    """Return the highest bits of eight lanes as eight bits."""
    return ((lanes >> np.uint64(7)) * GATHER) >> np.uint64(56)


@inlined
def _lanes_between(word: np.uint64, low: int, high: int) -> np.uint64:
    """Return the highest bit of each lane of `word` that is ASCII and from low to high."""
    ascii_part = word & LOW_BITS
    from_low = ascii_part + LANES * np.uint64(0x80 - low)
    above_high = ascii_part + LANES * np.uint64(0x7F - high)
    return from_low & ~above_high & ~word & HIGH_BITS


@inlined
def _between(word: np.uint64, low: int, high: int) -> np.uint64:
    """Return eight bits: which bytes of `word` are ASCII and from low to high."""
    return _gathered(_lanes_between(word, low, high))


@inlined
def _squeeze_byte(byte: np.uint8, out: np.ndarray, write: int, after_space: bool) -> tuple[int, bool]:
    """Write one byte in lower case, or a space unless one is there; returns the next place and whether it was one."""
    space = bool(byte == SPACE or (byte >= 9 and byte <= 13))
    if space and after_space:
        return write, True
    capital = byte >= 0x41 and byte <= 0x5A
    out[write] = SPACE if space else np.uint8(byte + 32) if capital else byte
    return write + 1, space


@inlined
def _code_point(data: np.ndarray, position: int) -> tuple[int, int]:
    """Return the code of the character at `position` and its bytes; 0 for one of four bytes."""
    lead = int(data[position])
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | (int(data[position + 1]) & 0x3F), 2
    if lead < 0xF0:
        middle = (int(data[position + 1]) & 0x3F) << 6
        return (lead & 0x0F) << 12 | middle | (int(data[position + 2]) & 0x3F), 3
    return 0, 4


@compiled
def joined_forms(
    data: np.ndarray, offsets: np.ndarray, kinds: np.ndarray, form_offsets: np.ndarray, joined: np.ndarray
) -> int:
    """Write which texts have a character of kind JOINED; returns the bytes that all forms need at most."""
    room = int(offsets[-1] - offsets[0])
    for row in range(joined.shape[0]):
        joined[row] = False
        position, end = offsets[row], offsets[row + 1]
        while position < end:
            if position + 8 <= end and load_64(data, position) & HIGH_BITS == np.uint64(0):
                position += 8
            elif data[position] < 0x80:
                position += 1
            else:
                code, width = _code_point(data, position)
                if kinds[code] == JOINED:
                    joined[row] = True
                    break
                room += max(0, form_offsets[code + 1] - form_offsets[code] + 1 - width)
                position += width
    return room


@inlined
def _squeeze_character(
    data: np.ndarray,
    position: int,
    before: int,
    kinds: np.ndarray,
    forms: np.ndarray,
    form_offsets: np.ndarray,
    out: np.ndarray,
    begin: int,
    write: int,
    after_space: bool,
) -> tuple[int, int, int, bool]:
    """Write the form of one character beyond ASCII.

    Returns the position after it, its kind, the next place, and whether a space would be one too many there.
    """
    code, width = _code_point(data, position)
    kind = int(kinds[code])
    if kind != before and (kind == RAISED or kind == LOWERED):  # noqa: SIM109  (numba)
        out[write] = CARET if kind == RAISED else UNDERSCORE
        write += 1
        after_space = False
    if kind == SPACELESS and write > begin and out[write - 1] == SPACE:
        write -= 1
    for index in range(form_offsets[code], form_offsets[code + 1]):
        write, after_space = _squeeze_byte(forms[index], out, write, after_space)
    return position + width, kind, write, after_space or kind == SPACELESS


@compiled
def squeeze(
    data: np.ndarray,
    offsets: np.ndarray,
    unified: np.ndarray,
    kinds: np.ndarray,
    forms: np.ndarray,
    form_offsets: np.ndarray,
    out: np.ndarray,
    out_offsets: np.ndarray,
) -> None:
    """Write every text with ASCII letters in lower case, runs of ASCII white space as one space, and none at its ends.

    Characters beyond ASCII are written as their forms, except in texts that are `unified` already. Fills
    `out_offsets`; `out` has room for all forms and eight bytes more.
    """
    write = 0
    out_offsets[0] = 0
    for row in range(offsets.shape[0] - 1):
        begin, after_space, kind = write, True, PLAIN
        position, end = offsets[row], offsets[row + 1]
        while position < end:
            if position + 8 <= end:
                # Eight bytes at once unless there is something to rewrite among them.
                word = load_64(data, position)
                spaces = _lanes_between(word, 0x20, 0x20)
                second = spaces & (spaces << np.uint64(8) | np.uint64(0x80 if after_space else 0))
                wide = np.uint64(0) if unified[row] else word & HIGH_BITS
                if second | wide | _lanes_between(word, 0x09, 0x0D) == np.uint64(0):
                    _store_64(out, write, word | (_lanes_between(word, 0x41, 0x5A) >> np.uint64(2)))
                    after_space = spaces >> np.uint64(63) != np.uint64(0)
                    kind = PLAIN
                    write += 8
                    position += 8
                    continue
            stop = min(position + 8, end)
            while position < stop:
                if data[position] < 0x80 or unified[row]:
                    write, after_space = _squeeze_byte(data[position], out, write, after_space)
                    kind = PLAIN
                    position += 1
                else:
                    position, kind, write, after_space = _squeeze_character(
                        data, position, kind, kinds, forms, form_offsets, out, begin, write, after_space
                    )
        if write > begin and out[write - 1] == SPACE:
            write -= 1
        out_offsets[row + 1] = write


@inlined
def _is_number_word(data: np.ndarray, start: int, end: int) -> bool:
    """Whether the first eight bytes of data[start:end] are those of a number word."""
    packed = _eight_bytes(data, start) & _up_to(8 * (end - start))
    slot = np.int64((packed * np.uint64(NUMBER_WORD_MULTIPLIER)) >> np.uint64(52))
    return bool(NUMBER_WORD_TABLE[slot] == packed)


@inlined
def _is_digit(byte: np.uint8) -> bool:
    return bool(byte >= ZERO and byte < ZERO + 10)


@inlined
def _joins_digits(data: np.ndarray, position: int, end: int) -> bool:
    """Whether a point or comma at `position` is inside a number: 0.5, or 1,000 (but not 12,18)."""
    if position + 1 >= end or not _is_digit(data[position + 1]):
        return False
    if data[position] == POINT:
        return True
    if data[position] != COMMA or position + 3 >= end:
        return False
    three = _is_digit(data[position + 2]) and _is_digit(data[position + 3])
    return three and (position + 4 >= end or not _is_digit(data[position + 4]))


@inlined
def _operator_before(data: np.ndarray, start: int, position: int) -> np.uint64:
    """Return the sign or operator that stands before a number, or 0; two stars are markdown, not a product."""
    before = position - 1
    if before >= start and data[before] == SPACE:
        before -= 1
    if before < start or not OPERATORS[data[before]]:
        return np.uint64(0)
    bold = data[before] == STAR and before > start and data[before - 1] == STAR
    return np.uint64(0) if bold else np.uint64(data[before])


@inlined
def _folded(key: np.uint64, value: np.uint64) -> np.uint64:
    return _rotate((key ^ value) * PRIME_1, 29) * PRIME_3 + PRIME_4


@compiled
def _number(data: np.ndarray, start: int, position: int, end: int) -> tuple[np.uint64, int]:
    """Return a hash of the number that begins at `position`, with its operator, and where it ends."""
    value = _operator_before(data, start, position)
    while position < end:
        if _is_digit(data[position]) or (data[position] == POINT and _joins_digits(data, position, end)):
            value = _folded(value, np.uint64(data[position]))
        elif not _joins_digits(data, position, end):
            break
        position += 1
    return value, position


@inlined
def _run_end(data: np.ndarray, letters: np.uint64, block: int, begin: int, end: int) -> int:
    """Return where the run of letters that begins at `begin` ends; only beyond its block are bytes looked at."""
    position = begin + _lowest_bit(~(letters >> np.uint64(begin - block)))
    if position >= block + 64:
        position = block + 64
        while position < end and data[position] >= SMALL_A and data[position] < SMALL_A + 26:
            position += 1
    return min(position, end)


@compiled
def number_keys(data: np.ndarray, offsets: np.ndarray, keys: np.ndarray, counts: np.ndarray) -> None:
    """Write a hash of the sequence of numbers of every text (lower case), and how many there are.

    A number is a run of digits with decimal point or thousands commas, with the sign or operator before it, or a
    number word. Texts whose sequences differ ask different questions, however alike they read.
    """
    for row in range(keys.shape[0]):
        start, end = offsets[row], offsets[row + 1]
        key, count, done = np.uint64(0), 0, start
        inside = np.uint64(0)  # whether the byte before the block is a letter
        for block in range(start, end, 64):
            digits, letters, wide = np.uint64(0), np.uint64(0), np.uint64(0)
            for lane in range(0, min(64, end - block), 8):
                word, shift = _eight_bytes(data, block + lane), np.uint64(lane)
                digits |= _between(word, 0x30, 0x39) << shift
                letters |= _between(word, 0x61, 0x7A) << shift
                if word & HIGH_BITS != np.uint64(0):
                    wide |= _gathered(word & (word << np.uint64(1)) & (word << np.uint64(2)) & HIGH_BITS) << shift
            valid = _up_to(end - block)
            words = letters & ~(letters << np.uint64(1) | inside) & valid
            inside = letters >> np.uint64(63)
            starts = words | ((digits | wide) & valid)
            while starts != np.uint64(0):
                index = _lowest_bit(starts)
                bit = np.uint64(1) << np.uint64(index)
                starts &= starts - np.uint64(1)
                begin = block + index
                if begin < done:
                    continue
                if digits & bit != np.uint64(0):
                    value, done = _number(data, start, begin, end)
                    key = _folded(key, value)
                    count += 1
                    continue
                finish = _run_end(data, letters, block, begin, end) if words & bit != np.uint64(0) else begin + 3
                if _is_number_word(data, begin, finish) and finish - begin <= 9 and finish <= end:
                    key = _folded(key, xxh64(data, begin, finish))
                    count += 1
        keys[row] = key
        counts[row] = count


@inlined
def _words(data: np.ndarray, start: int, end: int, starts: np.ndarray, ends: np.ndarray) -> int:
    """Write the bounds of the words between single spaces; returns their number."""
    if start == end:
        return 0
    count = 0
    starts[0] = start
    for block in range(start, end, 64):
        spaces = np.uint64(0)
        for lane in range(0, min(64, end - block), 8):
            spaces |= _between(_eight_bytes(data, block + lane), 0x20, 0x20) << np.uint64(lane)
        spaces &= _up_to(end - block)
        while spaces != np.uint64(0):
            position = block + _lowest_bit(spaces)
            spaces &= spaces - np.uint64(1)
            ends[count] = position
            count += 1
            starts[count] = position + 1
    ends[count] = end
    return count + 1


@compiled
def _characters(data: np.ndarray, start: int, end: int, starts: np.ndarray, ends: np.ndarray) -> int:
    """Write the bounds of the UTF-8 characters; returns their number."""
    count = 0
    for position in range(start, end):
        if data[position] & np.uint8(0xC0) != np.uint8(0x80):
            starts[count] = position
            if count:
                ends[count - 1] = position
            count += 1
    if count:
        ends[count - 1] = end
    return count


@compiled
def _mostly_without_spaces(data: np.ndarray, start: int, end: int) -> bool:
    """Whether a third of the characters or more are of scripts written without spaces between words.

    These are kana and Han (U+3000 to U+9FFF), Thai and Lao (U+0E00 to U+0EFF), Burmese and Khmer.
    """
    characters = 0
    spaceless = 0
    for position in range(start, end):
        byte = data[position]
        if byte & 0xC0 != 0x80:
            characters += 1
        if byte >= 0xE0 and byte <= 0xE9 and position + 2 < end:
            code = (int(byte) & 0x0F) << 12 | (int(data[position + 1]) & 0x3F) << 6 | (int(data[position + 2]) & 0x3F)
            if code >= 0x3000 or (0x0E00 <= code < 0x0F00) or (0x1000 <= code < 0x10A0) or (0x1780 <= code < 0x1800):
                spaceless += 1
    return spaceless > 0 and 3 * spaceless >= characters


@inlined
def _is_ascii(data: np.ndarray, start: int, end: int) -> bool:
    """Whether all bytes are ASCII."""
    seen, position = np.uint64(0), start
    while position + 8 <= end:
        seen |= load_64(data, position)
        position += 8
    while position < end:
        seen |= np.uint64(data[position])
        position += 1
    return bool(seen & HIGH_BITS == np.uint64(0))


@inlined
def shingle_hashes(
    data: np.ndarray, start: int, end: int, words: int, starts: np.ndarray, ends: np.ndarray, out: np.ndarray
) -> int:
    """Write xxHash64 of each shingle of data[start:end] to `out`; returns their number.

    A shingle is `words` consecutive words; in texts with fewer words, and in scripts written without spaces,
    `CHARACTER_SHINGLE` characters; a text shorter than that is one shingle.
    """
    width = words
    units = _words(data, start, end, starts, ends)
    if units < words or (not _is_ascii(data, start, end) and _mostly_without_spaces(data, start, end)):
        width = CHARACTER_SHINGLE
        units = _characters(data, start, end, starts, ends)
    width = min(width, units)
    count = units - width + 1 if units else 0
    for unit in range(count):
        out[unit] = xxh64(data, starts[unit], ends[unit + width - 1])
    return count


@inlined
def _fmix32(value: np.uint32) -> np.uint32:
    """Mix as datasketch's affine32 scheme does before it permutes (the finaliser of MurmurHash3)."""
    value ^= value >> np.uint32(16)
    value = np.uint32(value * np.uint32(0x85EBCA6B))
    value ^= value >> np.uint32(13)
    value = np.uint32(value * np.uint32(0xC2B2AE35))
    return np.uint32(value ^ (value >> np.uint32(16)))


@compiled
def _signature(hashes: np.ndarray, count: int, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """Write the minimum of a * fmix32(hash) + b mod 2^32 over the low halves of the hashes, per permutation.

    Four shingles at a time, the last one again where they are fewer: the minima are read and written less often.
    """
    out[:] = np.uint32(0xFFFFFFFF)
    for shingle in range(0, count, 4):
        one = _fmix32(np.uint32(hashes[shingle] & np.uint64(0xFFFFFFFF)))
        two = _fmix32(np.uint32(hashes[min(shingle + 1, count - 1)] & np.uint64(0xFFFFFFFF)))
        three = _fmix32(np.uint32(hashes[min(shingle + 2, count - 1)] & np.uint64(0xFFFFFFFF)))
        four = _fmix32(np.uint32(hashes[min(shingle + 3, count - 1)] & np.uint64(0xFFFFFFFF)))
        for permutation in range(a.shape[0]):
            factor, summand = a[permutation], b[permutation]
            low = min(np.uint32(factor * one + summand), np.uint32(factor * two + summand))
            high = min(np.uint32(factor * three + summand), np.uint32(factor * four + summand))
            out[permutation] = min(out[permutation], low, high)


@compiled
def _longest(offsets: np.ndarray) -> int:
    longest = 0
    for row in range(offsets.shape[0] - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    return longest


@compiled
def signatures(
    data: np.ndarray, offsets: np.ndarray, words: int, a: np.ndarray, b: np.ndarray, out: np.ndarray
) -> None:
    """Write the MinHash signature of every text to `out` (texts, permutations), uint32."""
    room = _longest(offsets) + 1
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    hashes = np.empty(room, np.uint64)
    for row in range(out.shape[0]):
        count = shingle_hashes(data, offsets[row], offsets[row + 1], words, starts, ends, hashes)
        _signature(hashes, count, a, b, out[row])


@compiled
def band_keys(
    data: np.ndarray,
    offsets: np.ndarray,
    numbers: np.ndarray,
    words: int,
    a: np.ndarray,
    b: np.ndarray,
    rows: int,
    out: np.ndarray,
) -> None:
    """Write one 32-bit key per LSH band of every text to `out` (texts, bands); the signature itself is not kept.

    The text's number key is mixed into each, so that texts with other numbers share a bucket only by chance.
    """
    room = _longest(offsets) + 1
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    hashes = np.empty(room, np.uint64)
    signature = np.empty(a.shape[0], np.uint32)
    as_bytes = signature.view(np.uint8)
    for text in range(out.shape[0]):
        count = shingle_hashes(data, offsets[text], offsets[text + 1], words, starts, ends, hashes)
        _signature(hashes, count, a, b, signature)
        for band in range(out.shape[1]):
            key = xxh64(as_bytes, 4 * rows * band, 4 * rows * (band + 1)) ^ numbers[text]
            out[text, band] = np.uint32(key >> np.uint64(32))


@inlined
def _table_size(count: int) -> int:
    """Return the power of two that leaves a hash table of `count` keys at most half full."""
    size = 16
    while size < 2 * count:
        size *= 2
    return size


@inlined
def _slot(keys: np.ndarray, epochs: np.ndarray, epoch: int, mask: int, key: np.uint64) -> Any:
    """Return where `key` is, or belongs, in a table whose slots are empty unless they carry `epoch`."""
    slot = np.int64(key >> np.uint64(20)) & mask
    while epochs[slot] == epoch and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@compiled
def jaccards(
    data: np.ndarray, offsets: np.ndarray, words: int, left: np.ndarray, right: np.ndarray, out: np.ndarray
) -> None:
    """Write the exact Jaccard similarity of the shingle sets of texts left[i] and right[i]; fastest sorted by left."""
    room = _longest(offsets) + 1
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    hashes = np.empty(room, np.uint64)
    size = _table_size(room)
    left_keys, left_epochs, seen = np.empty(size, np.uint64), np.zeros(size, np.int64), np.zeros(size, np.int64)
    right_keys, right_epochs = np.empty(size, np.uint64), np.zeros(size, np.int64)
    left_size, left_mask, current, epoch = 0, 0, -1, 0
    for pair in range(out.shape[0]):
        stamp = pair + 1
        if left[pair] != current:
            current = left[pair]
            epoch = stamp
            left_size = 0
            count = shingle_hashes(data, offsets[current], offsets[current + 1], words, starts, ends, hashes)
            left_mask = _table_size(count) - 1
            for shingle in range(count):
                slot = _slot(left_keys, left_epochs, epoch, left_mask, hashes[shingle])
                if left_epochs[slot] != epoch:
                    left_epochs[slot] = epoch
                    left_keys[slot] = hashes[shingle]
                    left_size += 1
        other = right[pair]
        count = shingle_hashes(data, offsets[other], offsets[other + 1], words, starts, ends, hashes)
        right_mask = _table_size(count) - 1
        shared, only_right = 0, 0
        for shingle in range(count):
            key = hashes[shingle]
            slot = _slot(left_keys, left_epochs, epoch, left_mask, key)
            if left_epochs[slot] == epoch:
                shared += seen[slot] != stamp
                seen[slot] = stamp
                continue
            slot = _slot(right_keys, right_epochs, stamp, right_mask, key)
            if right_epochs[slot] != stamp:
                right_epochs[slot] = stamp
                right_keys[slot] = key
                only_right += 1
        union = left_size + only_right
        out[pair] = shared / union if union else 1.0


@compiled
def repeated_keys(keys: np.ndarray, texts: np.ndarray, once: np.ndarray, twice: np.ndarray, out: np.ndarray) -> int:
    """Write `key << 32 | text` for each row whose key (uint32) occurs again (and a few others); returns their number.

    `once` and `twice` are bit sets of 64 * len (a power of two); most keys occur once and need not be sorted. Rows
    whose text is negative are left out.
    """
    once[:] = np.uint64(0)
    twice[:] = np.uint64(0)
    mask, low = np.uint64(once.shape[0] - 1), np.uint64(63)
    for row in range(keys.shape[0]):
        if texts[row] >= 0:
            key = np.uint64(keys[row])
            word, bit = (key >> np.uint64(6)) & mask, np.uint64(1) << (key & low)
            twice[word] |= once[word] & bit
            once[word] |= bit
    count = 0
    for row in range(keys.shape[0]):
        if texts[row] >= 0:
            key = np.uint64(keys[row])
            out[count] = key << np.uint64(32) | np.uint64(texts[row])
            count += twice[(key >> np.uint64(6)) & mask] >> (key & low) & np.uint64(1) != np.uint64(0)
    return count


@compiled
def star_edges(packed: np.ndarray, out: np.ndarray) -> int:
    """Write `first << 32 | text` for each text that shares a bucket with an earlier one; returns their number.

    `packed` is sorted and holds `key << 32 | text`, so a bucket is a run of equal keys.
    """
    shift, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    count = 0
    first = packed[0] if packed.shape[0] else np.uint64(0)
    for index in range(1, packed.shape[0]):
        if packed[index] >> shift == first >> shift:
            out[count] = (first & mask) << shift | (packed[index] & mask)
            count += 1
        else:
            first = packed[index]
    return count


@compiled
def ngram_hashes(data: np.ndarray, offsets: np.ndarray, words: int, rows: np.ndarray, hashes: np.ndarray) -> int:
    """Write (row, xxHash64) of each run of `words` words of every text; returns their number."""
    room = _longest(offsets) + 1
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    found = 0
    for row in range(offsets.shape[0] - 1):
        count = _words(data, offsets[row], offsets[row + 1], starts, ends)
        for word in range(count - words + 1):
            rows[found] = row
            hashes[found] = xxh64(data, starts[word], ends[word + words - 1])
            found += 1
    return found


@compiled
def fill_table(hashes: np.ndarray, table: np.ndarray) -> None:
    """Put hashes into an open-addressing table (a power of two of zeros, at most half full)."""
    mask = table.shape[0] - 1
    for index in range(hashes.shape[0]):
        slot = np.int64(hashes[index] & np.uint64(mask))
        while table[slot] != np.uint64(0) and table[slot] != hashes[index]:
            slot = (slot + 1) & mask
        table[slot] = hashes[index]


@compiled
def known_ngrams(
    data: np.ndarray, offsets: np.ndarray, words: int, table: np.ndarray, rows: np.ndarray, hashes: np.ndarray
) -> int:
    """Write (row, xxHash64) of each run of `words` words whose hash is in `table`; returns their number."""
    mask = table.shape[0] - 1
    room = _longest(offsets) + 1
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    found = 0
    for row in range(offsets.shape[0] - 1):
        count = _words(data, offsets[row], offsets[row + 1], starts, ends)
        for word in range(count - words + 1):
            key = xxh64(data, starts[word], ends[word + words - 1])
            slot = np.int64(key & np.uint64(mask))
            while table[slot] != np.uint64(0) and table[slot] != key:
                slot = (slot + 1) & mask
            if table[slot] == key:
                rows[found] = row
                hashes[found] = key
                found += 1
    return found
