"""Make a table of evidence beside this file: `python -m benchmarks.evidence table1 --dataset mnist --images 3000`.

The same as `orchestrator reproduce`, with the results in `benchmarks/evidence`; the tables are defined in `orchestrator.evidence`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from orchestrator.cli import main

if __name__ == "__main__":
    sys.argv[1:] = ["reproduce", *sys.argv[1:], *(() if "--out" in sys.argv else ("--out", str(Path(__file__).parent)))]
    main()
