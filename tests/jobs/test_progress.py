"""What `deepdistill run` shows while it works: lines when piped, bars in a terminal."""

import io

import pytest

from jobs.progress import PlainProgress, TerminalProgress, progress_on

ASSETS = [("queries", "raw_queries", 2), ("responses", "responses", 3)]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def walk(progress, seconds=6.0):
    """One fresh asset, then one with three partitions to make."""
    progress.started(ASSETS)
    progress.asset("raw_queries", 2, [])
    keys = ["a|t", "b|t", "c|t"]
    progress.asset("responses", 3, [(key, "missing") for key in keys])
    for key in keys:
        progress.partition_started("responses", key)
        progress.message(f"asking for {key}")
        yield key
        progress.partition_done("responses", key, seconds)
    progress.close()


@pytest.mark.parametrize(("stream", "face"), [(io.StringIO(), PlainProgress), (Terminal(), TerminalProgress)])
def test_a_terminal_gets_bars_and_a_pipe_gets_lines(stream, face):
    progress = progress_on(stream)
    progress.close()
    assert type(progress) is face


def test_a_pipe_reads_stage_partitions_rate_and_what_is_left():
    stream = io.StringIO()
    list(walk(PlainProgress(stream, every=0.0)))
    lines = [" ".join(line.split(" s  ", 1)[1].split()) for line in stream.getvalue().splitlines()]
    assert lines[0] == "2 assets, 5 partitions"
    assert lines[1] == "queries raw_queries 2 fresh"
    assert "responses: asking for a|t" in lines
    assert "responses responses 1/3 a|t 6.0 s, 6.0 s each, about 12.0 s left" in lines
    assert lines[-1] == "responses responses 3 made in 18.0 s"
    assert "\x1b" not in stream.getvalue()


def test_partitions_that_are_quick_are_one_line_together():
    stream = io.StringIO()
    list(walk(PlainProgress(stream, slow=5.0, every=60.0), seconds=0.1))
    assert len(stream.getvalue().splitlines()) == 3


def test_a_terminal_shows_stage_partitions_rate_and_what_is_left():
    stream = Terminal()
    progress = TerminalProgress(stream)
    progress.progress.console.width = 160
    for key in walk(progress):
        progress.partition_started("responses", key)
        progress.progress.refresh()
    shown = stream.getvalue()
    for text in ("all partitions", "responses", "1/3", "4/5", "6.0 s each, about 12.0 s left", "3 made in 18.0 s"):
        assert text in shown, text
