"""Orchestrators that start at once: processes forked from one that has imported everything, `python -m tests.forking CONFIG`.

Each line of stdin is a request {"arguments", "environment", "output"}, answered by two lines: the process id, then the exit code, negative
for the signal that ended it. The parent has no threads and never uses gRPC, which does not survive a fork.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class Orchestrators:
    """The process that is forked from; a context."""

    def __init__(self, config: Path) -> None:
        self._config = config

    def __enter__(self) -> Orchestrators:
        command = [sys.executable, "-m", "tests.forking", str(self._config)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(self, *arguments: str, output: Path, **environment: str) -> int:
        """Start an orchestrator that writes both its streams to `output`; return its process id. One at a time."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"arguments": arguments, "environment": environment, "output": str(output)}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def wait(self) -> int:
        """Return the exit code of the one that was started."""
        return self._answer()

    def run(self, *arguments: str, output: Path, **environment: str) -> int:
        """Return the exit code of an orchestrator."""
        self.start(*arguments, output=output, **environment)
        return self.wait()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def main() -> None:
    import mlflow  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch

    import orchestrator.cli
    import orchestrator.execution
    import orchestrator.tracking.connect
    import store.zarr_writing  # noqa: F401

    orchestrator.tracking.connect.import_mlflow()
    # Loads what is imported when it is first used.
    orchestrator.execution.prepare(Path(sys.argv[1]), [], None)
    torch.set_num_threads(1)
    threads = {task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
    # jemalloc, which comes with MLflow's pyarrow, starts its thread again in a child.
    assert len(threads - {"jemalloc_bg_thd"}) == 1, f"threads that a fork would lose: {threads}"
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            become(request)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(request: Mapping[str, Any]) -> None:
    """Be the orchestrator of `request`, to its end."""
    arguments: Sequence[str] = request["arguments"]
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(request["environment"])
    sys.argv = ["orchestrator", *arguments]
    code = 1
    try:
        import orchestrator.cli
        from repsearch import failpoints

        failpoints.rearm()
        orchestrator.cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
