"""What the pages say beside their code: tables of arguments, pictures of states, links."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from typing import TYPE_CHECKING

import pytest

import resilience
from resilience import Layer
from resilience.machines.breaker import TRANSITIONS
from tests.documents import PAGES, ROOT, arguments, links
from tools.diagrams import DIAGRAMS, drawn, edge_table
from webhook_adapter.model import DeliveryState

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = sorted(
    {
        *(
            f"resilience.{name}"
            for name in resilience.__all__
            if isinstance(kind := getattr(resilience, name), type) and issubclass(kind, Layer)
        ),
        "resilience.AsyncGuardedDeque",
        "resilience.Keyed",
        "resilience.testing.Chaos",
    }
    # What others derive from, and what an AdaptiveLimiter makes of itself.
    - {"resilience.Layer", "resilience.Guard", "resilience.Strategy", "resilience.LimiterShare"}
)
DOCUMENTED = [(page, name, rows) for page in PAGES for name, rows in arguments(page)]


@pytest.mark.parametrize(("page", "name", "rows"), DOCUMENTED, ids=[name for _, name, _ in DOCUMENTED])
def test_a_table_of_arguments_is_the_signature(page: Path, name: str, rows: dict[str, str]) -> None:
    """Every argument is in the table, in order, with its default; nothing else is."""
    module, _, attribute = name.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters.values()

    assert list(rows) == [
        f"*{each.name}" if each.kind is inspect.Parameter.VAR_POSITIONAL else each.name for each in parameters
    ]
    for each in parameters:
        written = rows[each.name] if each.name in rows else rows[f"*{each.name}"]
        if each.default is inspect.Parameter.empty:
            assert not written.startswith("`"), f"{each.name} has no default"
        else:
            assert _says(written, each.default), f"{each.name}: {written} is not {each.default!r}"


def _says(written: str, default: object) -> bool:
    """Tell whether a cell says what a default is; one that has no literal form may be told in words."""
    try:
        ast.literal_eval(repr(default))
    except (ValueError, SyntaxError):
        return bool(written)
    return written.startswith("`") and ast.literal_eval(written.strip("`")) == default


@pytest.mark.parametrize("name", sorted(DIAGRAMS))
def test_a_picture_is_drawn_from_its_table(name: str) -> None:
    """The committed picture is what `python -m tools.diagrams` draws today."""
    assert (ROOT / "docs" / "images" / f"{name}.svg").read_text(encoding="utf-8") == drawn(name)


@pytest.mark.parametrize("name", sorted(DIAGRAMS))
def test_a_picture_is_on_one_page_with_its_table_below(name: str) -> None:
    """What the numbers of a picture mean is told right after it, and with the words that it was drawn from."""
    (page,) = (text for text in map(_text, PAGES) if f"(images/{name}.svg)" in text)
    assert f"![{DIAGRAMS[name].title}](images/{name}.svg)\n\n{edge_table(name)}\n" in page


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_has_a_page_that_tells_the_same_of_each(layer: str) -> None:
    """What it is for, its use, a picture, its arguments, what it tells of itself, and when not to use it."""
    (page,) = (text for text in map(_text, PAGES) if f"\n<!-- arguments: {layer} -->\n" in text)
    assert re.search(r"^## What (it is|they are) for$", page, re.MULTILINE)
    assert re.search(r"^## When not to use (it|them)$", page, re.MULTILINE)
    assert {"## Use", "## Arguments", "## Telemetry"} <= set(page.splitlines())
    assert "](images/" in page or "## How a call goes\n\n```text\n" in page


def test_the_breaker_s_picture_shows_every_transition() -> None:
    """The edges of the picture are the machine's own."""
    assert {(edge.start, edge.end): edge.label for edge in DIAGRAMS["breaker"].edges} == {
        (old.value, new.value): why for (old, new), why in TRANSITIONS.items()
    }


def test_the_delivery_s_picture_shows_every_state() -> None:
    """No state of a delivery is missing from the picture."""
    assert {node.name for node in DIAGRAMS["delivery"].nodes} == {state.value for state in DeliveryState}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link into the project points at a file that exists."""
    for target in links(page):
        path = target.partition("#")[0]
        assert not path or (page.parent / path).exists(), target


def test_every_page_is_in_the_navigation() -> None:
    """A page that nobody can find is not written."""
    navigation = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]

    def pages(entries: list[object]) -> set[str]:
        found: set[str] = set()
        for entry in entries:
            if isinstance(entry, str):
                found.add(entry)
            elif isinstance(entry, dict):
                for value in entry.values():
                    found |= pages(value if isinstance(value, list) else [value])
        return found

    assert pages(navigation) == {page.name for page in PAGES if page.parent.name == "docs"}
