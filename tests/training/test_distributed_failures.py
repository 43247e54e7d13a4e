"""When one process of several fails, all of them end soon, with its number and the reason."""

import os
import re

import pytest
from together import failures, in_processes

from alexnet_lib.training.distributed import LAST_WORDS_SECONDS

# What each process says, by the case: the first has the number 0.
SAYS = {
    "recipe": ["ValueError: process 1 of 2 .* has recipe.learning_rate 1.1, but process 0 has 0.1"]
    * 2,
    "data": ["ValueError: process 1 of 2 .* has data with the SHA-256 '.*', but process 0 has '.*'"]
    * 2,
    "version": ["ValueError: process 1 of 2 .* has versions.torch '1.0', but process 0 has '.*'"]
    * 2,
    "folder": ["ValueError: out is 'seen', which process 0 has, but process 1 of 2 .* does not see"]
    * 2,
    "all": ["ValueError: recipe is 'unknown'; expected"] * 2,
    "first": [
        "FileExistsError: out is 'used', which holds a run already",
        r"ProcessError: process 0 of 2 \(.*, process id \d+\) stopped: FileExistsError: out is",
    ],
    "exception": [
        "ProcessError: process 1 of 2 .* stopped: OSError: the disk is gone",
        "OSError: the disk is gone",
    ],
    "kill": ["ProcessError: process 1 of 2 .* gave no sign for 5 s after the connection broke"],
}


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """What two processes say in each case; the second is killed in the last one."""
    return in_processes(2, failures, tmp_path_factory.mktemp("failed"), [*SAYS])


@pytest.mark.parametrize("case", SAYS)
def test_all_processes_end_with_the_number_of_one_and_the_reason(failed, case):
    for rank, expected in enumerate(SAYS[case]):
        assert re.match(expected, failed[rank][case]["error"]), failed[rank][case]


@pytest.mark.parametrize("case", SAYS)
def test_one_process_speaks(failed, case):
    told = [text for result in failed if (text := result.get(case, {}).get("told"))]
    assert len(told) == 1
    assert ("process" in told[0]) == (case != "all")


@pytest.mark.parametrize("case", ["first", "exception", "kill"])
def test_none_waits_for_one_that_has_failed(failed, case):
    assert all(
        result[case]["seconds"] < 4 * LAST_WORDS_SECONDS for result in failed if case in result
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="other systems have no such signal")
def test_a_process_that_hangs_ends_the_others_after_a_while(tmp_path):
    first, _ = in_processes(2, failures, tmp_path, ["stop"])
    assert "process 1 of 2" in first["stop"]["error"]
    assert "gave no sign" in first["stop"]["error"]
    assert first["stop"]["seconds"] > 30.0  # the time that processes wait here
