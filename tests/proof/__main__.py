"""`python -m tests.proof`."""

from __future__ import annotations

import sys

from tests.proof.proving import main

if __name__ == "__main__":
    sys.exit(main())
