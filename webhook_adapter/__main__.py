"""`webhook-adapter`, and `python -m webhook_adapter`: the command line, if what it needs is installed.

Rules of this module: it imports the command line and nothing else, so that it can say what is missing.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

_NEEDED = ("cyclopts", "rich")


def main() -> int:
    """Run the command line with the arguments of this process; return its exit code."""
    try:
        from webhook_adapter.cli import main as run
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing not in _NEEDED:
            raise
        print(f"The command line needs {missing}: pip install 'stormguard[cli]'.", file=sys.stderr)
        return 1
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
