"""The pytest plugin: options for tests that are decorated with `explore`, and what they covered.

Rules of this module: it changes no test but those. Figures travel with the reports of the tests, so that they arrive
from wherever the tests have run.
"""

from __future__ import annotations

import itertools
import os
import shlex
from typing import TYPE_CHECKING

import attrs
import pytest

from resilience.testing.exploring import Session, read, session
from resilience.testing.report import Report

if TYPE_CHECKING:
    from collections.abc import Generator

__all__: list[str] = []

_PROPERTY = "explored"


def _number(config: pytest.Config, option: str, least: int) -> int | None:
    text = config.getoption(option)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < least:
        msg = f"{option} must be a whole number from {least} on, not {text!r}"
        raise pytest.UsageError(msg)
    return int(text)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("explore", "tests under many schedules (resilience.testing.explore)")
    group.addoption("--explore-schedules", metavar="N", help="run so many schedules for each such test")
    group.addoption("--explore-seed", metavar="N", help="draw schedules from this seed")
    group.addoption(
        "--explore-replay", metavar="SCHEDULE", help="run this schedule and no other, as a failure tells it"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read the options, so that a bad one ends everything before it has begun."""
    _asked(config)


def _asked(config: pytest.Config) -> Session:
    word = config.getoption("--explore-replay")
    try:
        replay = None if word is None else read(word)
    except ValueError as error:
        raise pytest.UsageError(f"--explore-replay: {error}") from None
    return Session(
        replay=replay,
        schedules=_number(config, "--explore-schedules", 1),
        seed=_number(config, "--explore-seed", 0),
    )


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Let a test know what is asked for, and where to tell."""

    def covered(report: Report) -> None:
        pyfuncitem.user_properties.append((_PROPERTY, attrs.asdict(report)))

    def failed(steps: str) -> None:
        pyfuncitem.add_report_section("call", "schedule", steps)

    def command(word: str) -> str:
        return shlex.join(["pytest", _from_here(pyfuncitem), f"--explore-replay={word}"])

    asked = attrs.evolve(_asked(pyfuncitem.config), command=command, covered=covered, failed=failed)
    token = session.set(asked)
    try:
        return (yield)
    finally:
        session.reset(token)


def _from_here(item: pytest.Function) -> str:
    """Return the name of a test as it has to be written where pytest was started."""
    file, separator, rest = item.nodeid.partition("::")
    here = item.config.invocation_params.dir
    return f"{os.path.relpath(item.config.rootpath / file, here)}{separator}{rest}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was covered."""
    tests: set[str] = set()
    reports: list[Report] = []
    for outcome in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if getattr(outcome, "when", "") == "call":
            found = [Report(**figures) for name, figures in outcome.user_properties if name == _PROPERTY]
            reports += found
            tests |= {outcome.nodeid} if found else set()
    if reports:
        name = f"explored in {len(tests)} test{'s' if len(tests) > 1 else ''}"
        terminalreporter.write_sep("-", str(Report.total(name, reports)))
