"""The promise of `keep_freed_memory`: memory is faulted in once, not at every step."""

import subprocess
import sys

import pytest

from alexnet_lib import keep_freed_memory

FAULTS_OF_A_STEP = """
import resource, sys
import torch
from alexnet_lib import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()

def step():
    blocks = [torch.ones(1_000_000) for _ in range(10)]
    del blocks

for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""

linux_with_glibc = pytest.mark.skipif(sys.platform != "linux", reason="about Linux with glibc")


def faults_of_a_step(kept: str) -> int:
    command = [sys.executable, "-c", FAULTS_OF_A_STEP, kept]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@linux_with_glibc
def test_memory_that_is_kept_is_not_faulted_in_again():
    # 40 MB are 9,766 pages of 4 kB.
    assert faults_of_a_step("as it is") > 5_000
    assert faults_of_a_step("kept") < 500


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_other_systems_are_left_alone(system, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    assert keep_freed_memory() is False


def test_other_c_libraries_are_left_alone(monkeypatch):
    class Musl:
        pass

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda name: Musl())
    assert keep_freed_memory() is False
