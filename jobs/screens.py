"""What the command line prints, one screen per command."""

from collections.abc import Sequence

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deepdistill_assets.recipe import load_recipe, recipe_names
from deepdistill_assets.reports.story import Chapter
from jobs.doctor import Finding
from jobs.pin import Pins


def print_pins(console: Console, pins: Pins) -> None:
    """Print the commits that were written, and what the hub did not show."""
    for name, commit in pins.commits.items():
        console.print(f"{escape(name.repository)}@{escape(name.revision)}  [green]{commit}[/]")
    for reason in pins.refused.values():
        console.print(f"[red]not pinned[/]  {escape(reason)}")
    if pins.pinned_before:
        console.print(f"{pins.pinned_before} had a commit already.", style="dim")
    console.print(f"{len(pins.commits)} commits written to {escape(str(pins.file))}.")


def print_recipes(console: Console) -> None:
    """Print every recipe: what it is, what it needs, how big it is."""
    for name in recipe_names():
        recipe = load_recipe(name)
        counts = (
            f"{len(recipe.sources)} sources, {len(recipe.teachers)} teachers, {len(recipe.students)} students, "
            f"{len(recipe.evaluation.benchmarks)} benchmarks"
        )
        console.print(f"[bold]{name}[/]  {escape(recipe.title)}")
        console.print(f"    {counts}", style="dim")
        if recipe.needs:
            console.print(f"    needs: {escape(recipe.needs)}")


def print_matches(console: Console, found: pl.DataFrame, most: int = 20) -> None:
    """Print which queries match."""
    console.print(f"{found.height} queries match; name one of them:")
    for row in found.head(most).iter_rows(named=True):
        console.print(f"{row['query_id']}  {row['source']:<20} {escape(' '.join(row['query_text'].split())[:80])}")


def print_story(console: Console, query: dict, chapters: Sequence[Chapter]) -> None:
    """Print the story of one query."""
    console.print(f"[bold]query {query['query_id']}[/]")
    for chapter in chapters:
        first, *rest = chapter.lines or [""]
        console.print(f"[bold]{chapter.title:<21}[/] {escape(first)}")
        for line in rest:
            console.print(f"{'':<21} {escape(line)}")
        if chapter.table is not None:
            console.print(rich_table(chapter.table))


SHORT = {"pass_index": "pass", "completion_tokens": "tokens", "verify_score": "score", "perplexity": "ppl"}


def rich_table(frame: pl.DataFrame, width: int = 24) -> Table:
    """Return a frame as a table for the terminal; long cells are cut."""
    table = Table(box=None, pad_edge=True)
    for name in frame.columns:
        table.add_column(SHORT.get(name, name), no_wrap=True)
    for row in frame.iter_rows():
        table.add_row(*[escape(_cell(value)[:width]) for value in row])
    return table


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else " ".join(str(value).split())


def print_quarantine(console: Console, rows: pl.DataFrame, most: int = 20) -> None:
    """Print how many rows are malformed, by source and reason, and the first of them."""
    for source, reason, count in rows.group_by("source", "reason").len().sort("source", "reason").iter_rows():
        console.print(f"{source:<24} {escape(reason):<24} {count:>8,}")
    for row in rows.head(most).iter_rows(named=True):
        console.print(f"[bold]{escape(row['place'])}[/]  {escape(row['reason'])}: {escape(row['detail'][:160])}")
    if rows.is_empty():
        console.print("nothing is in quarantine.")


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print what `doctor` found, with a fix beside each failure."""
    for finding in findings:
        mark = "[green]ok  [/]" if finding.passed else "[bold red]FAIL[/]"
        console.print(f"{mark} {finding.what:<14} {escape(finding.found)}")
        if finding.fix:
            console.print(f"     {'':<14} fix: {escape(finding.fix)}")
