"""The pytest plugin, in sessions of pytest of its own."""

from __future__ import annotations

import re
import shlex

import pytest

TESTS = """
import anyio.lowlevel
import pytest
from resilience.testing import explore


@explore(schedules=100)
async def test_passes():
    await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("tasks", [1, 2])
@explore(schedules=200)
async def test_increments(tasks):
    count = 0

    async def increment(number):
        nonlocal count
        for _ in range(3 * number):
            await anyio.lowlevel.checkpoint()
        seen = count
        await anyio.lowlevel.checkpoint()
        count = seen + 1

    async with anyio.create_task_group() as group:
        for number in range(tasks):
            group.start_soon(increment, number)
    assert count == tasks


def test_unlike_those():
    pass
"""


@pytest.fixture
def tests(pytester: pytest.Pytester) -> pytest.Pytester:
    """Write the tests down; load the plugin by its module, so that it need not be installed."""
    pytester.makepyfile(TESTS)
    pytester.makeini("[pytest]\naddopts = -p no:resilience -p resilience.testing.plugin -p no:randomly")
    return pytester


def test_what_was_covered_is_told(tests: pytest.Pytester) -> None:
    """In one line at the end; where there are no such tests, in none."""
    done = tests.runpytest_inprocess("-k", "passes or unlike")
    done.assert_outcomes(passed=2)
    done.stdout.re_match_lines(
        [r"-* explored in 1 test: 100 schedules, \d+ distinct, 100 histories, seed 0, a sample -*"]
    )
    none = tests.runpytest_inprocess("-k", "unlike")
    none.assert_outcomes(passed=1)
    none.stdout.no_fnmatch_line("*explored*")


def test_a_failure_prints_one_command_that_replays_it(tests: pytest.Pytester) -> None:
    """The command runs that very schedule, which fails in the same way, with the same steps."""
    done = tests.runpytest_inprocess("-k", "increments")
    done.assert_outcomes(passed=1, failed=1)
    text = done.stdout.str()
    (command,) = set(re.findall(r"^E? *(pytest .*)$", text, re.MULTILINE))
    program, *arguments = shlex.split(command)
    assert program == "pytest"
    assert arguments[0].endswith(".py::test_increments[2]")

    again = tests.runpytest_inprocess(*arguments)
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(["*explored in 1 test: 1 schedules, 1 distinct, 1 histories, a sample*"])
    assert _steps(again.stdout.str()) == _steps(text)
    assert len(_steps(text)) > 3


def _steps(output: str) -> list[str]:
    return re.findall(r"^\d+\. .* at [\d.e+]+ s$", output, re.MULTILINE)


def test_the_command_is_for_the_folder_that_pytest_was_started_in(
    tests: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that leads nowhere helps nobody."""
    folder = tests.mkdir("else where")
    monkeypatch.chdir(folder)
    done = tests.runpytest_inprocess("..", "-k", "increments")
    done.stdout.re_match_lines([r".*pytest '\.\./test_\w+\.py::test_increments\[2\]' --explore-replay=[\d:,]+$"])


def test_options_change_how_much_is_explored(tests: pytest.Pytester) -> None:
    """The number of schedules and their seed, for a long run at night."""
    done = tests.runpytest_inprocess("-k", "passes", "--explore-schedules=7", "--explore-seed=3")
    done.stdout.re_match_lines([r"-* explored in 1 test: 7 schedules, \d+ distinct, 7 histories, seed 3, a sample -*"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--explore-schedules=0", "ERROR: --explore-schedules must be a whole number from 1 on, not '0'"),
        ("--explore-seed=x", "ERROR: --explore-seed must be a whole number from 0 on, not 'x'"),
        ("--explore-replay=x", "ERROR: --explore-replay: a schedule must be random:SEED, *, not 'x'"),
    ],
)
def test_a_bad_option_is_refused_at_once(tests: pytest.Pytester, option: str, message: str) -> None:
    """Before any test has run."""
    done = tests.runpytest_inprocess(option)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([message])
