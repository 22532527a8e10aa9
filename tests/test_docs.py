"""What the pages say beside their code: tables of arguments, pictures of states, links."""

from __future__ import annotations

import ast
import importlib
import inspect
import tomllib
from typing import TYPE_CHECKING

import pytest

from resilience.machines.breaker import TRANSITIONS
from tests.documents import PAGES, ROOT, arguments, links
from tools.diagrams import DIAGRAMS, drawn, edge_table
from webhook_adapter.model import DeliveryState

if TYPE_CHECKING:
    from pathlib import Path

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


def test_the_breaker_s_picture_and_page_show_every_transition() -> None:
    """The edges of the picture, and the table below it, are the machine's own."""
    assert {(edge.start, edge.end): edge.label for edge in DIAGRAMS["breaker"].edges} == {
        (old.value, new.value): why for (old, new), why in TRANSITIONS.items()
    }
    assert edge_table("breaker") in (ROOT / "docs" / "circuit-breaker.md").read_text(encoding="utf-8")


def test_the_limiter_s_page_shows_its_picture_s_table() -> None:
    """What the numbers of the picture mean is told below it."""
    assert edge_table("limiter") in (ROOT / "docs" / "adaptive-limiter.md").read_text(encoding="utf-8")


def test_the_states_of_a_key_are_explained() -> None:
    """Its page has the table that belongs to the picture."""
    assert edge_table("keyed") in (ROOT / "docs" / "keyed.md").read_text(encoding="utf-8")


def test_the_delivery_s_picture_and_page_show_every_state() -> None:
    """No state of a delivery is missing from the picture."""
    assert {node.name for node in DIAGRAMS["delivery"].nodes} == {state.value for state in DeliveryState}
    assert edge_table("delivery") in (ROOT / "docs" / "webhooks.md").read_text(encoding="utf-8")


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
