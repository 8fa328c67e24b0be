"""Reference answers that no verifier could ever use are found before a teacher spends tokens on them."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice

from deepdistill_assets.queries.rows import MalformedRow, RawRow, Record, refused
from deepdistill_resources.verifiers.math import ReferenceChecker
from deepdistill_resources.verifiers.science import correct_option

BAD_GOLD = "bad_gold"
BLOCK = 5000


def with_usable_references(
    rows: Iterable[RawRow | MalformedRow], category: str, judged: bool = False
) -> Iterator[RawRow | MalformedRow]:
    """Pass rows on; one whose reference answer cannot be verified against itself becomes a malformed one.

    Math: by the rules and by math-verify. Multiple choice: the reference must be one of the options.

    Args:
        category: of rows that name none themselves.
        judged: whether a judge reads the math references that no rule can.
    """
    rows = iter(rows)
    checker = ReferenceChecker(os.cpu_count() or 1, judged=judged)
    try:
        while block := list(islice(rows, BLOCK)):
            wrong = checker.unusable(_math_references(block, category))
            for row in block:
                reason = _what_is_wrong(row, wrong, category) if isinstance(row, RawRow) else None
                yield _bad(row, reason) if isinstance(row, RawRow) and reason else row
    finally:
        checker.close()


def _math_references(block: list[RawRow | MalformedRow], category: str) -> Iterator[str]:
    for row in block:
        if isinstance(row, RawRow) and (row.category or category) == "math" and row.reference_answer is not None:
            yield row.reference_answer


def _what_is_wrong(row: RawRow, wrong: dict[str, str], category: str) -> str | None:
    if row.reference_answer is None:
        return None
    if row.options is not None:
        found = correct_option(row.reference_answer, list(row.options))
        return "it is none of the options" if found is None else None
    return wrong.get(row.reference_answer) if (row.category or category) == "math" else None


def _bad(row: RawRow, reason: str) -> MalformedRow:
    record = row.record or Record({}, row.place, row.number, raw=row.text.encode())
    return refused(record, BAD_GOLD, f"reference answer {row.reference_answer!r:.100}: {reason}")
