"""The judge of mutants: what a mutant changes, and which survivors are explained."""

from __future__ import annotations

import pytest

from tools.mutants import EXPLANATIONS, Change, changes, explained

DIFF = """# resilience.machines.sampling.xǁSamplerǁ__init____mutmut_4: survived
--- resilience/machines/sampling.py
+++ resilience/machines/sampling.py
@@ -1,4 +1,4 @@
 def __init__(self, one_in: int) -> None:
-    self._chosen = 0
+    self._chosen = None
"""


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("resilience.machines.sampling.xǁSamplerǁ__init____mutmut_4", "sampling.Sampler.__init__"),
        ("resilience.machines.backoff.x__share__mutmut_9", "backoff._share"),
        ("resilience.machines.retrying.x_decide__mutmut_11", "retrying.decide"),
    ],
)
def test_change_is_told_without_the_number_of_its_mutant(name: str, function: str) -> None:
    """Numbers move with every line that is added; the line itself stays."""
    assert changes(name, DIFF) == Change(function, "self._chosen = 0", "self._chosen = None")


def test_name_that_is_none_of_a_mutant_is_refused() -> None:
    """A new form of mutmut's output is an error rather than a mutant less."""
    with pytest.raises(ValueError, match="name"):
        changes("resilience.machines.sampling", DIFF)


@pytest.mark.parametrize("told", ['"XXfloatXX"', '"FLOAT"', "None"])
def test_what_a_cast_is_told_is_not_looked_at(told: str) -> None:
    """Only type checkers read it; what is cast is another matter."""
    line = 'limit = cast("float", limit)'
    assert not Change("f", line, f"limit = cast({told}, limit)").is_real
    assert Change("f", line, 'limit = cast("float", None)').is_real
    assert Change("f", line, "limit = None").is_real


def test_committed_explanations_can_be_read() -> None:
    """Each has its change and its reason."""
    assert all(explained(EXPLANATIONS.read_text(encoding="utf-8")).values())


@pytest.mark.parametrize("reasons", [("Equal.", "Equal."), (" ",)])
def test_explanation_is_given_once_and_says_something(reasons: tuple[str, ...]) -> None:
    """An empty or a second one is a mistake."""
    entries = [f'[[mutant]]\nfunction = "f"\nline = "a"\nmutant = "b"\nreason = "{reason}"\n' for reason in reasons]
    with pytest.raises(ValueError, match="explained once"):
        explained("".join(entries))
