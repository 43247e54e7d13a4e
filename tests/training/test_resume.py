"""The promise of a run that is stopped, however it is: it goes on as if it had not been."""

import os
import shlex
import signal
import time
from pathlib import Path

import pytest
from helpers import write_class_folders
from processes import (
    PHOTO,
    RUNS,
    assert_same_result,
    begin,
    command,
    kill_at_random,
    train,
    train_until_call,
    wait_for,
)

posix = pytest.mark.skipif(os.name != "posix", reason="other systems have no signals")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("files"), count=24, size=PHOTO)


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """The folder of a run of this name that was not stopped, and the seconds that it took."""
    done: dict[str, tuple[Path, float]] = {}

    def whole(name: str) -> tuple[Path, float]:
        if name not in done:
            folder, began = tmp_path_factory.mktemp("whole") / "run", time.perf_counter()
            process = begin(train, name, folder, files, 0, 300.0)
            process.join()
            assert process.exitcode == 0
            done[name] = folder, time.perf_counter() - began
        return done[name]

    return whole


@posix
@pytest.mark.slow
@pytest.mark.parametrize("name", ["files in workers", "plateau"])
def test_a_run_that_is_killed_five_times_ends_with_the_same_bits(name, files, whole, tmp_path):
    expected, seconds = whole(name)
    kill_at_random(name, tmp_path / "run", files, kills=5, seed=1, seconds=seconds)
    assert_same_result(tmp_path / "run", expected)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_killed_fifty_times_ends_with_the_same_bits(name, files, whole, tmp_path):
    expected, seconds = whole(name)
    kills = attempt = 0
    while kills < 50:
        run = tmp_path / f"run {attempt}"
        kills += kill_at_random(
            name, run, files, kills=50 - kills, seed=attempt, seconds=0.6 * seconds
        )
        assert_same_result(run, expected)
        attempt += 1


def killed_at_every_call(calls: range, files: Path, expected: Path, folder: Path) -> None:
    """Kills a run at these calls of the system that change files; each time it goes on."""
    for number in calls:
        run = folder / str(number)
        process = begin(train_until_call, number, "plateau", run, files)
        process.join()
        if process.exitcode == 0:
            assert number > 50, "a run has many calls"
            return
        assert process.exitcode == -signal.SIGKILL
        if not (run / "result.json").exists():
            process = begin(train, "plateau", run, files)
            process.join()
            assert process.exitcode == 0
            assert_same_result(run, expected)


@posix
def test_a_run_that_is_killed_while_it_writes_ends_with_the_same_bits(files, whole, tmp_path):
    killed_at_every_call(range(10, 60, 25), files, whole("plateau")[0], tmp_path)


@posix
@pytest.mark.slow
def test_a_run_that_is_killed_at_any_call_ends_with_the_same_bits(files, whole, tmp_path):
    killed_at_every_call(range(1000), files, whole("plateau")[0], tmp_path)


# Signals


TINY_RUN = ("--architecture", "tiny", "--batch-size", "5", "--device", "cpu", "--set", "dropout=.5")
ENDLESS = (*TINY_RUN, "--epochs", "1000")


def start_command(folder: Path, *arguments: str):
    """A command that is in the midst of its run."""
    process = begin(command, ["train", *arguments, "--checkpoint-every", "0"], folder)
    wait_for((folder / "run" / "state.safetensors").exists, process)
    return process


@posix
@pytest.mark.parametrize(
    "name",
    ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGHUP"))],
)
def test_a_signal_ends_the_step_and_writes_the_state(name, tmp_path):
    number = getattr(signal, name)
    process = start_command(tmp_path, "shapes", *ENDLESS, "--out", "run")
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 128 + number
    lines = (tmp_path / "output").read_text().splitlines()
    *_, stopped, to_go_on, again, error = lines
    assert (to_go_on, error) == ("to go on:", f"error: interrupted by {name}")
    done = stopped.split()[2]
    program, *arguments = shlex.split(again)
    assert program == "alexnet-lib"
    process = begin(command, arguments, tmp_path)
    goes_on = f"goes on after {done} of"
    wait_for(lambda: goes_on in (tmp_path / "output").read_text(), process)
    process.kill()
    process.join()


@posix
def test_the_same_command_continues_a_job_that_is_started_again(tmp_path):
    arguments = ("shapes", *TINY_RUN, "--epochs", "4", "--resume", "auto", "--out")
    process = start_command(tmp_path, *arguments, "run")
    os.killpg(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 143
    for out in ("run", "whole"):
        process = begin(command, ["train", *arguments, out], tmp_path)
        process.join()
        assert process.exitcode == 0
    assert_same_result(tmp_path / "run", tmp_path / "whole")
    process = begin(command, ["train", *arguments, "run"], tmp_path)
    process.join()
    assert process.exitcode == 0
    assert "the run in run is finished: 4 epochs" in (tmp_path / "output").read_text()


@posix
def test_a_signal_to_the_whole_group_leaves_the_loaders_processes_until_the_state_is_written(
    files, tmp_path
):
    options = ("--num-workers", "2", "--set", "resize_ratio=1.2")
    process = start_command(tmp_path, str(files), *ENDLESS, *options, "--out", "run")
    os.killpg(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    output = (tmp_path / "output").read_text()
    assert "to go on:" in output
    assert "Traceback" not in output


# Output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="other systems have no such device")
@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ("stderr", "unread"),
        ("stdout stderr", "full"),
        ("stderr", "closed"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("stderr", "full"),
                ("stdout stderr", "closed"),
                ("stdout stderr", "unread"),
            )
        ),
    ],
)
def test_training_goes_on_whatever_becomes_of_its_output(names, kind, tmp_path):
    arguments = ["train", "shapes", *TINY_RUN, "--epochs", "2", "--out", "run"]
    process = begin(command, arguments, tmp_path, f"{names} {kind}")
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "run" / "result.json").exists()
    if names == "stderr":
        assert "results in run" in (tmp_path / "output").read_text()


@posix
def test_a_second_interrupt_stops_at_once_and_harms_no_file(files, whole, tmp_path):
    process = begin(train, "plateau", tmp_path / "run", files)
    wait_for((tmp_path / "run" / "state.safetensors").exists, process)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 1  # KeyboardInterrupt
    process = begin(train, "plateau", tmp_path / "run", files)
    process.join()
    assert_same_result(tmp_path / "run", whole("plateau")[0])


@posix
@pytest.mark.slow
@pytest.mark.bad_input
def test_a_finished_run_is_told_from_another_one(tmp_path):
    for arguments, status, words in (
        (("--epochs", "1", "--out", "run"), 0, "results in run"),
        (("--epochs", "1", "--out", "run", "--resume", "auto"), 0, "the run in run is finished"),
        (("--epochs", "2", "--out", "run", "--resume", "auto"), 2, "in 'run' is finished"),
        (("--epochs", "1", "--resume", "run", "--seed", "4"), 2, "in 'run' is finished"),
        (("--resume", "run"), 0, "the run in run is finished"),
        (("--resume", "run", "--out", "other"), 2, "but out is 'other'; expected the same"),
        (("--resume", "nowhere"), 2, "resume is 'nowhere', which holds no run"),
    ):
        options = () if arguments[0] == "--resume" and "--seed" not in arguments else TINY_RUN
        process = begin(command, ["train", "shapes", *options, *arguments], tmp_path)
        process.join()
        last = (tmp_path / "output").read_text().splitlines()[-2:]
        assert process.exitcode == status, last
        assert words in " ".join(last)
