"""The promises of the kernels: when they are compiled, what happens where they cannot be."""

import ctypes
import importlib.util
import mmap
import os
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import seeded
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from alexnet_lib import LocalResponseNorm, Preprocess
from alexnet_lib.data.images import to_unit
from alexnet_lib.kernels import compiling
from alexnet_lib.kernels import cpu as kernels
from alexnet_lib.kernels.arguments import EnlargeArguments, LrnArguments, ShrinkArguments
from alexnet_lib.network import normalization

COMPILED = kernels.load() is not None
needs_compiler = pytest.mark.skipif(not COMPILED, reason="there is no C compiler")
memory_formats = st.sampled_from([torch.contiguous_format, torch.channels_last])


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """The state of a process that has compiled nothing yet, with an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Optimising takes most of the time of compiling. The last of such flags counts.
    monkeypatch.setattr(compiling, "_FLAGS", (*compiling._FLAGS, "-O0"))
    monkeypatch.setattr(kernels, "_values_seen", 0)
    monkeypatch.delenv(compiling.SWITCH, raising=False)
    forget()
    yield tmp_path / "alexnet-lib"
    forget()


def forget():
    kernels._file_prefix.cache_clear()
    kernels._library.cache_clear()


def cached_file():
    return compiling.cached_file(kernels._file_prefix())


def activations(images=1):
    return torch.ones(images, 96, 55, 55)


# When they are compiled


@needs_compiler
def test_the_first_images_wait_for_no_compiler(fresh, monkeypatch):
    monkeypatch.setattr(compiling, "_compiled", lambda folder: pytest.fail("compiled"))
    for _ in range(10):
        LocalResponseNorm()(activations())


@needs_compiler
def test_they_are_compiled_once_the_work_repays_it(fresh, monkeypatch):
    values = activations().numel()
    monkeypatch.setattr(kernels, "_WORTH_COMPILING", 3 * values)
    files = []
    for _ in range(4):
        LocalResponseNorm()(activations())
        files.append(len(list(fresh.glob("*"))))
    assert files == [0, 0, 1, 1]


@needs_compiler
def test_values_are_counted_over_all_calls_and_nothing_is_compiled_before_enough(
    fresh, monkeypatch
):
    monkeypatch.setattr(kernels, "_WORTH_COMPILING", 100)
    compiled = []
    real = compiling._compiled
    monkeypatch.setattr(compiling, "_compiled", lambda new: compiled.append(new) or real(new))
    for values in (60, 39):
        assert kernels.load_when_worthwhile(values) is None
    assert not compiled
    library = kernels.load_when_worthwhile(1)
    assert library is not None
    assert kernels.load_when_worthwhile(0) is kernels.load() is library
    assert len(compiled) == 1


@needs_compiler
def test_load_compiles_at_once_however_little_there_was_to_compute(fresh):
    library = kernels.load()
    assert library is not None
    assert cached_file() is not None
    assert kernels.load_when_worthwhile(0) is library


@needs_compiler
def test_what_an_earlier_process_compiled_is_used_at_once(fresh, monkeypatch):
    kernels.load()
    forget()
    monkeypatch.setattr(compiling, "_compiled", lambda folder: pytest.fail("compiled"))
    assert kernels.load_when_worthwhile(1) is not None


@needs_compiler
def test_another_processor_or_compiler_gets_kernels_of_its_own(fresh, monkeypatch):
    first = kernels._file_prefix()
    forget()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    second = kernels._file_prefix()
    forget()
    monkeypatch.setattr(compiling, "_compiler", lambda: ("another-cc",))
    assert len({first, second, kernels._file_prefix()}) == 3


@needs_compiler
def test_the_tests_compile_into_a_folder_of_their_own_and_leave_the_users_alone():
    folder = Path(os.environ["XDG_CACHE_HOME"])
    assert folder.name.startswith("alexnet-lib-tests-")
    assert folder.parent == Path(tempfile.gettempdir())
    forget()
    assert Path(kernels.load()._name).is_relative_to(folder)


# Where they cannot be


def use_three_times():
    assert kernels.load() is None
    result = LocalResponseNorm()(activations())
    kernels.load()
    return result


def result_with_one_warning(matching):
    with pytest.warns(RuntimeWarning, match=matching) as caught:
        result = use_three_times()
    assert len(caught) == 1
    return result


def no_compiler():
    raise compiling.KernelError("there is no C compiler")


def test_without_a_compiler_one_warning_says_so_and_torch_computes(fresh, monkeypatch):
    expected = torch.nn.LocalResponseNorm(5, k=2.0)(activations())
    monkeypatch.setattr(compiling, "_compiler", no_compiler)
    result = result_with_one_warning("no C compiler")
    torch.testing.assert_close(result, expected)


def test_little_work_without_a_compiler_is_worth_no_warning(fresh, monkeypatch):
    monkeypatch.setattr(compiling, "_compiler", no_compiler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LocalResponseNorm()(activations())


def test_a_compiler_that_fails_is_quoted_in_one_warning(fresh, monkeypatch):
    script = "import sys; sys.exit('no such option')"
    monkeypatch.setattr(compiling, "_compiler", lambda: (sys.executable, "-c", script))
    result_with_one_warning("no such option")
    assert not list(fresh.iterdir())


@pytest.mark.parametrize("error", [OSError, MemoryError, RuntimeError, UnicodeError])
def test_no_error_of_compiling_reaches_the_computation(fresh, monkeypatch, error):
    def fail(prefix):
        raise error("something else")

    monkeypatch.setattr(compiling, "library", fail)
    result_with_one_warning("something else")


@pytest.mark.parametrize("value", ["off", " OFF "])
def test_the_switch_keeps_them_away_without_a_warning(fresh, monkeypatch, value):
    monkeypatch.setenv(compiling.SWITCH, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.load() is None
        LocalResponseNorm()(activations())
    assert not fresh.exists()


@needs_compiler
@pytest.mark.parametrize("value", ["on", ""])
def test_the_switch_can_say_what_is_the_default(fresh, monkeypatch, value):
    monkeypatch.setenv(compiling.SWITCH, value)
    assert kernels.load() is not None


@pytest.mark.bad_input
@pytest.mark.parametrize("value", ["0", "false", "of"])
def test_another_value_of_the_switch_is_named_and_nothing_is_compiled(fresh, monkeypatch, value):
    monkeypatch.setenv(compiling.SWITCH, value)
    result_with_one_warning(f"ALEXNET_LIB_KERNELS is '{value}'; expected 'on' or 'off'")
    assert not fresh.exists()


# New kernels are compared with torch


def broken(entry, spoil):
    """The kernels with one entry function that computes with other arguments than it was given."""
    library = kernels.load()

    def call(arguments):
        spoil(arguments._obj)
        getattr(library, entry)(arguments)

    entries = {name: getattr(library, name) for name in ("lrn", "enlarge", "shrink")}
    return SimpleNamespace(**{**entries, entry: call})


def spoiled(name, value, only=lambda arguments: True):
    return lambda arguments: only(arguments) and setattr(arguments, name, value)


@needs_compiler
def test_right_kernels_pass_the_comparison_with_torch():
    assert kernels._wrong_entry(kernels.load()) is None


@needs_compiler
@pytest.mark.parametrize(
    ("entry", "spoil"),
    [
        ("lrn", spoiled("k", 2.1, lambda a: not a.grad and not a.channels_last and not a.dtype)),
        ("lrn", spoiled("k", 2.1, lambda a: a.grad and not a.channels_last and not a.dtype)),
        ("lrn", spoiled("k", 2.1, lambda a: not a.grad and a.channels_last and not a.dtype)),
        ("lrn", spoiled("k", 2.1, lambda a: a.grad and a.channels_last and a.dtype)),
        ("lrn", spoiled("groups", 1, lambda a: not a.grad and a.dtype)),
        ("lrn", spoiled("beta", 0.6, lambda a: a.size == 4 and a.grad)),
        ("enlarge", spoiled("scale", 1.1, lambda a: a.dtype and a.channels_last)),
        ("enlarge", spoiled("scale", 1.1, lambda a: not a.floating and not a.dtype)),
        ("enlarge", spoiled("resized_width", 10)),
        ("shrink", spoiled("left", 0)),
        ("shrink", spoiled("top", 1, lambda a: a.channel_stride == 1)),
    ],
)
def test_kernels_that_differ_from_torch_in_one_case_are_found(entry, spoil):
    kernels_that_fail = broken(entry, spoil)
    if entry == "shrink":
        kernels_that_fail = broken(entry, lambda a: (setattr(a, "resized_height", 7), spoil(a)))
    assert kernels._wrong_entry(kernels_that_fail) == entry


@needs_compiler
@pytest.mark.parametrize(("flag", "entry"), [("-Dsqrtf=fabsf", "lrn"), ("-Dceil=floor", "shrink")])
def test_a_compiler_that_miscompiles_is_one_warning_and_its_result_is_not_kept(
    fresh, monkeypatch, flag, entry
):
    monkeypatch.setattr(compiling, "_compiler", lambda: ("gcc", flag))
    result = result_with_one_warning(f"the compiled function '{entry}' gives wrong results")
    torch.testing.assert_close(result, torch.nn.LocalResponseNorm(5, k=2.0)(activations()))
    assert not list(fresh.iterdir())


@needs_compiler
def test_the_comparison_draws_no_random_numbers_and_heeds_no_mode_of_the_caller(fresh):
    state = torch.get_rng_state()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with (
            torch.device("meta"),
            torch.inference_mode(),
            torch.autocast("cpu"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("error")
            assert kernels.load() is not None
    finally:
        torch.set_default_dtype(default)
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_that_runs_out_is_an_error_not_a_wrong_result(monkeypatch):
    with pytest.raises(MemoryError, match="scratch"):
        kernels._run(lambda arguments: None, LrnArguments(out_of_memory=1), 1)


# Threads


@needs_compiler
def test_pythons_threads_compute_what_torchs_do(monkeypatch):
    x = torch.randn(8, 10, 40, 40)
    expected = LocalResponseNorm()(x)
    monkeypatch.setattr(kernels, "load_when_worthwhile", lambda values: kernels.load())
    monkeypatch.setattr(kernels, "_run_in_threads", lambda: kernels._run_in_python_threads)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    torch.testing.assert_close(LocalResponseNorm()(x), expected)


FORK = """
import os, signal, sys, threading, torch
from alexnet_lib import LocalResponseNorm
from alexnet_lib.kernels import cpu as kernels

torch.set_num_threads(3)
kernels.load()
x = torch.linspace(-1, 1, 8 * 10 * 40 * 40).reshape(8, 10, 40, 40)
expected = LocalResponseNorm()(x).numpy().tobytes()
# Another thread is compiling, it may be.
kernels._lock.acquire()
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(20)
result = LocalResponseNorm()(x).numpy().tobytes()
os._exit(0 if kernels.load() and result == expected else 1)
"""


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="about forked processes")
def test_a_forked_process_has_kernels_with_several_threads():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=False)
    assert done.returncode == 0


RUNTIMES = """
import torch
from alexnet_lib import LocalResponseNorm
from alexnet_lib.kernels import cpu as kernels

kernels.load()
LocalResponseNorm()(torch.randn(8, 10, 40, 40))
with open("/proc/self/maps", encoding="utf-8") as maps:
    names = {line.split()[-1] for line in maps}
print(sum("omp" in name.rsplit("/", 1)[-1].split(".")[0] for name in names))
"""


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_second_openmp_runtime_is_loaded():
    command = [sys.executable, "-c", RUNTIMES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in {"0", "1"}


# Arguments


def names(*words):
    return set(words)


@needs_compiler
@pytest.mark.bad_input
@pytest.mark.parametrize(
    "changes",
    [
        {"x": None},
        {"out": None},
        {"batch": 0},
        {"batch": -1},
        {"batch": 2**62},
        {"channels": 0},
        {"channels": 2**62},
        {"pixels": -(2**63)},
        {"pixels": 2**62},
        {"groups": 0},
        {"groups": -2},
        {"groups": 4},
        {"groups": 2**63 - 1},
        {"size": 0},
        {"size": -40},  # what 64 bits make of 2**64 - 40
        {"size": 6},
        {"size": 2**63 - 1},
        {"channels_last": 2},
        {"dtype": -1},
        {"dtype": 2},
        {"next_tile": -1},
    ],
    ids=str,
)
@pytest.mark.parametrize("backward", [False, True])
def test_normalizing_refuses_arguments_that_do_not_fit_and_writes_nothing(changes, backward):
    x, out = torch.zeros(2, 6, 8), torch.full((2, 6, 8), 7.0)
    fields = {"x": x, "out": out, "batch": 2, "channels": 6, "pixels": 8, "groups": 2, "size": 5}
    fields |= {"grad": x} if backward else {}
    arguments = LrnArguments(**{**fields, **changes})
    with pytest.raises(ValueError, match="do not fit each other") as caught:
        kernels._run(kernels.load().lrn, arguments, 1)
    assert names(*changes) <= names(*str(caught.value).replace(",", "").split())
    assert (out == 7).all()


@needs_compiler
@pytest.mark.bad_input
def test_addresses_at_which_no_value_can_lie_are_refused():
    memory = (ctypes.c_uint8 * 400)()
    x, odd = torch.zeros(2, 6, 8), (ctypes.c_uint8 * 390).from_buffer(memory, 1)
    fields = {"x": x, "grad": x, "out": x, "batch": 2, "channels": 6, "pixels": 8, "groups": 1}
    for name in ("x", "grad", "out"):
        arguments = LrnArguments(**{**fields, "size": 1, name: odd})
        with pytest.raises(ValueError, match=f"do not fit each other: {name}$"):
            kernels._run(kernels.load().lrn, arguments, 1)


def test_memory_of_another_library_at_an_odd_address_is_computed_by_torch():
    memory = bytearray(1 + 4 * 96)
    x = torch.frombuffer(memory, dtype=torch.float32, offset=1).reshape(2, 6, 8)
    x.copy_(torch.randn(2, 6, 8))
    kernels.load()
    torch.testing.assert_close(LocalResponseNorm()(x), LocalResponseNorm()(x.clone()))


@pytest.mark.bad_input
@pytest.mark.parametrize("name", [name for name, _ in LrnArguments._fields_])
@pytest.mark.parametrize("value", [torch.ones(()), torch.nn.Parameter(torch.ones(2)), "1", 1j])
def test_a_field_takes_values_of_its_own_kind_only(name, value):
    # By its type, a tensor would be the address where it lies.
    if name in {"x", "grad", "out"} and isinstance(value, torch.Tensor):
        assert getattr(LrnArguments(**{name: value}), name) == value.data_ptr()
    elif name != "invalid":
        with pytest.raises(TypeError, match=f"{name} is"):
            LrnArguments(**{name: value})


@pytest.mark.bad_input
@pytest.mark.parametrize("value", [2**63, 2**64 - 40, -(2**63) - 1])
def test_an_integer_of_more_than_64_bits_is_refused_not_cut(value):
    with pytest.raises(ValueError, match=f"size is {value}; expected an integer of 64 bits"):
        LrnArguments(size=value)


def test_memory_lives_as_long_as_the_arguments_that_give_its_address():
    x = torch.ones(4)
    arguments = LrnArguments(x=x)
    count = sys.getrefcount(x)
    del arguments
    assert sys.getrefcount(x) == count - 1


@needs_compiler
def test_no_images_are_no_error():
    preprocess, images = enlarging()
    assert preprocess.network_input(images[:0]).shape == (0, 3, 12, 12)
    small = Preprocess(4, 4).resized(images[:0])
    assert small.shape == (0, 3, 4, 4)


# Enlarging images


@needs_compiler
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from(["crop", "squash"]),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(0, 30),
    st.integers(0, 6),
    st.integers(0, 3),
    st.sampled_from([1.0, 255.0]),
    st.sampled_from([torch.uint8, torch.float32]),
    memory_formats,
    st.integers(0, 2**32),
)
def test_enlarging_is_what_torchs_operations_give(
    count, channels, image_fit, shape, larger, margin, edge, scale, kind, memory_format, seed
):
    resize = max(shape) + larger
    crop = max(1, resize - margin)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(
        0, 256, (count, channels, *shape), dtype=torch.uint8, generator=generator
    )
    images = images if kind == torch.uint8 else images / 255
    corners = torch.randint(0, resize - crop + 1, (count, 2), generator=generator)
    size, mean, std = crop + edge, (0.5, 0.4, 0.3, 0.2)[:channels], (0.25, 0.2, 2.0, 1.0)[:channels]
    preprocess = Preprocess(resize, size, image_fit, scale, mean, std, edge)
    arguments = {"resize": preprocess._resize(*shape), "crop": crop, "size": size, "scale": scale}
    arguments |= {"mean": mean, "std": std, "memory_format": memory_format}
    whole = preprocess.normalized(to_unit(preprocess.resized(images)))
    expected = torch.zeros(count, channels, size, size)
    for image, (top, left), out in zip(whole, corners.tolist(), expected, strict=True):
        out[:, :crop, :crop] = image[:, top : top + crop, left : left + crop]
    kernels.load()
    actual = kernels.enlarge(images, corners, dtype=torch.float32, **arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * scale)
    assert actual.is_contiguous(memory_format=memory_format)
    assert not actual[:, :, crop:].any()
    assert not actual[..., crop:].any()
    short = kernels.enlarge(images, corners, dtype=torch.bfloat16, **arguments)
    assert torch.equal(short, actual.bfloat16())


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_another_dtype_are_left_to_torchs_operations(dtype):
    preprocess, images = enlarging()
    arguments = {"resize": preprocess._resize(8, 8), "crop": 12, "size": 12, "scale": 1.0}
    arguments |= {"mean": preprocess.mean, "std": preprocess.std, "dtype": torch.float32}
    corners = torch.zeros(2, 2, dtype=torch.int64)
    result = kernels.enlarge(
        (images / 255).to(dtype), corners, memory_format=torch.contiguous_format, **arguments
    )
    assert result is None


@needs_compiler
def test_images_and_corners_need_not_be_contiguous():
    preprocess, images = enlarging()
    corners = torch.tensor([[0, 4], [2, 1]])
    expected = preprocess.network_input(images, corners=corners)
    strided = images.to(memory_format=torch.channels_last)
    result = preprocess.network_input(strided, corners=corners.T.contiguous().T)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


@needs_compiler
def test_several_threads_cut_each_image_at_its_own_corner(monkeypatch):
    preprocess = Preprocess(100, 80, mean=(0.5,) * 3, std=(0.25,) * 3)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=generator)
    corners = torch.randint(0, 21, (16, 2), generator=generator)
    kernels.load()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    expected = preprocess.network_input(images, corners=corners)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    result = preprocess.network_input(images, corners=corners)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def enlarging():
    kernels.load()
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    return Preprocess(16, 12, mean=(0.5,) * 3, std=(0.25,) * 3), images


def test_enlarging_can_be_traced_and_mapped():
    preprocess, images = enlarging()
    other = images.flip(-1)
    expected = preprocess.network_input(other)
    graph = make_fx(lambda images: preprocess.network_input(images))(images)  # noqa: PLW0108
    torch.testing.assert_close(graph(other), expected)
    mapped = torch.func.vmap(lambda image: preprocess.network_input(image[None])[0])(other)
    torch.testing.assert_close(mapped, expected)


@needs_compiler
def test_enlarging_stays_on_the_images_device_whatever_the_default_is():
    preprocess, images = enlarging()
    expected = preprocess.network_input(images)
    assert preprocess.network_input(images.to("meta")).device.type == "meta"
    with torch.device("meta"):
        result = preprocess.network_input(images)
    torch.testing.assert_close(result, expected)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "shape", [(2, 1, 8, 8), (2, 4, 8, 8), (2, 3, 0, 0), (8, 8), (2, 2, 3, 8, 8)]
)
def test_images_of_another_shape_are_refused_not_read(shape):
    preprocess, _ = enlarging()
    with pytest.raises(ValueError, match="images has shape") as caught:
        preprocess.network_input(torch.zeros(shape, dtype=torch.uint8))
    assert str(shape) in str(caught.value)


@needs_compiler
@pytest.mark.parametrize(
    "changes",
    [
        {"channels": 0},
        {"count": -1},
        {"height": 0},
        {"width": 2**40},
        {"height": 17},
        {"resized_height": 7},
        {"resized_width": 2**62},
        {"top": -1},
        {"left": 1},
        {"window": 0},
        {"window": 17},
        {"crop": 0},
        {"crop": 17},
        {"crop": 13},
        {"size": 11},
        {"size": 2**30},
        {"size": 2**40},
        {"channels": 2**60},
        {"count": 2**62},
        {"count": 0},
        {"dtype": 2},
        {"floating": -1},
        {"channels_last": 2},
        {"next_image": -1},
        {"images": None},
        {"corners": None},
        {"mean": None},
        {"std": None},
        {"out": None},
    ],
    ids=str,
)
@pytest.mark.bad_input
def test_enlarging_refuses_sizes_that_do_not_fit_and_writes_nothing(changes):
    corners = torch.full((2, 2), 4, dtype=torch.int32)
    means, stds = (ctypes.c_float * 3)(), (ctypes.c_float * 3)(1, 1, 1)
    images, out = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.full((2, 3, 12, 12), 7.0)
    fields = {"count": 2, "channels": 3, "height": 8, "width": 8, "resized_height": 16}
    fields |= {"resized_width": 16, "window": 16, "crop": 12, "size": 12, "scale": 1.0}
    fields |= {"images": images, "corners": corners, "mean": means, "std": stds, "out": out}
    arguments = EnlargeArguments(**{**fields, **changes})
    with pytest.raises(ValueError, match="do not fit each other") as caught:
        kernels._run(kernels.load().enlarge, arguments, 1)
    assert names(*changes) <= names(*str(caught.value).replace(",", "").split())
    assert (out == 7).all()


@needs_compiler
@pytest.mark.parametrize("corner", [-1, 5, 2**31 - 1])
def test_enlarging_refuses_corners_outside_and_writes_nothing_there(corner):
    preprocess, images = enlarging()
    arguments = {"crop": 12, "size": 12, "scale": 1.0, "mean": preprocess.mean}
    arguments |= {"std": preprocess.std, "dtype": torch.float32}
    for corners in ([[0, 0], [0, corner]], [[corner, 0], [4, 4]]):
        with pytest.raises(ValueError, match="do not fit each other: corners"):
            kernels.enlarge(
                images,
                torch.tensor(corners),
                preprocess._resize(8, 8),
                memory_format=torch.contiguous_format,
                **arguments,
            )


# Shrinking images


def layouts(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same images (N, C, H, W) with other strides."""
    count, channels, height, width = images.shape
    pixels = images.permute(0, 2, 3, 1)
    padded = torch.zeros(count, height, width, 4, dtype=torch.uint8)
    found = {
        "contiguous": images,
        "channels last": pixels.contiguous().permute(0, 3, 1, 2),
        "transposed": images.transpose(2, 3).contiguous().transpose(2, 3),
        "every second": torch.stack([images, 255 - images], dim=-1)[..., 0],
    }
    if channels <= 4:
        padded[..., :channels] = pixels
        found["four bytes"] = padded[..., :channels].permute(0, 3, 1, 2)
        shifted = padded.roll(4 - channels, -1)
        found["last of four"] = shifted[..., 4 - channels :].permute(0, 3, 1, 2)
    return found


@needs_compiler
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.data(),
)
def test_shrinking_is_the_rounded_resize_whatever_the_strides(count, channels, shape, size, data):
    window = data.draw(st.integers(1, min(size)))
    top, left = (data.draw(st.integers(0, side - window)) for side in size)
    resize = kernels.Resize(*size, top, left, window)
    generator = torch.Generator().manual_seed(window)
    images = torch.randint(0, 256, (count, channels, *shape), generator=generator).byte()
    rows, columns = (triangles(side, resized) for side, resized in zip(shape, size, strict=True))
    exact = rows @ images.double() @ columns.T
    exact = exact[..., top : top + window, left : left + window]
    kernels.load()
    for same in layouts(images).values():
        assert torch.equal(same, images)
        result = kernels.shrink(same, resize)
        assert result.is_contiguous()
        # Rounded once: half a level, and the precision of float32.
        assert (result - exact).abs().max() <= 0.5001
    grey = images[:, :1].expand(-1, 3, -1, -1)
    assert (kernels.shrink(grey, resize) - exact[:, :1]).abs().max() <= 0.5001


def triangles(side: int, resized: int) -> torch.Tensor:
    """The weights (resized, side) of an antialiased bilinear resize of one side, in float64."""
    centers = (torch.arange(resized, dtype=torch.float64)[:, None] + 0.5) * side / resized
    apart = (torch.arange(side, dtype=torch.float64) + 0.5 - centers).abs()
    weights = (1 - apart / max(side / resized, 1)).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


@needs_compiler
def test_shrinking_reads_no_byte_beyond_the_image():
    # The last pixel of these views has no bytes after its channels: an address behind them could
    # be one that does not exist. Memory that ends with its page shows it.
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None)
    if libc.mprotect(ctypes.c_void_p(address + page), page, 0):
        pytest.skip("mprotect is not allowed")
    height, width = 9, 11
    for channels, step in ((3, 3), (3, 4), (1, 1), (2, 4), (1, 4), (2, 3), (5, 5)):
        size = (height * width - 1) * step + channels
        out = torch.empty(1, channels, 5, 5, dtype=torch.uint8)
        arguments = ShrinkArguments(
            images=(ctypes.c_uint8 * size).from_buffer(memory, page - size),
            out=out,
            **{"count": 1, "channels": channels, "height": height, "width": width},
            **{"image_stride": size, "channel_stride": 1, "row_stride": width * step},
            **{"column_stride": step, "resized_height": 5, "resized_width": 5, "window": 5},
        )
        kernels._run(kernels.load().shrink, arguments, 1)
        assert not out.any()


@needs_compiler
@pytest.mark.bad_input
@pytest.mark.parametrize(
    "changes",
    [
        {"count": -1},
        {"count": 2**62},
        {"channels": 0},
        {"channels": 2**62},
        {"height": 0},
        {"width": 2**40},
        {"resized_height": 4},
        {"resized_width": 0},
        {"resized_width": 2**62},
        {"top": -1},
        {"left": 2},
        {"window": 0},
        {"window": 2**62},
        {"count": 0},
        {"image_stride": 2**62},
        {"channel_stride": -1},
        {"row_stride": 2**60},
        {"column_stride": -(2**63)},
        {"next_image": 2**63 - 1},
        {"images": None},
        {"out": None},
    ],
    ids=str,
)
def test_shrinking_refuses_sizes_that_do_not_fit_and_writes_nothing(changes):
    images, out = torch.zeros(2, 3, 9, 9).byte(), torch.full((2, 3, 5, 5), 7).byte()
    fields = {"count": 2, "channels": 3, "height": 9, "width": 9, "window": 5}
    fields |= {"resized_height": 5, "resized_width": 6, "images": images, "out": out}
    strides = ("image_stride", "channel_stride", "row_stride", "column_stride")
    fields |= dict(zip(strides, images.stride(), strict=True))
    arguments = ShrinkArguments(**{**fields, **changes})
    with pytest.raises(ValueError, match="do not fit each other") as caught:
        kernels._run(kernels.load().shrink, arguments, 1)
    assert names(*changes) <= names(*str(caught.value).replace(",", "").split())
    assert (out == 7).all()


@needs_compiler
@pytest.mark.parametrize(("count", "threads"), [(1, 1), (2, 2), (8, 3)])
def test_an_image_is_shrunk_in_one_thread_and_a_batch_in_several(monkeypatch, count, threads):
    numbers = []

    def in_threads(entry, arguments, number):
        numbers.append(number)
        kernels._run_in_python_threads(entry, arguments, number)

    images = torch.randint(0, 256, (count, 3, 300, 400), dtype=torch.uint8)
    preprocess = Preprocess(250, 227)
    kernels.load()
    expected = torch.stack([preprocess.resized(image) for image in images])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(kernels, "_run_in_threads", lambda: in_threads)
    assert torch.equal(preprocess.resized(images), expected)
    assert numbers == ([threads] if threads > 1 else [])


@needs_compiler
def test_threads_shrink_images_at_the_same_time():
    images = torch.randint(0, 256, (8, 3, 300, 400), dtype=torch.uint8)
    preprocess = Preprocess(227, 227)
    kernels.load()
    expected = [preprocess.resized(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for image, result in zip(expected, pool.map(preprocess.resized, images), strict=True):
            assert torch.equal(image, result)


def test_other_dtypes_devices_and_traces_are_shrunk_by_torch():
    preprocess = Preprocess(16, 12)
    images = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    resize = preprocess._resize(40, 50)
    assert kernels.shrink(images.float() / 255, resize) is None
    assert kernels.shrink(images.to("meta"), resize) is None
    assert preprocess.resized(images.to("meta")).shape == (2, 3, 16, 16)
    expected = preprocess.resized(images).int()
    graph = make_fx(lambda images: preprocess.resized(images))(images)  # noqa: PLW0108
    assert (graph(images).int() - expected).abs().max() <= 1


# On any device


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("size", "groups", "beta"), [(5, 2, 0.75), (4, 1, 0.3), (1, 3, 1.2)])
def test_on_a_device_output_and_gradient_are_the_formulas_in_float64(
    device, dtype, memory_format, size, groups, beta, monkeypatch
):
    # Of many blocks, and none of them whole.
    shape = (3, 12, 37, 53)
    x, grad = (3 * torch.randn(shape, generator=seeded(seed)) for seed in (0, 1))
    x, grad = (y.to(dtype).contiguous(memory_format=memory_format) for y in (x, grad))
    settings = kernels.LrnSettings(size, 0.5, beta, 2.0, groups)
    monkeypatch.setattr(normalization, "_WORTH_TRITON", 0)
    if device.type == "cuda" and importlib.util.find_spec("triton"):
        assert normalization._gpu_kernels(device) is not None
    y = normalization._computed(x.to(device), None, settings)
    gradient = normalization._computed(x.to(device), grad.to(device), settings)
    expected = normalization._output(x.double(), settings)
    expected_gradient = normalization._gradient(x.double(), grad.double(), settings)
    # float32's rounding of the sums, then that of the result.
    close = {"rtol": 2e-5 + torch.finfo(dtype).eps / 2, "atol": 2e-5}
    for result, exact in ((y, expected), (gradient, expected_gradient)):
        assert (result.dtype, result.device) == (dtype, device)
        assert result.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(result.cpu().double(), exact, **close)
