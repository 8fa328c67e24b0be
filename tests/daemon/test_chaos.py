"""Three small schedules of chaos.py; twenty whole ones are run by hand (see there)."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_a_backfill_under_chaos_ends_as_if_nothing_had_happened(tmp_path, monkeypatch, seed):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "jobs"))
    from chaos import SMALL, VARIABLES, play

    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # put back after the test
    play(tmp_path / "home", seed, assets=SMALL, sources="a", faults=2)
