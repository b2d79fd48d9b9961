"""Good input is taken, damaged input is refused in one line, nothing hangs: a share here, all cases under `slow`."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from anomaly_lib.systems.registry import SYSTEMS
from tests.fuzz.detectors import QUICK, loaded
from tests.fuzz.kinds import long_cases, quick_cases, reader_cases, share
from tests.fuzz.oracle import Case, judge

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and names of POSIX")


def wrong(cases: Iterable[Case], folder: Path) -> list[str]:
    """A line for each case that did not come out right."""
    found = []
    for number, case in enumerate(cases):
        (folder / str(number)).mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders warn of what they are handed
            verdict = judge(case, folder / str(number))
        if verdict:
            found.append(f"{case.kind}: {case.name} ({case.expect}): {verdict}")
    return found


def test_a_share_of_what_readers_are_handed(tmp_path: Path) -> None:
    assert wrong(share(reader_cases(), 240), tmp_path) == []


def test_a_share_of_what_programs_and_detectors_are_handed(tmp_path: Path) -> None:
    trained_first(QUICK)
    assert wrong(share(quick_cases(), 60), tmp_path) == []


@pytest.mark.slow
def test_everything_that_readers_are_handed(tmp_path: Path) -> None:
    assert wrong(reader_cases(), tmp_path) == []


@pytest.mark.slow
def test_everything_that_programs_and_detectors_are_handed(tmp_path: Path) -> None:
    trained_first(tuple(SYSTEMS))
    assert wrong([*quick_cases(), *long_cases()], tmp_path) == []


def trained_first(systems: Iterable[str]) -> None:
    """Train what cases share before the watchdog counts."""
    for system in systems:
        loaded(system)


def test_cases_are_many_and_distinct() -> None:
    cases = [*reader_cases(), *quick_cases(), *long_cases()]
    assert len(cases) >= 4000
    page = Path(__file__).resolve().parents[2] / "docs" / "manual" / "reliability.md"
    assert f"{len(cases):,} seeded cases" in page.read_text(encoding="utf-8")
    assert max(Counter((case.kind, case.name) for case in cases).values()) == 1
    either = sum(case.expect == "either" for case in cases)
    assert either < 0.1 * len(cases)  # nearly every case knows what must become of it
