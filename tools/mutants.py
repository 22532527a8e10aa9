"""Change the machines a line at a time, and see whether a test notices: `make mutate`.

mutmut makes the changes and runs the tests that reach each. This program asks for its verdicts and holds the survivors
against tests/mutants.toml, which explains those that no test can tell from the original, or need not. Any other
survivor is a hole in the tests, and the program fails. An explanation that no survivor needs any more fails it too.

    make mutate                                     all of them
    make mutate ARGS='resilience.machines.limits*'  some
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import attrs

__all__ = ["Change", "changes", "explained", "main"]

EXPLANATIONS = Path("tests/mutants.toml")
# What mutmut calls a mutant that no test has noticed, one way or another. A test that never ended has noticed.
UNNOTICED = {"survived", "no tests", "suspicious", "not checked"}
# What `cast` is told is for type checkers alone: no test can notice a change of it.
_TOLD_TO_CAST = re.compile(r'\bcast\((?:"[^"]*"|None), ')
_NAME = re.compile(r"(?P<module>[\w.]+)\.x(?:ǁ(?P<cls>\w+)ǁ|_)(?P<function>\w+)__mutmut_\d+")


@attrs.frozen
class Change:
    """One line of one function, as it is and as the mutant has it. The number of a mutant changes with the code."""

    function: str
    line: str
    mutant: str

    @property
    def is_real(self) -> bool:
        """Whether anything is changed that is ever looked at."""
        return _TOLD_TO_CAST.sub("", self.line) != _TOLD_TO_CAST.sub("", self.mutant)

    def __str__(self) -> str:
        return f"{self.function}\n      {self.line}\n   -> {self.mutant}"


def changes(name: str, diff: str) -> Change:
    """Return what a mutant changes, of its name and of the difference that mutmut shows."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"name must be one that mutmut gives, not {name!r}")
    module, cls, function = found["module"].removeprefix("resilience.machines."), found["cls"], found["function"]
    lines = diff.splitlines()
    removed = " ".join(line[1:].strip() for line in lines if line.startswith("-") and not line.startswith("---"))
    added = " ".join(line[1:].strip() for line in lines if line.startswith("+") and not line.startswith("+++"))
    return Change(".".join(filter(None, (module, cls, function))), removed, added)


def explained(text: str) -> dict[Change, str]:
    """Return the explanations in a TOML text, by change."""
    reasons: dict[Change, str] = {}
    for entry in tomllib.loads(text)["mutant"]:
        change = Change(entry["function"], entry["line"], entry["mutant"])
        if change in reasons or not entry["reason"].strip():
            raise ValueError(f"each change must be explained once, not {change}")
        reasons[change] = entry["reason"]
    return reasons


def _mutmut(*arguments: str, show: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments], check=False, text=True, stdout=None if show else subprocess.PIPE
    )
    if done.returncode:
        raise SystemExit(f"mutmut {' '.join(arguments)} failed")
    return "" if show else done.stdout


def _verdicts() -> dict[str, str]:
    """Return mutmut's verdict on each mutant, by name."""
    pairs = (line.strip().rsplit(": ", 1) for line in _mutmut("results", "--all", "true").splitlines() if ": " in line)
    return {name: verdict for name, verdict in pairs if _NAME.fullmatch(name)}


def main(arguments: list[str]) -> int:
    """Run mutmut on the machines, or on the mutants named, and judge the survivors; return the exit status."""
    _mutmut("run", *arguments, show=True)
    verdicts = _verdicts()
    reasons = explained(EXPLANATIONS.read_text(encoding="utf-8"))
    survivors = [
        changes(name, _mutmut("show", name))
        for name, verdict in verdicts.items()
        if verdict in UNNOTICED and not (arguments and verdict == "not checked")
    ]
    for verdict, count in Counter(verdicts.values()).most_common():
        print(f"{count:6} {verdict}")
    holes = [change for change in survivors if change.is_real and change not in reasons]
    print(
        f"{len(survivors) - len(holes):6} of the unnoticed are explained, in {EXPLANATIONS} or as what a cast is told"
    )
    for change in holes:
        print(f"NOT NOTICED  {change}")
    idle = [] if arguments else [change for change in reasons if change not in survivors]
    for change in idle:
        print(f"NEEDS NO EXPLANATION  {change}")
    return 1 if holes or idle else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
