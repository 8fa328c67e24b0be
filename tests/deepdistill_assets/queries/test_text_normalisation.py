# Characters that look alike are the subject here.
# ruff: noqa: RUF001
import re
import unicodedata

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepdistill_assets.queries.minhash import number_keys
from deepdistill_assets.queries.text_buffer import TextBuffer
from deepdistill_assets.queries.text_normalisation import _unified as unified
from deepdistill_assets.queries.text_normalisation import changed_by_nfkc, comparison_words, normalised


def same_numbers(left: str, right: str) -> bool:
    keys, _ = number_keys(TextBuffer.of(normalised(pl.Series([left, right]))))
    return bool(keys[0] == keys[1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  What  is\n2 + 3\t?", "what is 2 + 3 ?"),
        ("Ｗｈａｔ　ｉｓ ２＋３", "what is 2+3"),
        ("x² + x₁", "x^2 + x_1"),
        ("10²", "10^2"),
        ("3½ cups", "3 1/2 cups"),
        ("2 × 3 ÷ 4 − 1", "2 * 3 / 4 - 1"),
        ("a\u00a0b\u2009c\u200bd", "a b cd"),
        ("求 x 的 值，其中 x 是 整数。", "求x的值,其中x是整数。"),
        ("٣ + ٤", "3 + 4"),
        ("“it’s”", '"it\'s"'),
        ("", ""),
        (None, ""),
    ],
)
def test_forms_that_look_the_same_become_one(text, expected):
    assert normalised(pl.Series([text, "ascii"], dtype=pl.String)).to_list() == [expected, "ascii"]


BEYOND_ASCII = st.characters(min_codepoint=0x80, exclude_categories=["Cs"])


@given(st.text(st.one_of(BEYOND_ASCII, st.sampled_from("aE\uac00\u1100\u1161\u0301\u11a8\u0bcd\u093f")), max_size=8))
def test_only_texts_that_nfkc_would_not_change_skip_it(text):
    if not pl.Series([text]).str.contains(changed_by_nfkc())[0]:
        assert unicodedata.normalize("NFKC", text) == text


def test_normalising_twice_changes_nothing():
    texts = normalised(pl.Series(["3½  Ｘ²", "求 x 的 值", "Plain  text", "a − b"]))
    assert normalised(texts).to_list() == texts.to_list()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("2+3", "2+5"),
        ("2+3", "2*3"),
        ("x^2 + 3", "x^2 - 3"),
        ("10²", "102"),
        ("gcd(12,18)", "gcd(121,8)"),
        ("0.5 litres", "5 litres"),
        ("three apples", "five apples"),
        ("三个苹果", "五个苹果"),
        ("3 and 4", "4 and 3"),
        ("half of it", "twice of it"),
        ("no numbers", "1 number"),
    ],
)
def test_other_numbers_are_other_questions(left, right):
    assert not same_numbers(left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("2+3", "2 + 3 ="),
        ("**12** apples", "12 apples"),
        ("1,000 coins", "1000 coins"),
        ("x²", "x^2"),
        ("3 − 4", "3-4"),
        ("a well-known fact", "a well known fact"),
        ("３ apples.", "3 apples"),
        ("It ends with 3.", "it ends with 3"),
        ("", "nothing"),
    ],
)
def test_the_same_numbers_written_otherwise_stay_the_same(left, right):
    assert same_numbers(left, right)


def test_comparison_words_drop_punctuation_but_no_number():
    words = comparison_words(normalised(pl.Series(["**What** is $2+3$?", "求x的值", "?!", "a  b"])))
    assert words.to_list() == ["what is 2 3", "求 x 的 值", "", "a b"]


ODD = st.sampled_from("aA Z1\t\n²³⁻₁₂½…βΣσς的、。ｱﾞㄱ각\u0301\u200b\u00a0\u2028İ")


def squeezed_form(texts: pl.Series) -> list[str]:
    """What the whole text becomes, without the table of single characters."""
    lower = [re.sub("[A-Z]", lambda match: match[0].lower(), text) for text in unified(texts)]
    return [re.sub("[\t-\r ]+", " ", text).strip(" ") for text in lower]


@given(st.lists(st.text(st.one_of(BEYOND_ASCII, ODD), max_size=12), max_size=6))
def test_the_table_of_single_forms_gives_what_whole_texts_give(texts):
    table = pl.Series(texts, dtype=pl.String)
    assert normalised(table).to_list() == squeezed_form(table)


def test_every_character_of_the_first_plane_keeps_its_form_in_a_text():
    characters = [chr(code) for code in range(0x80, 0x10000) if not 0xD800 <= code < 0xE000]
    texts = pl.Series([f"a {character} 的b" for character in characters])
    assert normalised(texts).to_list() == squeezed_form(texts)
