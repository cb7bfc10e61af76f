"""Write docs/config.md, or with --check only compare it; see `repsearch.config.reference`."""

from __future__ import annotations

import sys
from pathlib import Path

from repsearch.config.reference import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "config.md"

if __name__ == "__main__":
    raise SystemExit(main([str(PAGE), *sys.argv[1:]]))
