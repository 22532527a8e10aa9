"""Reading the project's pages: their code blocks, their tables of arguments, their links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PAGES", "ROOT", "Block", "arguments", "blocks", "commands", "links"]

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

_FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_MARKED_TABLE = re.compile(r"<!-- arguments: (?P<name>[\w.]+) -->\n\n(?P<rows>(?:\|.*\n)+)")
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")


@attrs.frozen
class Block:
    """One fenced block: its language, its text, the line that its text starts on, and what is said to be printed."""

    language: str
    code: str
    line: int
    output: str | None = None


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page; a `text` block right behind a `python` block is that one's output."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for match in _FENCE.finditer(text):
        language = match["language"]
        if language == "text" and found and found[-1].language == "python" and not text[end : match.start()].strip():
            found[-1] = attrs.evolve(found[-1], output=match["code"])
        else:
            found.append(Block(language, match["code"], text.count("\n", 0, match.start("code")) + 1))
        end = match.end()
    return found


def commands(page: Path) -> list[str]:
    """Return the commands that a page's console blocks show, without their prompts and comments."""
    return [
        line.removeprefix("$ ").partition("  #")[0].strip()
        for block in blocks(page)
        if block.language == "console"
        for line in block.code.replace("\\\n", " ").splitlines()
        if line.startswith("$ ")
    ]


def arguments(page: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the dotted name and the rows (argument to default, as written) of each marked table of a page."""
    for match in _MARKED_TABLE.finditer(page.read_text(encoding="utf-8")):
        _, _, *rows = match["rows"].splitlines()
        cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
        yield match["name"], {row[0].strip("`"): row[2] for row in cells}


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures that lie within the project."""
    without_code = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [match["target"] for match in _LINK.finditer(without_code) if "://" not in match["target"]]
