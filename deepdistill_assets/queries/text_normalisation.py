"""Forms of a text made for comparison only; the text that goes on is never changed. Numbers always stay."""

import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
import polars as pl

from deepdistill_assets.queries.text_buffer import TextBuffer

_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}。、"
# NFKC would read 10² as 102 and 3½ as 31/2, which are other numbers.
_SUPERSCRIPTS = "\u00b2\u00b3\u00b9\u207f" + "".join(map(chr, range(0x2070, 0x207C)))
_SUBSCRIPTS = "".join(map(chr, range(0x2080, 0x208A)))
_RAISED, _LOWERED = rf"([{_SUPERSCRIPTS}]+)", rf"([{_SUBSCRIPTS}]+)"
_FRACTIONS = "\u00bc\u00bd\u00be" + "".join(map(chr, range(0x2150, 0x215F)))
_FULL_WIDTH = "".join(map(chr, range(0xFF01, 0xFF5F)))
_BEFORE_NFKC = {
    **{fraction: " " + unicodedata.normalize("NFKC", fraction) for fraction in _FRACTIONS},
    # So frequent that they should not cost a pass of NFKC.
    **{sign: unicodedata.normalize("NFKC", sign) for sign in f"{_FULL_WIDTH}{_SUPERSCRIPTS}{_SUBSCRIPTS}\u00a0\u2026"},
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),  # hyphens, short dashes, minus
    **dict.fromkeys("\u00d7\u00b7\u2219\u22c5", "*"),  # signs of multiplication
    "\u00f7": "/",
}
_AFTER_NFKC = {
    "\u2044": "/",  # fraction slash
    "\u2212": "-",  # minus (a superscript one becomes it)
    **dict.fromkeys("\x85\u1680\u2028\u2029", " "),  # white space that NFKC leaves
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),  # characters without width
    **dict.fromkeys("\u2018\u2019", "'"),
    **dict.fromkeys("\u201c\u201d\u201e", '"'),
    # NFKC leaves other scripts' digits alone: Arabic, Persian, Devanagari.
    **{chr(zero + digit): str(digit) for zero in (0x0660, 0x06F0, 0x0966) for digit in range(10)},
}
_SETTLED = np.r_[0x4E00:0x9FEF, 0xAC00:0xD7A4, 0xE000:0xF900]  # Han, Hangul, private: forms of themselves
_NOT_A_WORD = r"[^\p{L}\p{N}]+"


def normalised(texts: pl.Series) -> pl.Series:
    """Return texts in lower case, with compatible characters unified (NFKC) and single spaces between words.

    Superscripts become powers (x² is x^2, not x2), dashes and multiplication signs become ASCII, and the spaces
    around characters of scripts written without them are removed. A null becomes an empty text.

    >>> normalised(pl.Series(["  What is\\n2 × 3² ?"])).to_list()
    ['what is 2 * 3^2 ?']
    """
    return normalised_buffer(texts).series(texts.name)


def normalised_buffer(texts: pl.Series) -> TextBuffer:
    """Return `normalised` texts as a buffer.

    Characters whose form depends on no other are looked up in a table; the texts with others are unified first.
    """
    from deepdistill_assets.queries import kernels

    texts, forms = texts.fill_null(""), single_forms()
    buffer = TextBuffer.of(texts)
    unified = np.empty(len(buffer), np.bool_)
    room = kernels.joined_forms(buffer.data, buffer.offsets, forms.kinds, forms.offsets, unified)
    if unified.any():
        buffer = TextBuffer.of(_replaced(texts, pl.Series(unified), _unified(texts.filter(pl.Series(unified)))))
        room += int(buffer.offsets[-1] - buffer.offsets[0])
    out, offsets = np.empty(room + 8, np.uint8), np.empty(len(buffer) + 1, np.int64)
    kernels.squeeze(buffer.data, buffer.offsets, unified, forms.kinds, forms.data, forms.offsets, out, offsets)
    return TextBuffer(out, offsets)


@dataclass(frozen=True)
class SingleForms:
    """What `_unified` makes of each character below U+10000 that stands alone: data[offsets[code]:offsets[code + 1]].

    `kinds` of `kernels`: JOINED where neighbours count too, RAISED and LOWERED where a run begins with ^ or _.
    """

    kinds: np.ndarray
    data: np.ndarray
    offsets: np.ndarray


@cache
def single_forms() -> SingleForms:
    """Return the table of all characters of the first plane beyond ASCII."""
    from deepdistill_assets.queries import kernels

    codes = np.r_[0x80:0xD800, 0xE000:0x10000]
    characters = pl.Series(map(chr, codes))
    open_ = pl.Series(~np.isin(codes, _SETTLED))
    forms = _replaced(characters, open_, _unified(characters.filter(open_)))
    raised, lowered = (characters.str.contains(f"[{runs}]") for runs in (_SUPERSCRIPTS, _SUBSCRIPTS))
    forms = pl.select(pl.when(raised | lowered).then(forms.str.tail(-1)).otherwise(forms)).to_series()
    spaceless = forms.str.contains(f"[{_SPACELESS}]")
    # Forms that would change again, or that meet their neighbours halfway, are left to `_unified`.
    changed = open_ & (forms != characters)
    again = _replaced(forms, changed, _unified(forms.filter(changed)))
    joined = (again != forms) | forms.str.contains(r"[\p{M}\u{1100}-\u{11ff}]")
    joined |= (spaceless & (forms.str.len_chars() > 1)) | (forms.str.contains("[σς]") & (forms != characters))
    kinds = np.full(0x10000, kernels.JOINED, np.uint8)
    kinds[codes] = np.select(
        [raised, lowered, joined, spaceless],
        [kernels.RAISED, kernels.LOWERED, kernels.JOINED, kernels.SPACELESS],
        kernels.PLAIN,
    )
    buffer = TextBuffer.of(forms)
    lengths = np.zeros(0x10001, np.int64)
    lengths[codes + 1] = np.diff(buffer.offsets)
    return SingleForms(kinds, buffer.data, np.cumsum(lengths))


def _unified(texts: pl.Series) -> pl.Series:
    text = pl.col("text").str.replace_all(_RAISED, "^$1").str.replace_all(_LOWERED, "_$1")
    texts = pl.DataFrame({"text": texts}).select(text.str.replace_many(_BEFORE_NFKC))["text"]
    changed = texts.str.contains(changed_by_nfkc())
    texts = _replaced(texts, changed, texts.filter(changed).str.normalize("NFKC"))
    text = pl.col("text").str.replace_many(_AFTER_NFKC).str.to_lowercase()
    # A character without a space beside it is not written again.
    text = text.str.replace_all(rf"\s+([{_SPACELESS}])\s*|([{_SPACELESS}])\s+", "$1$2")
    return pl.DataFrame({"text": texts}).select(text)["text"]


def _replaced(texts: pl.Series, chosen: pl.Series, others: pl.Series) -> pl.Series:
    """Return texts with those chosen (Boolean) replaced, in order."""
    return texts.clone().scatter(chosen.arg_true(), others) if len(others) else texts


@cache
def changed_by_nfkc() -> str:
    """Return a class of characters; a text with none of them is in NFKC already, which is far cheaper to see.

    Marks and the later letters of Korean syllables combine with what stands before them; beyond the first plane all
    are named.
    """
    plane = (code for code in range(0x80, 0x10000) if not 0xD800 <= code < 0xE000)
    unstable = [code for code in plane if not unicodedata.is_normalized("NFKC", chr(code))]
    names = "".join(rf"\u{{{code:x}}}" for code in unstable)
    return rf"[\p{{M}}\u{{1161}}-\u{{11ff}}\u{{10000}}-\u{{10ffff}}{names}]"


def comparison_words(normalised_texts: pl.Series) -> pl.Series:
    """Return only the words and numbers of each normalised text, single-spaced; each spaceless character is a word.

    >>> comparison_words(pl.Series(["**what** is $2+3$?", "求x的值"])).to_list()
    ['what is 2 3', '求 x 的 值']
    """
    spaced = normalised_texts.str.replace_all(_NOT_A_WORD, " ")
    ascii_only = (spaced.str.len_bytes() == spaced.str.len_chars()).all()
    if not ascii_only:
        spaced = spaced.str.replace_all(rf"([{_SPACELESS}])", " $1 ").str.replace_all(r" {2,}", " ")
    return spaced.str.strip_chars()
