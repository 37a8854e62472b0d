"""Hostile files are refused at once, in little memory, and run no code; ``safety.py`` prints what each costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_hostile_files_cost_little_and_run_nothing(root: Path) -> None:
    """The bounds are wide, for machines that are busy."""
    command = [sys.executable, "-W", "ignore", str(root / "tests" / "faults" / "safety.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for what, cost in json.loads(done.stdout)["refused"].items():
        assert cost["seconds"] < 20, what
        assert cost["megabytes"] < 400, what
