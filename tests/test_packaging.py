"""What an installation gets: the wheel's contents, its metadata, and the public names of both packages."""

from __future__ import annotations

import email
import importlib
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).parent.parent
PACKAGES = ("resilience", "webhook_adapter")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as a release would, with the pinned build backend."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(build, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """Read the metadata that an installer sees."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    """Every module of the tree is in the wheel, typed, and no test or tool is."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}

    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".py", ".lua"}
    }
    assert expected - names == set()
    assert {f"{package}/py.typed" for package in PACKAGES} - names == set()
    assert {name.split("/")[0] for name in names} == set(PACKAGES)


def test_the_wheel_carries_its_license(wheel: Path) -> None:
    """The MIT licence asks to be passed on with every copy."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/licenses/LICENSE"))
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


def test_pytest_finds_the_plugin(wheel: Path) -> None:
    """Who installs the package has `--explore-replay` and the like, and nothing to configure."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        points = archive.read(name).decode()

    assert "[pytest11]\nresilience = resilience.testing.plugin" in points


def test_the_core_needs_few_libraries(metadata: Message) -> None:
    """Whatever is not needed by everybody is an extra."""
    core = {entry.split(">")[0] for entry in metadata.get_all("Requires-Dist", []) if "extra ==" not in entry}

    assert core == {"anyio", "attrs", "httpcore", "httptools", "httpx", "sqlalchemy"}


def test_the_extras_are_the_promised_ones(metadata: Message) -> None:
    """The names under which users and documents ask for more."""
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "all", "bench", "cli", "dev", "docs", "ed25519", "mutate", "otel", "peers", "postgres", "prometheus", "redis",
        "server",
    }  # fmt: skip


def test_all_means_every_extra_of_the_library() -> None:
    """`all` names each extra that adds to the packages; those of our own workshop are not among them."""
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]

    named = set(everything.removeprefix("stormguard[").removesuffix("]").split(","))

    assert named == set(extras) - {"all", "bench", "dev", "docs", "mutate", "peers"}


def test_the_version_is_told_in_the_changelog() -> None:
    """A version that is built has an entry."""
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package: str) -> None:
    """What a package promises in `__all__` can be imported from it."""
    module = importlib.import_module(package)

    assert [name for name in module.__all__ if not hasattr(module, name)] == []
