"""Labels of queries: language, characters, words. The one place that calls the language detector."""

import re

import polars as pl

from deepdistill_assets.queries.labeller import unlabelled
from deepdistill_assets.tables import QUERY_LABEL, conform

FEWEST_LETTERS = 100  # below this a detector guesses: the source's own language is better
LOOKED_AT = 2000  # characters
# Frequent words that hardly occur in another language of the Latin script; a third of the words of English.
ENGLISH = (
    r"(?i)(?-u:\b)(?:the|of|and|that|with|what|how|which|are|each|from|this|these|find|for|if|then|by|have|has|there|many"
    r"|it|you|your|be|was|were|when|where|let|such|write)(?-u:\b)"
)
ENGLISH_SHARE = 0.12
SCRIPTS = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af\u1100-\u11ff]")),
    ("zh", re.compile(r"[\u3400-\u9fff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
)
LETTER = re.compile(r"[^\W\d_]")
CYRILLIC = re.compile(r"[\u0400-\u04ff]")


def query_labels(queries: pl.DataFrame) -> pl.DataFrame:
    """Return `QUERY_LABEL` rows: detected language (ISO 639-1), characters, and words (a Chinese character is a word).

    What a model gives (category, difficulty, constraints) is null, with the reason.
    """
    text = pl.col("query_text").fill_null("")
    labels = queries.select(
        "query_id",
        characters=text.str.len_chars().cast(pl.Int64),
        words=text.str.count_matches(r"\p{Han}|[^\s\p{Han}]+").cast(pl.Int64),
    )
    language = detect_languages(queries["query_text"], queries["language"])
    return conform(
        pl.concat([labels.with_columns(language=language), unlabelled(queries.height)], how="horizontal"), QUERY_LABEL
    )


def detect_languages(texts: pl.Series, declared: pl.Series) -> pl.Series:
    """Return one language per text; short texts take the language that their source declares.

    The detector takes 8 ms a text, so it is asked only where the words do not show plain English.
    """
    frame = pl.DataFrame({"text": texts.fill_null("").str.slice(0, LOOKED_AT), "declared": declared.fill_null("en")})
    text = pl.col("text")
    beyond_ascii = text.str.len_bytes() - text.str.len_chars()
    letters = text.str.count_matches(r"\p{L}")
    english = text.str.count_matches(ENGLISH) >= ENGLISH_SHARE * text.str.count_matches(r"[^\s]+")
    decided = frame.select(
        pl.when((letters >= FEWEST_LETTERS) & english & (beyond_ascii < 0.1 * letters))
        .then(pl.lit("en"))
        .when((letters < FEWEST_LETTERS) & (beyond_ascii == 0))
        .then("declared")
    ).to_series()
    open_ = frame.filter(decided.is_null())
    found = pl.Series([detect_language(*row) for row in open_.iter_rows()], dtype=pl.String())
    return decided.scatter(decided.is_null().arg_true(), found).alias("language")


def detect_language(text: str, declared: str) -> str:
    """Return the language of one text: by script where that decides it, else by a seeded detector.

    >>> detect_language("这道题怎么做", "en")
    'zh'
    >>> detect_language("What is 7 + 8?", "en")
    'en'
    """
    text = text[:LOOKED_AT]
    letters = len(LETTER.findall(text))
    for language, script in SCRIPTS:
        if letters and len(script.findall(text)) > 0.3 * letters:
            return language
    if letters and len(CYRILLIC.findall(text)) > 0.3 * letters:
        return _detected(text, "ru", surely=0.0)
    return declared if letters < FEWEST_LETTERS else _detected(text, declared, surely=0.95)


def _detected(text: str, declared: str, surely: float) -> str:
    from langdetect import DetectorFactory, LangDetectException, detect_langs

    DetectorFactory.seed = 0  # it samples n-grams: without a seed two runs differ
    try:
        best = detect_langs(text)[0]
    except LangDetectException:
        return declared
    # Formulas and code look like rare languages: an unsure guess does not overrule the source.
    return str(best.lang).split("-")[0] if best.prob > surely else declared
