from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import require_namespaces


@pytest.mark.matrix
def test_a_minute_of_chaos_leaves_nothing_behind() -> None:
    require_namespaces()
    asked = [sys.executable, "-m", "tests.soak", "--minutes", "0.6", "--nodes", "4", "--verbose"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "residue and broken promises: 0" in done.stdout
