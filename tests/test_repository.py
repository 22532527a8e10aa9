"""What the repository's files must not say: where packages come from is the business of whoever installs them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MADE = {
    ".git",
    ".venv",
    ".venvs",
    "mutants",
    ".cache",
    ".hypothesis",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "__pycache__",
    "site",
}

# Written in pieces, so that this file does not name them either.
HOSTS = tuple(
    ".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("npmjs", "com"))
)
INDEX = re.compile("|".join(re.escape(host) for host in HOSTS), re.IGNORECASE)
# A requirements file has no business with any address at all, nor with an option that takes one.
ADDRESS = re.compile(r"://|^\s*(?:-i|-f|--(?:extra-)?index-url|--find-links|--trusted-host)\b", re.MULTILINE)
PINNED = re.compile(r"^[a-z0-9][a-z0-9._-]*==[^\s;]+(?: ; [^\\]+)? \\$")


def repository_files() -> list[Path]:
    """List what is or would be committed; outside a git checkout, everything that no tool has made."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not MADE.intersection(path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file()]


def names_an_index(path: Path) -> bool:
    """Tell whether a file names a package index; a requirements file may name no address whatever."""
    text = path.read_text(encoding="utf-8", errors="replace")
    in_requirements = path.parent.name == "requirements" or path.name.startswith("requirements")
    return bool(INDEX.search(text) or (in_requirements and ADDRESS.search(text)))


def test_no_file_names_a_package_index() -> None:
    """The project installs from whatever index a machine is set up with, and ships no other opinion."""
    files = repository_files()

    assert ROOT / "pyproject.toml" in files
    assert [path for path in files if names_an_index(path)] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("README.md", f"see https://{HOSTS[0]}/project/x", id="host"),
        pytest.param("uv.toml", f"url = 'https://files.{HOSTS[1].upper()}/x.whl'", id="download-host"),
        pytest.param("requirements/dev.txt", "--index-url http://localhost/simple\n", id="option"),
        pytest.param("requirements/dev.txt", "a==1\n-i internal\n", id="short-option"),
        pytest.param("requirements/run.txt", "x @ git+ssh://host/x\n", id="address"),
    ],
)
def test_a_named_package_index_is_found(tmp_path: Path, name: str, text: str) -> None:
    """The guard sees hosts in any file, and options and addresses in requirements."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")

    assert names_an_index(path)


@pytest.mark.parametrize("name", ["run", "dev"])
def test_every_requirement_is_pinned_with_hashes(name: str) -> None:
    """Each line that is no comment is a pin, continued by at least one hash."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    entries = [number for number, line in enumerate(lines) if line and not line.startswith((" ", "#"))]

    assert entries
    assert [lines[number] for number in entries if not PINNED.match(lines[number])] == []
    assert [lines[number] for number in entries if "--hash=sha256:" not in lines[number + 1]] == []


def test_what_the_packages_need_is_pinned_as_for_the_tests() -> None:
    """run.txt is part of dev.txt, or one environment could not serve both."""

    def pins(name: str) -> set[str]:
        text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
        return set(re.findall(r"^[a-z0-9][a-z0-9._-]*==[^\s;]+", text, re.MULTILINE))

    assert pins("run.txt") - pins("dev.txt") == set()
