"""The measurement of the front end runs, and every request of it is answered."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

SCRIPT = Path(__file__).parents[1] / "support" / "front_end.py"


CORES = getattr(os, "sched_getaffinity", lambda _: set())(0)  # Linux only


@pytest.mark.skipif(not {0, 1} <= CORES, reason="the server and the load need a core each")
def test_a_short_measurement() -> None:
    command = [sys.executable, str(SCRIPT), "--rounds", "1", "--seconds", "0.5", "--clients", "8"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    assert "not 200: 0;" in said
    best = re.search(r"best (\d+) per second of the server's core", said)
    assert best is not None
    assert int(best[1]) > 300  # ten times less than on a machine of its own
