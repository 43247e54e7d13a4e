"""The promises of the kernels: when they are compiled, what happens where they cannot be."""

import ctypes
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from alexnet_lib import LocalResponseNorm, Preprocess
from alexnet_lib.data.images import to_unit
from alexnet_lib.kernels import cpu as kernels

COMPILED = kernels.load() is not None
needs_compiler = pytest.mark.skipif(not COMPILED, reason="there is no C compiler")
memory_formats = st.sampled_from([torch.contiguous_format, torch.channels_last])


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """The state of a process that has compiled nothing yet, with an empty cache folder."""
    monkeypatch.setattr(kernels, "_cache_folder", lambda: tmp_path)
    monkeypatch.setattr(kernels, "_values_seen", 0)
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    forget()
    yield tmp_path
    forget()


def forget():
    kernels._cached_file.cache_clear()
    kernels._library.cache_clear()


def activations(images=1):
    return torch.ones(images, 96, 55, 55)


# When they are compiled


@needs_compiler
def test_the_first_images_wait_for_no_compiler(fresh, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("compiled"))
    for _ in range(10):
        LocalResponseNorm()(activations())


@needs_compiler
def test_they_are_compiled_once_the_work_repays_it(fresh, monkeypatch):
    values = activations().numel()
    monkeypatch.setattr(kernels, "_WORTH_COMPILING", 3 * values)
    files = []
    for _ in range(4):
        LocalResponseNorm()(activations())
        files.append(len(list(fresh.iterdir())))
    assert files == [0, 0, 1, 1]


@needs_compiler
def test_values_are_counted_over_all_calls_and_nothing_is_compiled_before_enough(
    fresh, monkeypatch
):
    monkeypatch.setattr(kernels, "_WORTH_COMPILING", 100)
    compiled = []
    real = kernels._compile
    monkeypatch.setattr(kernels, "_compile", lambda new: compiled.append(new) or real(new))
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
    assert kernels._cached_file().exists()
    assert kernels.load_when_worthwhile(0) is library


@needs_compiler
def test_what_an_earlier_process_compiled_is_used_at_once(fresh, monkeypatch):
    kernels.load()
    forget()
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("compiled"))
    assert kernels.load_when_worthwhile(1) is not None


@needs_compiler
def test_a_damaged_file_in_the_cache_is_replaced(fresh):
    kernels._cached_file().write_bytes(b"no library")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.load() is not None
    assert kernels._cached_file().stat().st_size > 1000


@needs_compiler
def test_compiling_leaves_one_file_and_nothing_half_written(fresh):
    assert kernels.load() is not None
    assert [file.name for file in fresh.iterdir()] == [kernels._cached_file().name]


@needs_compiler
def test_another_processor_or_compiler_gets_kernels_of_its_own(fresh, monkeypatch):
    first = kernels._cached_file()
    forget()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    second = kernels._cached_file()
    forget()
    monkeypatch.setattr(kernels, "_compiler", lambda: ("another-cc",))
    assert len({first, second, kernels._cached_file()}) == 3


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


def test_without_a_compiler_one_warning_says_so_and_torch_computes(fresh, monkeypatch):
    expected = torch.nn.LocalResponseNorm(5, k=2.0)(activations())
    monkeypatch.setattr(kernels, "_compiler", lambda: None)
    result = result_with_one_warning("no C compiler")
    torch.testing.assert_close(result, expected)


def test_little_work_without_a_compiler_is_worth_no_warning(fresh, monkeypatch):
    monkeypatch.setattr(kernels, "_compiler", lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LocalResponseNorm()(activations())


def test_a_compiler_that_fails_is_quoted_in_one_warning(fresh, monkeypatch):
    script = "import sys; sys.exit('no such option')"
    monkeypatch.setattr(kernels, "_compiler", lambda: (sys.executable, "-c", script))
    result_with_one_warning("no such option")
    assert not list(fresh.iterdir())


@needs_compiler
def test_where_the_cache_cannot_be_written_each_process_compiles(fresh, monkeypatch):
    (fresh / "file").touch()
    monkeypatch.setattr(kernels, "_cache_folder", lambda: fresh / "file" / "folder")
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.load() is not None
    expected = torch.nn.LocalResponseNorm(5, k=2.0)(activations())
    torch.testing.assert_close(LocalResponseNorm()(activations()), expected)


@needs_compiler
def test_a_user_without_a_home_has_kernels_too(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(kernels.Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.load() is not None
    forget()


def test_the_switch_keeps_them_away_without_a_warning(fresh, monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "off")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.load() is None
        LocalResponseNorm()(activations())
    assert not list(fresh.iterdir())


def test_memory_that_runs_out_is_an_error_not_a_wrong_result(monkeypatch):
    class Arguments(ctypes.Structure):
        _fields_ = (("out_of_memory", ctypes.c_int64),)

    with pytest.raises(MemoryError, match="scratch"):
        kernels._run(lambda arguments: None, Arguments(1), 1)


# Threads


@needs_compiler
def test_pythons_threads_compute_what_torchs_do(monkeypatch):
    x = torch.randn(8, 10, 40, 40)
    expected = LocalResponseNorm()(x)
    monkeypatch.setattr(kernels, "load_when_worthwhile", lambda values: kernels.load())
    monkeypatch.setattr(kernels, "_run_in_threads", lambda: kernels._run_in_python_threads)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    torch.testing.assert_close(LocalResponseNorm()(x), expected)


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


# On a GPU

TRITON = """
import torch
from alexnet_lib.kernels import cpu as kernels
from alexnet_lib.network import normalization
from alexnet_lib.kernels import gpu as triton_kernels

generator = torch.Generator().manual_seed(0)
for shape, groups, size, beta in (
    ((2, 12, 3, 5), 2, 5, 0.75), ((1, 6, 4), 1, 4, 0.3), ((3, 8, 3, 3), 1, 3, 1.2)
):
    for channels_last in {False, len(shape) == 4}:
        x, grad = (3 * torch.randn(shape, generator=generator) for _ in range(2))
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        settings = kernels.LrnSettings(size, 0.5, beta, 2.0, groups)
        y = triton_kernels.local_response_norm(x, None, settings)
        torch.testing.assert_close(y, normalization._output(x, settings))
        gradient = triton_kernels.local_response_norm(x, grad, settings)
        torch.testing.assert_close(gradient, normalization._gradient(x, grad, settings))
        assert gradient.is_contiguous(memory_format=torch.channels_last) == channels_last
print("equal")
"""


def test_the_triton_kernel_gives_the_formulas_output_and_gradient():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", TRITON]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr
