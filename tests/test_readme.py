"""Every piece of code on the pages runs as it stands there, and prints what the page says it prints."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import anyio.to_thread
import pytest
import redis

from tests.documents import PAGES, ROOT, blocks, commands

if TYPE_CHECKING:
    from pathlib import Path

    from tests.documents import Block

RUN = {"python"}
READ = {"console", "json", "text", "toml"}

COMMANDS = sorted({command for page in PAGES for command in commands(page)})
# What a newcomer types that is not ours to check.
OTHERS = ("cd ", "curl ", "git clone ")


def pages_with(language: str) -> list[Path]:
    """List the pages that have a block of that language."""
    return [page for page in PAGES if any(block.language == language for block in blocks(page))]


def empty_server(url: str) -> str:
    """Empty the server, since the pages know what is there: nothing."""
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


async def run(block: Block, page: Path, namespace: dict[str, object]) -> None:
    """Run one block: what must not run in an event loop in a thread, anything else here, awaits included."""
    # Lines are counted as on the page, so that a traceback points there.
    code = compile(
        "\n" * (block.line - 1) + block.code, page.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
    )
    if any(call in block.code for call in ("anyio.run(", "every_cancel_point(", "explore_program(")):
        await anyio.to_thread.run_sync(exec, code, namespace)
    elif code.co_flags & inspect.CO_COROUTINE:
        await eval(code, namespace)  # noqa: S307 - our own pages
    else:
        exec(code, namespace)  # noqa: S102 - as above


@pytest.mark.anyio
@pytest.mark.parametrize("page", pages_with("python"), ids=lambda page: page.stem)
async def test_the_code_of_a_page_runs_and_prints_what_it_says(
    page: Path,
    tmp_path: Path,
    *,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """The blocks of a page run one after the other, as a reader would type them, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    if any("REDIS_URL" in block.code for block in blocks(page)):
        monkeypatch.setenv("REDIS_URL", empty_server(request.getfixturevalue("redis_url")))
    namespace: dict[str, object] = {"__name__": "page"}

    for block in blocks(page):
        if block.language in RUN:
            await run(block, page, namespace)
            printed = capsys.readouterr().out
            if block.output is not None or printed:
                assert printed == block.output, f"{page.name}:{block.line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_block_is_of_a_kind_that_nothing_checks(page: Path) -> None:
    """A block whose language is neither run nor read here would rot unseen."""
    assert {block.language for block in blocks(page)} <= RUN | READ


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configuration_on_a_page_can_be_read(page: Path) -> None:
    """TOML and JSON blocks are valid."""
    for block in blocks(page):
        if block.language == "toml":
            tomllib.loads(block.code)
        elif block.language == "json":
            json.loads(block.code)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_a_page_exists(command: str) -> None:
    """Targets, extras, modules, subcommands and their options are those that there are."""
    program, *rest = command.split()
    if program == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        assert {word for word in rest if word.isalpha() and word.islower()} <= targets
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        named = re.search(r'"(?P<name>[\w.]+)(?:\[(?P<extras>[\w,]+)\])?"', command)
        assert named is not None
        assert named["name"] in {project["name"], "."}
        assert set((named["extras"] or "").split(",")) - {""} <= set(project["optional-dependencies"])
    elif program == "python":
        assert rest[0] == "-m"
        assert importlib.util.find_spec(rest[1]) is not None
    elif program == "webhook-adapter":
        shown = subprocess.run(
            [sys.executable, "-m", "webhook_adapter", *rest[:1], "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert {word for word in rest if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", shown))
    elif "=" in program:
        test_a_command_on_a_page_exists(" ".join(rest))
    else:
        assert command.startswith(OTHERS) or (ROOT / program).is_file(), f"nothing checks {command!r}"
