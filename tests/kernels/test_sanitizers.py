"""Whatever its arguments, a kernel reads and writes nothing but its arrays."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_lib.kernels.compiling import SOURCE

GCC = shutil.which("gcc")
FUZZED = Path(__file__).with_name("fuzzed.py")


def runtime(name):
    """The path of a sanitizer's runtime, or None."""
    path = subprocess.check_output([GCC, f"-print-file-name={name}"], text=True).strip()
    return path if os.path.isabs(path) else None


@pytest.mark.slow  # half a minute
@pytest.mark.skipif(GCC is None or not sys.platform.startswith("linux"), reason="needs gcc")
@pytest.mark.parametrize("optimized", [("-O1",), ("-O3", "-march=native")], ids=str)
def test_random_arguments_reach_nothing_outside_and_no_undefined_operation(tmp_path, optimized):
    if (address := runtime("libasan.so")) is None or runtime("libubsan.so") is None:
        pytest.skip("this gcc has no sanitizers")
    library = tmp_path / "kernels.so"
    checks = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
    flags = (*optimized, "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
    subprocess.run([GCC, *checks, *flags, SOURCE, "-o", library, "-lm"], check=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": address,
        # Without a memory limit for addresses, of which the sanitizer reserves terabytes.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:hard_rss_limit_mb=2000",
        "PYTHONMALLOC": "malloc",  # each array is a block of its own
    }
    command = [sys.executable, FUZZED, library, "20000", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = dict(re.findall("(.*): (.*)", done.stdout))
    assert int(counts.pop("left out")) < 2000
    assert len(counts) == 4
    assert min(map(int, counts.values())) > 2000, counts
