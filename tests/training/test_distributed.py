"""Several processes train as one: the same losses, gradients, metrics and files."""

import json
import shutil

import pytest
import torch
import torch.distributed as dist
from helpers import write_class_folders
from processes import PHOTO, begin, result_of
from tiny import QUIET, use_tiny
from together import (
    FITS,
    RECIPES,
    approximate,
    assert_same_steps,
    in_processes,
    joined_again,
    own_loop,
    patiently,
    resumed_run,
    stopped_run,
    train_exactly,
    whole_runs,
)

from alexnet_lib import build_loaders, fit
from alexnet_lib.files import read_tensors


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """What each process of a run on one, two and four processes has computed, by their number."""
    folder = tmp_path_factory.mktemp("exact")
    sizes = {size: in_processes(size, train_exactly, folder / f"{size}", size) for size in (2, 4)}
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        return {1: [train_exactly(0, 1)], **sizes}


@pytest.mark.parametrize("name", RECIPES)
def test_processes_take_the_steps_of_one(exact, name):
    (alone,) = exact[1]
    for size in (2, 4):
        for result in exact[size]:
            assert_same_steps(result[name], alone[name])
            assert len(result[name]["gradients"][0]) == result[name]["size"]


@pytest.mark.parametrize("size", [2, 4])
def test_gradients_are_summed_in_the_dtype_that_is_asked_for(exact, size):
    expected = torch.tensor(exact[1][0]["plain"]["gradients"][0])
    first, *others = (torch.tensor(own["rounded"]["gradients"][0]) for own in exact[size])
    assert all(other.equal(first) for other in others)
    # Each process rounds what it sends to 8 bits.
    assert 2**-12 < (first - expected).norm() / expected.norm() < 2**-8


def test_processes_of_torchrun_join_again_also_when_one_is_late(tmp_path):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's
    running = [begin(rejoining, rank, store.port, tmp_path / f"{rank}") for rank in range(2)]
    for process in running:
        process.join(60)
        process.kill()
    assert [json.loads((tmp_path / f"{rank}").read_text()) for rank in range(2)] == [[1, 3]] * 2


def rejoining(rank, port, file):
    file.write_text(json.dumps(joined_again(rank, port)))


def test_processes_wait_for_one_that_opens_its_data_for_as_long_as_it_lives(tmp_path):
    first, second = in_processes(2, patiently, tmp_path)
    assert first["entered"] < 1
    assert second["entered"] > 4.9
    assert min(first["left"], second["left"]) > 4.9
    assert first["error"].endswith("stopped: OSError: no such data")
    assert second["error"] == "OSError: no such data"
    assert "gives no sign of life" in second["hangs"], second


def test_a_share_is_no_data_for_one_process_alone():
    loaders = build_loaders("shapes", image_size=67).share(0, 2)
    with pytest.raises(ValueError, match=r"share \(0, 2\) .* this is process 0 of 1"):
        fit(loaders, recipe="modern", options=QUIET)


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    """What a program of one and of two processes gets from the parts, by the process."""
    folder = tmp_path_factory.mktemp("loops")
    together = in_processes(2, own_loop, folder, 2)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        return own_loop(0, 1), *together


def test_a_loop_of_ones_own_trains_on_shares_as_on_whole_batches(loops):
    alone, *together = loops
    for own in together:
        assert own["trained"] == approximate(alone["trained"])
        assert own["with DDP"] == approximate(alone["trained"])


@pytest.mark.parametrize("views", [1, 2, 10])
def test_an_evaluation_counts_each_image_once(loops, views):
    alone, *together = loops
    name = f"evaluated in {views} views"
    assert alone[name]["images"] == 20
    for own in together:
        # The mean of several views is computed in float32.
        assert own[name] == approximate(alone[name], 1e-9 if views == 1 else 1e-6)


def test_an_evaluation_names_the_first_bad_image_of_all(loops):
    alone, *together = loops
    assert "for 1 of 20 images, the first of them image 17" in alone["bad"]
    assert [own["bad"] for own in together] == [alone["bad"]] * 2


def test_one_process_can_have_all_images_to_itself(loops):
    alone, first, _ = loops
    assert first["alone"] == approximate(alone["evaluated in 1 views"])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("not shared", "each of which would get the same batches; expected loaders.share("),
        ("another share", "the share (0, 3) of its batches, but this is process"),
        ("own batches", "nothing sums the gradients of model"),
        ("normalised", "the batch normalisation 0, whose statistics would be those of a share"),
    ],
)
def test_what_processes_cannot_do_together_is_refused_in_words(loops, case, message):
    for own in loops[1:]:
        assert own[case].startswith("ValueError: ")
        assert message in own[case]


def test_batches_of_ones_own_are_left_to_ddp(loops):
    _, *together = loops
    first, second = (own["own batches with DDP"]["weights"] for own in together)
    assert first == second


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos, some of which cannot be read: also all of a share, and all of a batch."""
    folder = write_class_folders(tmp_path_factory.mktemp("photos"), count=24, size=PHOTO)
    for file in sorted(folder.rglob("*.*"))[::3]:
        file.write_bytes(file.read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory):
    """The folders of whole runs on one and on two processes, and what these returned."""
    alone, together = (tmp_path_factory.mktemp(name) for name in ("alone", "together"))
    return (
        (alone, in_processes(1, whole_runs, alone, photos)),
        (together, in_processes(2, whole_runs, together, photos)),
    )


@pytest.mark.parametrize("name", FITS)
def test_a_run_on_two_processes_is_that_on_one(runs, name):
    (_, (alone,)), (_, together) = runs
    assert len(alone[name]["history"]) == 2
    for own in together:
        assert own[name] == approximate(alone[name], 1e-5)


@pytest.mark.parametrize("name", FITS)
def test_the_files_of_a_run_on_two_processes_are_those_of_a_run_on_one(runs, name):
    (alone, _), (together, _) = runs
    own, other = (result_of(folder / name) for folder in (together, alone))
    assert own.keys() == other.keys()
    for key, value in own.items():
        if torch.is_tensor(value):
            torch.testing.assert_close(value, other[key], rtol=1e-5, atol=1e-6)
        else:
            assert value == approximate(other[key], 1e-5)
    bad, expected = (
        json.loads((folder / name / "result.json").read_text())["bad_images"]
        for folder in (together, alone)
    )
    assert bad == expected
    assert (len(bad) > 5) == (name == "photos")


def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_on_one_or_four(runs, tmp_path):
    (alone, _), _ = runs
    said = in_processes(2, stopped_run, tmp_path / "stopped", 3)
    assert said == ["interrupted by SIGINT, 1 epochs in run"] * 2
    run = tmp_path / "stopped" / "run"
    _, metadata = read_tensors(run / "state.safetensors")
    assert json.loads(metadata["state"])["run"]["batches_read"] == 1
    expected = approximate(result_of(alone / "all")["history"], 1e-5)
    for size in (1, 4):
        resumed = tmp_path / f"resumed on {size}"
        shutil.copytree(run, resumed / "run")
        in_processes(size, resumed_run, resumed)
        assert result_of(resumed / "run")["history"] == expected
