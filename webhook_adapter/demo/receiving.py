"""The receivers' process: the receiver of `webhook_adapter.testing`, ended with its parent."""

from __future__ import annotations

import sys

from webhook_adapter.demo.children import end_with_parent
from webhook_adapter.testing.receiver import main

__all__: list[str] = []

if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
