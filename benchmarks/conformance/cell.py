"""Cells of the board, in a process of their own: `python -m benchmarks.conformance.cell LIBRARY CASE...`.

The library is the name of an adapter's module, or "module:NAME" of another. For each case one line of JSON is printed.
Where it does not come to that, whoever started the process knows what that means.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING

from benchmarks.conformance import virtual

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.conformance.case import Verdict
    from benchmarks.conformance.library import Library

__all__ = ["judge", "main"]

# Nothing here may import a library, or the cases, before the clock is replaced.


def find(name: str) -> Library:
    """Return the adapter that is called so."""
    module, _, attribute = name.partition(":")
    found: Library = getattr(
        import_module(module if attribute else f"benchmarks.conformance.libraries.{module}"), attribute or "LIBRARY"
    )
    return found


def judge(library: Library, case_id: str) -> tuple[Verdict, str]:
    """Run a case against a library, and return the verdict and what was seen."""
    from benchmarks.conformance.case import Failed, Unprepared, Verdict
    from benchmarks.conformance.cases import CASES
    from benchmarks.conformance.library import Library, NotOffered

    Library.refused = None
    test = CASES[case_id].test
    verdict, note = Verdict.PASS, ""
    try:
        if inspect.iscoroutinefunction(test):
            virtual.run(test(library))
        else:
            test(library)
    except NotOffered:
        pass  # It is noted in the class, where a guard that replaces it cannot hide it.
    except Failed as reason:
        verdict, note = Verdict.FAIL, str(reason)
    except virtual.Stuck:
        verdict, note = Verdict.FAIL, "hangs: nothing is left that could go on"
    except Unprepared as reason:
        verdict, note = Verdict.ERROR, str(reason)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is to be shown
        verdict, note = Verdict.ERROR, f"{type(error).__name__}: {error}"
    if Library.refused is not None:
        return Verdict.NOT_OFFERED, Library.refused
    if verdict is Verdict.FAIL and case_id in library.documented:
        return Verdict.DOCUMENTED, f"{note}; {library.documented[case_id]}"
    return verdict, note


def main(arguments: Sequence[str]) -> int:
    """Judge, and print."""
    virtual.install()
    warnings.simplefilter("ignore")
    logging.disable()
    name, *case_ids = arguments
    library = find(name)
    for case_id in case_ids:
        verdict, note = judge(library, case_id)
        print("\n" + json.dumps({"case": case_id, "verdict": verdict.value, "note": note}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
