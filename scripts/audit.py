"""Whether a library that we need has a known vulnerability: `pip-audit` over what is installed, its answer taken at its word.

Exit code 1 for a vulnerability that `[tool.audit.accepted]` of pyproject.toml does not explain. Without a way to the vulnerability service
nothing can be said: that is printed, and the exit code is 0, so that checks can be run offline.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
COMMAND = (sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--format", "json", "--progress-spinner", "off")
WITHIN_S = 300
ELSEWHERE = "run `make audit` where the vulnerability service of pip-audit can be reached"


def main(command: Sequence[str] = COMMAND, pyproject: Path = PYPROJECT) -> int:
    """Audit, print what was found, and return the exit code."""
    accepted = tomllib.loads(pyproject.read_text()).get("tool", {}).get("audit", {}).get("accepted", {})
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
        libraries = json.loads(answer.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        print(f"libraries were NOT audited: pip-audit gave no answer ({type(error).__name__}); {ELSEWHERE}")
        return 0
    return judge(libraries, accepted)


def judge(libraries: Sequence[Mapping[str, Any]], accepted: Mapping[str, str]) -> int:
    """Print what `pip-audit` found, and return the exit code."""
    audited = [library for library in libraries if "skip_reason" not in library]
    found = [(library, fault) for library in audited for fault in library["vulns"]]
    open_ = [(library, fault) for library, fault in found if not {fault["id"], *fault.get("aliases", [])} & set(accepted)]
    for library, fault in open_:
        fixed = ", ".join(fault.get("fix_versions", [])) or "no version yet"
        text = " ".join(fault.get("description", "").split())[:300]
        print(f"{library['name']} {library['version']}: {fault['id']}, fixed in {fixed}: {text}")
    if libraries and not audited:
        print(f"libraries were NOT audited: the vulnerability service knows none of {len(libraries)}; {ELSEWHERE}")
    else:
        print(f"{len(audited)} of {len(libraries)} libraries audited: {len(open_)} vulnerabilities, {len(found) - len(open_)} accepted")
    return 1 if open_ else 0


if __name__ == "__main__":
    raise SystemExit(main())
