"""The promises of devices: which one, in which precision and memory format; seeds."""

import importlib.metadata
import json
import random
import re
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from alexnet_lib import __version__, devices
from alexnet_lib.devices import (
    Placement,
    RunOptions,
    default_device,
    derived_seed,
    generator_for,
    memory_explained,
    multiplies_bfloat16,
    resolve_device,
    resolve_precision,
    restored_generators,
    seed_generators,
    versions,
)

CPU = torch.device("cpu")


# Devices


@pytest.mark.parametrize(
    ("cuda", "mps", "device"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_default_device_is_cuda_then_mps_then_the_cpu(monkeypatch, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert default_device() == torch.device(device)


def test_auto_is_the_default_device_and_nothing_is_said(monkeypatch, capfd):
    monkeypatch.setattr(devices, "default_device", lambda: torch.device("meta"))
    assert resolve_device("auto") == torch.device("meta")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [str, torch.device])
def test_a_device_is_found_by_its_name_and_by_itself(device, kind):
    assert resolve_device(kind(device)) == device


@pytest.mark.bad_input
@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "meta", "cpu:99999999999999999999"])
def test_a_device_that_this_machine_has_not_is_refused(device):
    text = f"device is '{device}'; expected 'auto' or a device of this machine: "
    with pytest.raises(ValueError, match=re.escape(text)):
        resolve_device(device)


# Precision


@pytest.mark.parametrize(
    ("capabilities", "able"),
    [
        ({}, False),
        ({"avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
    ],
)
def test_a_cpu_multiplies_bfloat16_with_avx512_or_amx(monkeypatch, capabilities, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert multiplies_bfloat16(CPU) is able


@pytest.mark.parametrize(("capability", "able"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cuda_multiplies_bfloat16_from_capability_8_on(monkeypatch, capability, able):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert multiplies_bfloat16(torch.device("cuda")) is able


def test_mps_is_not_relied_on_for_bfloat16():
    assert not multiplies_bfloat16(torch.device("mps"))


@pytest.mark.parametrize(("able", "expected"), [(False, "float32"), (True, "bfloat16")])
def test_auto_precision_is_bfloat16_where_the_hardware_multiplies_it(monkeypatch, able, expected):
    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda device: able)
    assert resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        ("cuda", (6, 1), "float32"),
        ("cuda", (7, 0), "float16"),
        ("cuda", (7, 5), "float16"),
        ("cuda", (8, 0), "bfloat16"),
        ("cuda", (9, 0), "bfloat16"),
        ("mps", None, "float32"),
    ],
)
def test_auto_precision_is_float16_on_cuda_that_has_it_without_bfloat16(
    monkeypatch, device, capability, expected
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", torch.device(device)) == expected


@pytest.mark.parametrize("able", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_precision_that_is_named_stays(monkeypatch, able, precision):
    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda device: able)
    assert resolve_precision(precision, CPU) == precision


@pytest.mark.bad_input
@pytest.mark.parametrize("precision", ["half", "", None])
def test_an_unknown_precision_is_told_the_known_ones(precision):
    text = f"precision is {precision!r}; expected one of 'auto', 'float32', 'bfloat16', 'float16'"
    with pytest.raises(ValueError, match=re.escape(text)):
        resolve_precision(precision, CPU)


# How a run is carried out


def on_machine(monkeypatch: pytest.MonkeyPatch, device: str, *, able: bool) -> None:
    """A machine whose default device is this one, and multiplies bfloat16 or not."""
    monkeypatch.setattr(devices, "default_device", lambda: torch.device(device))
    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda device: able)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))


@pytest.mark.parametrize(
    ("device", "able", "precision", "memory_format"),
    [
        ("cpu", False, "float32", "channels_last"),
        ("cpu", True, "bfloat16", "channels_last"),
        ("cuda", False, "float16", "channels_last"),
        ("cuda", True, "bfloat16", "channels_last"),
        ("mps", False, "float32", "contiguous"),
    ],
)
def test_auto_options_are_what_the_machine_is_fast_at(
    device, able, precision, memory_format, monkeypatch
):
    on_machine(monkeypatch, device, able=able)
    options = RunOptions(compile=True, num_workers=2, progress=False)
    expected = RunOptions(device, precision, memory_format, True, 2, False)
    assert options.resolved() == expected


@pytest.mark.bad_input  # for the annotations
def test_numpys_numbers_and_torchs_devices_are_stored_as_plain_values():
    options = RunOptions(CPU, num_workers=np.int64(2), bad_image_limit=np.float32(0.5))
    assert asdict(options) == asdict(RunOptions("cpu", num_workers=2, bad_image_limit=0.5))
    assert json.loads(json.dumps(asdict(options))) == asdict(options)


def test_float32_on_cuda_is_contiguous_also_where_bfloat16_would_be_fast(monkeypatch):
    on_machine(monkeypatch, "cuda", able=True)
    assert RunOptions(precision="float32").resolved().memory_format == "contiguous"


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_options_that_are_named_stay(memory_format):
    options = RunOptions(device="cpu", precision="bfloat16", memory_format=memory_format)
    assert options.resolved() == options


@pytest.mark.parametrize(
    ("options", "placement"),
    [
        (
            RunOptions("cpu", "float32", "contiguous"),
            Placement(CPU, torch.float32, torch.contiguous_format),
        ),
        (
            RunOptions("cuda:1", "bfloat16", "channels_last"),
            Placement(torch.device("cuda", 1), torch.bfloat16, torch.channels_last),
        ),
    ],
)
def test_batches_are_placed_as_the_options_say(options, placement):
    assert options.placement == placement


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("precision", "int8", "precision is 'int8'; expected one of 'auto', 'float32', 'bfloat16'"),
        (
            "memory_format",
            "nhwc",
            "memory_format is 'nhwc'; expected one of 'auto', 'contiguous', 'channels_last'",
        ),
        ("num_workers", -1, "num_workers is -1; expected an integer from 0 to 1024"),
        ("num_workers", 1.5, "num_workers is 1.5; expected an integer from 0 to 1024"),
        ("num_workers", None, "num_workers is None; expected an integer from 0 to 1024"),
        ("compile", 1, "compile is 1; expected True or False"),
        ("progress", None, "progress is None; expected True or False"),
        ("device", 0, "device is 0; expected a string"),
        ("on_bad_image", "ignore", "on_bad_image is 'ignore'; expected one of 'stop', 'skip'"),
        ("parallel", "tower", "parallel is 'tower'; expected one of 'data', 'hybrid', 'towers'"),
        ("bad_image_limit", 1.5, "bad_image_limit is 1.5; expected a probability from 0 to 1"),
        ("num_workers", 10**6, "num_workers is 1000000; expected an integer from 0 to 1024"),
        ("on_nonfinite", "ignore", "on_nonfinite is 'ignore'; expected one of 'stop', 'skip'"),
        ("device", "meta", "device is 'meta'; expected 'auto' or a device of this machine"),
        ("device", "gpu", "device is 'gpu'; expected 'auto' or a device of this machine"),
    ],
)
def test_an_option_out_of_its_range_is_named(field, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        RunOptions(**{field: value}).resolved()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "device", [None, 0, 1.5, b"cpu", ["cpu"], ("cpu", 0), np.array(["auto", "cpu"]), torch.zeros(2)]
)
def test_what_is_no_device_is_refused(device):
    with pytest.raises(ValueError, match=r"^device is "):
        resolve_device(device)


# Memory


@pytest.mark.parametrize(
    ("shapes", "size"),
    [([], ""), ([(2, 3)], " of 2 images of shape (3,)"), ([(8, 3, 4, 5)], " of 8 images of 5x4 p")],
)
def test_an_error_of_memory_says_the_last_batch(shapes, size):
    error = RuntimeError("[enforce fail at alloc.cpp:1] DefaultCPUAllocator: not enough memory")
    with pytest.raises(MemoryError, match=re.escape(f"suffice for a test{size}")):
        fail(error, shapes)


def fail(error: Exception, shapes: list) -> None:
    with memory_explained("a run"), memory_explained("a test") as seen:
        seen.extend(shapes)
        raise error


def test_an_error_of_memory_is_explained_once():
    with pytest.raises(MemoryError, match=r"^memory does not suffice for a test: lower") as caught:
        fail(RuntimeError("std::bad_alloc"), [])
    assert "a run" not in str(caught.value)


def test_it_is_of_the_type_on_which_programs_go_on_with_less():
    with pytest.raises(torch.OutOfMemoryError):  # torch's own, of a GPU
        fail(MemoryError(), [])


@pytest.mark.parametrize("error", [RuntimeError("no luck"), ValueError("not enough memory")])
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error), match=str(error)) as caught:
        fail(error, [])
    assert caught.value is error


# Seeds


def test_every_epoch_and_every_step_of_every_seed_has_a_seed_of_its_own():
    # Steps from 1: of a sequence, NumPy takes zeros at the end for nothing.
    numbers = [(epoch, *step) for epoch in range(5) for step in ((), (1,), (2,), (3,))]
    seeds = [derived_seed(seed, *each) for seed in (0, 1, 2, 2**62) for each in numbers]
    assert len(set(seeds)) == len(seeds) == 80


def test_the_same_numbers_give_the_same_seed_on_every_machine():
    # Computed once; what a stored recipe repeats depends on them.
    assert derived_seed(0, 1) == 2918264622725855778
    assert derived_seed(7, 2, 3) == 1684239238610986860


def test_torch_takes_every_derived_seed():
    for numbers in range(200):
        assert torch.Generator().manual_seed(derived_seed(3, numbers)).initial_seed() < 2**63


@pytest.mark.bad_input
@pytest.mark.parametrize("seed", [-1, 0.5, True, None])
def test_a_seed_that_is_no_natural_number_is_named(seed):
    with pytest.raises(ValueError, match=rf"^seed is {seed}; expected an integer of at least 0"):
        derived_seed(seed)


def test_a_generator_draws_by_its_seed_and_leaves_the_global_one_alone():
    state = torch.get_rng_state()
    one, same, other = (
        torch.rand(4, generator=generator_for(*numbers)) for numbers in ((0, 1), (0, 1), (0, 2))
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeding_makes_what_torch_draws_repeatable(device):
    with restored_generators(device):
        draws = []
        for seed in (5, 5, 6):
            seed_generators(seed, device)
            draws.append((torch.rand(4), torch.rand(4, device=device)))
            torch.rand(3), torch.rand(3, device=device)
    for first, again, other in zip(*draws, strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_seeding_leaves_other_libraries_generators_alone():
    before = random.getstate(), np.random.get_state()[1].tolist()
    with restored_generators(CPU):
        seed_generators(5, CPU)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.parametrize("fails", [False, True])
def test_torchs_generators_are_put_back_also_after_an_error(device, fails):
    def draws():
        return torch.rand(3).tolist(), torch.rand(3, device=device).tolist()

    def draw_and_restore():
        with restored_generators(device):
            draws()
            if fails:
                raise RuntimeError("no luck today")

    with restored_generators(device):
        expected = draws()
    if fails:
        with pytest.raises(RuntimeError, match="no luck today"):
            draw_and_restore()
    else:
        draw_and_restore()
    assert draws() == expected


def test_an_accelerators_generator_is_put_back_too(monkeypatch):
    """With a stand-in for torch's module of the device."""
    device = torch.device("cuda", 1)
    states = {device: "before"}
    accelerator = SimpleNamespace(
        get_rng_state=states.__getitem__,
        set_rng_state=lambda state, on: states.update({on: state}),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: accelerator)
    with restored_generators(device):
        states[device] = "drawn from"
    assert states == {device: "before"}


# Versions


def test_the_versions_are_those_of_what_computes(monkeypatch):
    installed = importlib.metadata.version

    def version(name):
        if name == "alexnet-lib":  # it lies on the path, as under `make gpu`
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(devices, "version", version)
    found = versions()
    assert found["alexnet-lib"] == __version__
    assert [*found] == [
        "python",
        "alexnet-lib",
        "torch",
        "torchvision",
        "numpy",
        "pillow",
        "safetensors",
    ]
    assert torch.__version__.startswith(found["torch"])
    assert found["numpy"] == np.__version__
