"""Processes that each train a part of the network take the steps of one: hybrid and towers."""

import json
import os
import shutil
import signal
import warnings
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from processes import result_of
from tiny import QUIET, tiny_recipe, use_tiny, weights_of
from together import (
    approximate,
    assert_same_steps,
    exact_run,
    in_processes,
    raised,
    steps_of,
)

from alexnet_lib import AlexNet, fit, prepare_loaders, prepare_model
from alexnet_lib.network import architecture
from alexnet_lib.network.architecture import (
    LRN,
    Architecture,
    Conv,
    Dropout,
    Flatten,
    Linear,
    MaxPool,
    ReLU,
)
from alexnet_lib.training.distributed import joined
from alexnet_lib.training.state import TrainingRun

# The paper's layers, small; 11 and 7 features are unequal parts.
PAIR = Architecture(
    "pair",
    image_size=20,
    layers=(
        Conv("conv1", 8, kernel=3, stride=2),
        ReLU("relu1"),
        LRN("norm1", groups=2, alpha=1.0),
        MaxPool("pool1"),
        Conv("conv2", 8, kernel=3, padding=1, groups=2),
        ReLU("relu2"),
        Conv("conv3", 12, kernel=3, padding=1),
        ReLU("relu3"),
        Conv("conv4", 8, kernel=3, padding=1, groups=2),
        Flatten("flatten"),
        Linear("fc6", 11),
        ReLU("relu6"),
        Dropout("drop6"),
        Linear("fc7", 7),
        ReLU("relu7"),
        Dropout("drop7"),
        Linear("fc8", None),
    ),
)
# With dropout before the first fully connected layer.
FIRST = replace(PAIR, name="first", layers=(*PAIR.layers[:10], Dropout("drop5"), *PAIR.layers[10:]))
# On four processes, one has nothing of fc7.
NARROW = replace(
    PAIR,
    name="narrow",
    layers=tuple(Linear("fc7", 3) if row.name == "fc7" else row for row in PAIR.layers),
)

CASES = {
    "dropout": {"dropout": 0.5, "dropout_scaling": "test", "batch_size": 16},
    "one image": {"dropout": 0.5, "batch_size": 53, "max_grad_norm": 0.1, "ema_decay": 0.7},
    "first": {"architecture": "first", "dropout": 0.5, "random_shift": 0.2, "batch_size": 7},
    "clipped": {"optimizer": "muon", "max_grad_norm": 0.5, "ema_decay": 0.7},
    "frozen": {"freeze": ("conv1", "fc7"), "dropout": 0.5, "max_grad_norm": 0.1},
    "last": {"freeze": ("conv1", "conv2", "conv3", "conv4", "fc6", "fc7"), "max_grad_norm": 0.1},
    "narrow": {"architecture": "narrow", "dropout": 0.5, "max_grad_norm": 0.1},
    "growing": {"growth_fraction": 0.8, "start_size": 0.8, "dropout": 0.5},
    "muon": {"optimizer": "muon", "dropout": 0.5, "batch_size": 5},
}
ACCUMULATING = {"accumulating": {"optimizer": "muon", "batch_size": 5, "accumulation_steps": 3}}


def know_pair():
    """To be called within ``use_tiny``, whose end forgets it."""
    architecture.ARCHITECTURES = {
        **architecture.ARCHITECTURES,
        **{table.name: table for table in (PAIR, FIRST, NARROW)},
    }


# Of all recipes here that do not say otherwise.
USUAL = {"architecture": "pair", "learning_rate": 0.05}


def pair_recipe(**changes):
    return tiny_recipe(**USUAL | changes)


def cases_of(parallel):
    return CASES if parallel == "towers" else CASES | ACCUMULATING


def train_exactly(parallel):
    options = replace(QUIET, parallel=parallel)
    with joined() as group:
        return {
            name: steps_of(exact_run(group, options, **USUAL | changes))
            for name, changes in cases_of(parallel).items()
        }


# What whole runs train.
FIT = {"epochs": 2, "dropout": 0.5, "ema_decay": 0.7, "validation_fraction": 0.2}
STEPS_IN_EPOCH = 3


def whole_run(parallel, out, *, stop=None, resume=False):
    """What ``fit`` returns; or, if a signal to the last process stops it, what it has so far."""
    warnings.simplefilter("ignore")

    def take_step(run):
        if run.group.rank == run.group.size - 1 and run.steps_done == stop:
            os.kill(os.getpid(), signal.SIGINT)
        real(run)

    real = TrainingRun.take_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "take_step", take_step)
        try:
            run = fit(
                "shapes",
                recipe=pair_recipe(**FIT),
                seed=3,
                out=out,
                resume="auto" if resume else None,
                # By the clock of the first process, which writes.
                checkpoint_every=1e6 if dist.is_initialized() and dist.get_rank() else 0,
                options=replace(QUIET, parallel=parallel),
            )
        except KeyboardInterrupt as error:
            run = error.run
    return {
        "losses": [record.train.loss for record in run.history],
        "validation": [record.to_dict()["validation"] for record in run.history],
        "test": run.test and run.test.to_dict() | {"seconds": 0},
        "weights": weights_of(run.model).tolist(),
    }


def resumed(rank, former, out, parallel):
    """Goes on with a copy of a folder."""
    if dist.get_rank() == 0:
        shutil.copytree(former, out)
    dist.barrier()
    return whole_run(parallel, out, resume=True)


def resumed_elsewhere(rank, former, parallel):
    know_pair()
    return resumed(rank, former, "run", parallel)


def refusals(rank):
    """What cannot be split, by what it is."""
    crossing = replace(PAIR, layers=(*PAIR.layers[:2], LRN("norm1"), *PAIR.layers[3:]))
    odd = replace(PAIR, layers=(Conv("conv1", 9, kernel=3), *PAIR.layers[9:]))
    first = replace(PAIR, layers=(Conv("conv1", 9, kernel=3, groups=3), *PAIR.layers[9:]))
    replaced = AlexNet(10, architecture=PAIR)
    replaced.classifier.relu6 = torch.nn.Softmax(1)

    def run(parallel, model=None, options=None, **changes):
        options = replace(QUIET, parallel=parallel, **(options or {}))
        return raised(
            lambda: fit("shapes", recipe=pair_recipe(**changes), model=model, options=options)
        )

    return {
        "compile": run("hybrid", options={"compile": True}),
        "softmax": run("hybrid", replaced),
        "norm": run("towers", AlexNet(10, architecture=crossing)),
        "odd": run("towers", AlexNet(10, architecture=odd)),
        "first": run("towers", AlexNet(10, architecture=first)),
        "other": run("hybrid" if rank else "data"),
    }


REFUSED = {
    "compile": "ValueError: compile is True, and parallel 'hybrid'",
    "softmax": "ValueError: parallel is 'hybrid', but the layer classifier.relu6 is a torch.nn."
    "modules.activation.Softmax",
    "norm": "LocalResponseNorm with groups=1, which cannot be split",
    "odd": "Conv2d with out_channels=9, which cannot be split",
    "first": "the layer features.conv1 is the first one, and has 3 groups, which cannot be split",
    "other": "has options.parallel 'hybrid', but process 0 has 'data'; expected the same",
}


def scaled_steps(parallel):
    """The scales of the loss in float16, in which a row of the last process overflows once."""
    with joined() as group:
        options = replace(QUIET, parallel=parallel, precision="float16")
        recipe = pair_recipe(epochs=3)
        loaders = prepare_loaders("shapes", recipe, seed=3, options=options)
        model = prepare_model(loaders, recipe, seed=3, options=options)
        loaders = group.shared(loaders)
        run = TrainingRun(recipe, loaders, model, seed=3, options=options, group=group)
        scales = []
        for step in range(4):
            hook = None
            if step == 1 and group.rank == group.size - 1:
                # Of the last class.
                bias = run._network.classifier.fc8.bias
                hook = bias.register_hook(
                    lambda grad: torch.cat([grad[:-1], grad[-1:] * torch.inf])
                )
            run.take_step()
            if hook is not None:
                hook.remove()
            scales.append(float(run.scaler.get_scale()))
        run.gather_weights()
        return {"scales": scales, "weights": weights_of(run.model).tolist()}


def everything(rank):
    """All that two processes do in these tests; starting them takes longer."""
    know_pair()
    results = {"refused": refusals(rank), "in the first epoch": whole_run("hybrid", None, stop=2)}
    for parallel in ("hybrid", "towers"):
        results[parallel] = {
            "exact": train_exactly(parallel),
            "run": whole_run(parallel, parallel),
            "stopped": whole_run(parallel, f"{parallel} stopped", stop=STEPS_IN_EPOCH + 1),
            "scaled": scaled_steps(parallel),
        }
    for former, parallel in (("hybrid", "towers"), ("towers", "hybrid"), ("hybrid", "data")):
        name = f"{former} then {parallel}"
        results[name] = resumed(rank, f"{former} stopped", name, parallel)
    return results


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder in which two processes have computed, and what they returned."""
    folder = tmp_path_factory.mktemp("pair")
    return folder, in_processes(2, everything, folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, pair):
    """The folder in which one process has computed, and what it returned."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        know_pair()
        former = pair[0] / "hybrid stopped"
        shutil.copytree(former, folder / "resumed")
        return folder, {
            "exact": train_exactly("data"),
            "exact hybrid": train_exactly("hybrid"),
            "run": whole_run("data", folder / "run"),
            "in the first epoch": whole_run("data", None, stop=2),
            "resumed": whole_run("data", folder / "resumed", resume=True),
            "scaled": scaled_steps("data"),
        }


def assert_all_the_same(own, alone):
    for name, result in own.items():
        assert_same_steps(result, alone[name])


@pytest.mark.parametrize("parallel", ["hybrid", "towers"])
def test_parts_take_the_steps_of_the_whole(pair, alone, parallel):
    for own in pair[1]:
        assert own[parallel]["exact"].keys() == cases_of(parallel).keys()
        assert_all_the_same(own[parallel]["exact"], alone[1]["exact"])


def test_hybrid_on_one_process_is_the_whole_network(alone):
    assert alone[1]["exact hybrid"] == alone[1]["exact"]


def exactly_in_hybrid(rank):
    know_pair()
    return train_exactly("hybrid")


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 4])
def test_more_processes_take_the_steps_of_one(alone, tmp_path, size):
    for own in in_processes(size, exactly_in_hybrid, tmp_path):
        assert_all_the_same(own, alone[1]["exact"])


def test_a_process_trains_its_part_alone(pair):
    whole = AlexNet(10, architecture=PAIR)
    convolutions = sum(p.numel() for p in whole.features.parameters())
    linear = sum(p.numel() for p in whole.classifier.parameters())
    sizes = [own["hybrid"]["exact"]["dropout"]["size"] for own in pair[1]]
    assert sum(sizes) == 2 * convolutions + linear
    assert max(sizes) < convolutions + 0.6 * linear
    sizes = [own["towers"]["exact"]["dropout"]["size"] for own in pair[1]]
    assert sum(sizes) == convolutions + linear


def assert_same_files(folder, other):
    own, expected = result_of(folder), result_of(other)
    assert own.keys() == expected.keys()
    for key, value in own.items():
        if torch.is_tensor(value):
            torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)
        else:
            assert value == approximate(expected[key], 1e-5)


@pytest.mark.parametrize("parallel", ["hybrid", "towers"])
def test_a_run_in_parts_returns_and_writes_what_one_process_does(pair, alone, parallel):
    for own in pair[1]:
        assert own[parallel]["run"] == approximate(alone[1]["run"], 1e-5)
    assert_same_files(pair[0] / parallel, alone[0] / "run")
    stored = json.loads((pair[0] / parallel / "recipe.json").read_text())
    assert (stored["options"]["parallel"], stored["processes"]) == (parallel, 2)


@pytest.mark.parametrize("parallel", ["hybrid", "towers"])
def test_a_stopped_run_returns_the_best_weights_in_all_processes(pair, alone, parallel):
    first, second = (own[parallel]["stopped"] for own in pair[1])
    assert first == second
    assert len(first["losses"]) == 1
    assert first["losses"] == approximate(alone[1]["run"]["losses"][:1], 1e-5)


def test_a_run_that_is_stopped_in_its_first_epoch_returns_the_latest_weights(pair, alone):
    name = "in the first epoch"
    assert alone[1][name]["losses"] == []
    for own in pair[1]:
        assert own[name] == approximate(alone[1][name], 1e-5)


@pytest.mark.parametrize("name", ["hybrid then towers", "towers then hybrid", "hybrid then data"])
def test_a_stopped_run_goes_on_in_other_parts(pair, alone, name):
    for own in pair[1]:
        assert own[name] == approximate(alone[1]["run"], 1e-5)
    assert_same_files(pair[0] / name, alone[0] / "run")


def test_a_stopped_run_goes_on_on_one_process(alone):
    assert alone[1]["resumed"] == approximate(alone[1]["run"], 1e-5)
    assert_same_files(alone[0] / "resumed", alone[0] / "run")


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["hybrid", "data"])
def test_a_stopped_run_goes_on_on_four_processes(pair, alone, tmp_path, parallel):
    former = pair[0] / "hybrid stopped"
    for own in in_processes(4, resumed_elsewhere, tmp_path, former, parallel):
        assert own == approximate(alone[1]["run"], 1e-5)
    assert_same_files(tmp_path / "run", alone[0] / "run")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_split_is_refused_in_words(pair, name):
    for own in pair[1]:
        assert REFUSED[name] in own["refused"][name]


def test_towers_are_two():
    with pytest.raises(ValueError, match=r"'towers', and the number of processes 1; expected 2"):
        fit("shapes", recipe=tiny_recipe(), options=replace(QUIET, parallel="towers"))


@pytest.mark.parametrize("parallel", ["hybrid", "towers"])
def test_a_gradient_that_overflows_in_one_part_skips_the_step_of_all(pair, alone, parallel):
    first, second, third, fourth = alone[1]["scaled"]["scales"]
    assert (second, third, fourth) == (first / 2,) * 3
    for own in pair[1]:
        assert own[parallel]["scaled"]["scales"] == alone[1]["scaled"]["scales"]
        assert own[parallel]["scaled"]["weights"] == approximate(
            alone[1]["scaled"]["weights"], 0.01
        )
