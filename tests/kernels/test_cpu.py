"""The promises of the kernels: when they are compiled, what happens where they cannot be."""

import ctypes
import mmap
import os
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
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
        {"size": 2**40},
        {"channels": 2**60},
        {"count": 2**62},
    ],
    ids=str,
)
@pytest.mark.bad_input
def test_enlarging_refuses_sizes_that_do_not_fit_and_writes_nothing(changes):
    corners = torch.full((2, 2), 4, dtype=torch.int32)
    means, stds = (ctypes.c_float * 3)(), (ctypes.c_float * 3)(1, 1, 1)
    images, out = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.full((2, 3, 12, 12), 7.0)
    fields = {"count": 2, "channels": 3, "height": 8, "width": 8, "resized_height": 16}
    fields |= {"resized_width": 16, "window": 16, "crop": 12, "size": 12, "scale": 1.0, **changes}
    arguments = kernels._EnlargeArguments(
        images=images.data_ptr(),
        corners=corners.data_ptr(),
        mean=ctypes.addressof(means),
        std=ctypes.addressof(stds),
        out=out.data_ptr(),
        **fields,
    )
    with pytest.raises(ValueError, match="sizes or corners that do not fit each other"):
        kernels._run(kernels.load().enlarge, arguments, 1)
    assert (out == 7).all()


@needs_compiler
@pytest.mark.parametrize("corner", [-1, 5, 2**31 - 1])
def test_enlarging_refuses_corners_outside_and_writes_nothing_there(corner):
    preprocess, images = enlarging()
    arguments = {"crop": 12, "size": 12, "scale": 1.0, "mean": preprocess.mean}
    arguments |= {"std": preprocess.std, "dtype": torch.float32}
    for corners in ([[0, 0], [0, corner]], [[corner, 0], [4, 4]]):
        with pytest.raises(ValueError, match="corners that do not fit"):
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
    resize = kernels.Resize(5, 5, 0, 0, 5)
    for channels, step in ((3, 3), (3, 4), (1, 1), (2, 4), (1, 4), (2, 3), (5, 5)):
        size = (height * width - 1) * step + channels
        out = torch.empty(1, channels, 5, 5, dtype=torch.uint8)
        strides = (size, 1, width * step, step)
        arguments = kernels._ShrinkArguments(
            *(address + page - size, out.data_ptr(), 1, channels, height, width, *strides, *resize)
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
    ],
    ids=str,
)
def test_shrinking_refuses_sizes_that_do_not_fit_and_writes_nothing(changes):
    images, out = torch.zeros(2, 3, 9, 9).byte(), torch.full((2, 3, 5, 5), 7).byte()
    fields = {"count": 2, "channels": 3, "height": 9, "width": 9, "window": 5}
    fields |= {"resized_height": 5, "resized_width": 6, **changes}
    names = ("image_stride", "channel_stride", "row_stride", "column_stride")
    fields |= dict(zip(names, images.stride(), strict=True))
    arguments = kernels._ShrinkArguments(images=images.data_ptr(), out=out.data_ptr(), **fields)
    with pytest.raises(ValueError, match="sizes or corners that do not fit each other"):
        kernels._run(kernels.load().shrink, arguments, 1)
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
