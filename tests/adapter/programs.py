"""Running the project's programs as a user does: in a process of their own, with nothing of the tests about them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["ROOT", "environment", "webhook_adapter"]

ROOT = Path(__file__).parent.parent.parent
_WITHIN = 50.0


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which the packages of this tree are found, from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **more}


def webhook_adapter(
    *arguments: str | Path,
    cwd: Path,
    stdin: str | bytes = "",
    within: float = _WITHIN,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end and return what it printed."""
    given = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [sys.executable, "-m", "webhook_adapter", *map(str, arguments)],
        cwd=cwd,
        env=environment() if env is None else env,
        input=given,
        capture_output=True,
        check=False,
        timeout=within,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
