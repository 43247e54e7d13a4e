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
    # Above 32 MB, the largest blocks that glibc ever keeps by itself.
    blocks = [torch.ones(10_000_000) for _ in range(3)]
    del blocks

# In the first steps the heap grows to the size at which everything finds its place.
for _ in range(20):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
"""

linux_with_glibc = pytest.mark.skipif(sys.platform != "linux", reason="about Linux with glibc")


def faults_of_a_step(kept: str) -> int:
    command = [sys.executable, "-c", FAULTS_OF_A_STEP, kept]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@linux_with_glibc
def test_memory_that_is_kept_is_not_faulted_in_again():
    given_back = faults_of_a_step("as it is")
    assert given_back > 30  # 120 MB are 29,296 pages of 4 kB, or 58 of the largest
    assert faults_of_a_step("kept") < given_back / 10


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
