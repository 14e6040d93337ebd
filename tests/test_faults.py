"""A short version of the fault campaign: nothing that is killed, damaged or malformed does harm."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from small import ROOT


@pytest.mark.timeout(120)  # a process of its own, which starts many
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that are forked")
def test_the_campaign() -> None:
    script = ROOT / "benchmarks" / "faults.py"
    asked = ["--kills", "2", "--damages", "6", "--inputs", "15", "--seed", "1"]
    done = subprocess.run([sys.executable, str(script), *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    assert {line[0] for line in lines} == {"killed", "damaged", "malformed"}
    assert {int(line[1]) for line in lines} == {2, 6, 15}
