"""Commands that are killed or stopped at random moments lose nothing; ``kill_points.py`` tries more of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_nothing_is_lost_repeated_or_half_written(root: Path) -> None:
    command = [sys.executable, str(root / "tests" / "faults" / "kill_points.py"), "--points", "6", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=root)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["points"] == 6
    assert found["wrong"] == {}
