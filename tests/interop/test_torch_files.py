"""Files of `torch.save` from strangers: read completely, or refused in words; nothing is run."""

import io
import pickle
import random
import struct
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import pytest
import torch
from tiny import TINY
from torch import nn

from alexnet_lib import AlexNet, from_state_dict, from_torchvision
from alexnet_lib.interop import torch_files
from alexnet_lib.interop.torch_files import Unread, read_torch_file


def tiny() -> AlexNet:
    return AlexNet(3, architecture=TINY, seed=0)


def saved(folder: Path, value: object, *, legacy: bool = False) -> Path:
    file = folder / "weights.pth"
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    return file


def repacked(file: Path, change, compression: int = zipfile.ZIP_STORED) -> Path:
    """The file with `change(name, content)` for each part of it."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, change(name, content))
    return file


def with_pickle(folder: Path, content: bytes) -> Path:
    """A file of torch.save whose pickle is this one."""
    file = saved(folder, dict(tiny().state_dict()))
    return repacked(file, lambda name, part: content if name.endswith("data.pkl") else part)


def problem_of(weights, **arguments) -> str:
    with pytest.raises(ValueError, match="weights") as caught:
        from_state_dict(weights, **{"architecture": TINY, **arguments})
    return str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8),
        *(torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64, torch.complex128),
    ],
    ids=str,
)
def test_what_torch_saves_is_read_as_torch_reads_it(dtype, legacy, tmp_path):
    values = torch.randint(0, 100, (4, 6), generator=torch.Generator().manual_seed(0)).to(dtype)
    given = {
        "whole": values,
        "transposed": values.T,
        "part": values[1:3, 2:],
        "shared": values[0],
        "scalar": values[0, 0],
        "empty": values[:0],
        "nested": [{"a": (values, 1, 2.5, None, True, "text", b"bytes")}],
    }
    file = saved(tmp_path, given, legacy=legacy)
    ours, theirs = read_torch_file(file), torch.load(file, weights_only=True)
    nested, expected = ours.pop("nested")[0]["a"], theirs.pop("nested")[0]["a"]
    assert torch.equal(nested[0], expected[0])
    assert nested[1:6] == expected[1:6]
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("legacy", [False, True])
def test_parameters_containers_and_new_dtypes_are_read(legacy, tmp_path):
    parameter = nn.Parameter(torch.ones(2))
    parameter.note = "an attribute"
    given = OrderedDict(weight=parameter, plain=nn.Parameter(torch.zeros(3)), size=torch.Size([2]))
    given["eight"] = torch.ones(3).to(torch.float8_e4m3fn)
    given["default"] = defaultdict(list, a=[1])
    read = read_torch_file(saved(tmp_path, given, legacy=legacy))
    assert torch.equal(read["weight"], torch.ones(2))
    assert torch.equal(read["plain"], torch.zeros(3))
    assert read["size"] == (2,)
    assert torch.equal(read["eight"].float(), torch.ones(3))
    assert read["default"] == {"a": [1]}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_every_protocol_that_torch_can_be_told_is_read(protocol, tmp_path):
    file, model = tmp_path / "weights.pth", tiny()
    torch.save({"state_dict": model.state_dict(), "epoch": 10**30}, file, pickle_protocol=protocol)
    loaded = from_state_dict(file, architecture=TINY)
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


# Nothing is run


class Runs:
    """What pickle would call."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.bad_input
@pytest.mark.parametrize("legacy", [False, True])
def test_what_a_pickle_calls_is_not_called(legacy, tmp_path):
    victim = tmp_path / "victim"
    victim.touch()
    given = {"state_dict": dict(tiny().state_dict()), "x": Runs(Path.unlink, victim)}
    given["y"] = Runs(bytearray, 10**15)
    file = saved(tmp_path, given, legacy=legacy)
    read = read_torch_file(file)
    assert isinstance(read["x"], Unread)
    assert read["y"].name == "__builtin__.bytearray"
    assert from_state_dict(file, architecture=TINY).num_classes == 3
    assert victim.exists()


# Nothing is exhausted


@pytest.mark.bad_input
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("shape", [(4 * 10**9,), (10**6, 64), (2**40, 2**20)], ids=str)
def test_a_tensor_that_says_more_than_it_stores_is_refused(shape, legacy, tmp_path):
    state = dict(tiny().state_dict())
    state["classifier.fc2.weight"] = torch.zeros(1).expand(shape)
    file = saved(tmp_path, state, legacy=legacy)
    assert file.stat().st_size < 10_000
    assert "weights['classifier.fc2.weight'] has " in (message := problem_of(file))
    assert "expected a tensor that is not expanded: pass a clone() of it" in message
    with pytest.raises(ValueError, match="is not expanded"):
        from_torchvision(file)
    assert "is not expanded" in problem_of(state)


@pytest.mark.bad_input
def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    file = saved(tmp_path, {"a.weight": torch.zeros(10**6), "a.bias": torch.zeros(1)})
    repacked(file, lambda name, part: part, zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 10_000
    assert "it is compressed, which torch.save does not do" in problem_of(file)


@pytest.mark.bad_input
def test_parts_that_lie_over_each_other_are_refused(tmp_path):
    file = saved(tmp_path, {"a.weight": torch.zeros(1000), "a.bias": torch.zeros(1000)})
    data = bytearray(file.read_bytes())
    # In the directory at the end, where each part starts and how long it is.
    entries = [i for i in range(len(data)) if data[i : i + 4] == b"PK\x01\x02"]
    first = next(i for i in entries if b"/data/0" in data[i + 46 : i + 80])
    second = next(i for i in entries if b"/data/1" in data[i + 46 : i + 80])
    for place in (20, 24):
        data[second + place : second + place + 4] = struct.pack("<I", 10**9)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    file.write_bytes(data)
    assert "its parts are longer than the file" in problem_of(file)


@pytest.mark.bad_input
@pytest.mark.parametrize("legacy", [False, True])
def test_a_storage_that_says_more_than_the_file_has_is_refused(legacy, tmp_path):
    file = saved(tmp_path, {"a.weight": torch.zeros(300), "a.bias": torch.zeros(1)}, legacy=legacy)
    data = file.read_bytes()
    new = data.replace(b"M\x2c\x01", b"J" + struct.pack("<i", 2**31 - 1))
    if not legacy:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            new = archive.read(name).replace(b"M\x2c\x01", b"J" + struct.pack("<i", 2**31 - 1))
        repacked(file, lambda name, part: new if name.endswith("data.pkl") else part)
    else:
        file.write_bytes(new)
    reason = "tensors are longer than the file" if legacy else "has 300 numbers in place of 214748"
    assert reason in problem_of(file)


@pytest.mark.bad_input
def test_a_pickle_that_takes_more_than_it_holds_is_refused(tmp_path):
    assert "takes more than it holds" in problem_of(with_pickle(tmp_path, b"\x80\x02R."))


@pytest.mark.bad_input
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_is_too_long_is_refused(legacy, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files, "_LONGEST_PICKLE", 1000)
    file = saved(tmp_path, {"log": [*range(1000)]}, legacy=legacy)
    assert "its pickle is longer than 1,000 bytes" in problem_of(file)


def doubled_tuples() -> bytes:
    """A dictionary whose key takes 2**200 steps to hash, or to print."""
    tuples = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(200))
    return b"\x80\x02}K\x00" + tuples + b"K\x01s."


HOSTILE = {
    "a key of nested tuples": doubled_tuples(),
    "lists in lists": b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "a dictionary that holds itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "an empty stack": b"\x80\x02.",
    "a mark that is missing": b"\x80\x02u.",
    "a memo that is missing": b"\x80\x02h\x05.",
    "a call of nothing": b"\x80\x02R.",
    "an unknown operation": b"\x80\x02\x00.",
    "another operation": b"\x80\x020.",
    "an integer of many digits": pickle.dumps({10**5000: 10**5000}, protocol=2),
    "a list": b"\x80\x02].",
    "a storage of nothing": b"\x80\x02NQ.",
    "a text longer than the file": b"\x80\x02X\xff\xff\xff\x7fa.",
    "an odd number of items": b"\x80\x02}(K\x01u.",
}


@pytest.mark.bad_input
@pytest.mark.parametrize("case", list(HOSTILE))
def test_hostile_pickles_are_refused_in_a_moment(case, tmp_path):
    file = with_pickle(tmp_path, HOSTILE[case])
    with pytest.raises((ValueError, TypeError), match="weights"):
        from_state_dict(file, architecture=TINY)


# Damage


@pytest.mark.bad_input
def test_any_bit_that_flips_is_found_or_changes_nothing(tmp_path):
    model = tiny()
    file = saved(tmp_path, model.state_dict())
    whole, draw, found = file.read_bytes(), random.Random(0), 0
    first = whole.index(model.classifier.fc2.weight.detach().numpy().tobytes())
    for place in [*(draw.randrange(len(whole)) for _ in range(300)), first + 3]:
        data = bytearray(whole)
        data[place] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
        try:
            loaded = from_state_dict(file, architecture=TINY)
        except ValueError as error:
            found += 1
            assert "weights" in str(error)  # noqa: PT017
        else:
            for name, tensor in model.state_dict().items():
                assert torch.equal(loaded.state_dict()[name], tensor), (place, name)
    assert found > 20  # of a file that is mostly padding


@pytest.mark.bad_input
@pytest.mark.parametrize("legacy", [False, True])
def test_every_cut_is_found(legacy, tmp_path):
    file = saved(tmp_path, tiny().state_dict(), legacy=legacy)
    whole = file.read_bytes()
    for length in random.Random(0).sample(range(len(whole)), 200):
        file.write_bytes(whole[:length])
        assert str(file) in problem_of(file)


# Kinds of tensors and names


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "build",
    [
        lambda weight: weight.to_sparse(),
        lambda weight: weight.flatten(1).to_sparse_csr(),
        lambda weight: torch.nested.nested_tensor([weight[0], weight[1]]),
        lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        lambda weight: weight.to(torch.float8_e4m3fn),
        lambda weight: weight.to(torch.complex64),
        lambda weight: weight.to("meta"),
        lambda weight: weight.double() * 1e300,
    ],
    ids=["sparse", "csr", "nested", "quantised", "float8", "complex", "meta", "too large"],
)
@pytest.mark.parametrize("from_file", [False, True])
def test_tensors_that_are_no_weights_are_named(build, from_file, tmp_path):
    state = dict(tiny().state_dict())
    state["features.conv1.weight"] = build(state["features.conv1.weight"])
    message = problem_of(saved(tmp_path, state) if from_file else state)
    assert message.startswith("weights")
    assert "features.conv1.weight" in message


@pytest.mark.bad_input
def test_names_of_a_stranger_do_not_reach_the_terminal(tmp_path):
    red = "\x1b[31m"
    for state in ({f"{red}.weight": torch.ones(2, 2)}, {"a.running_mean" + red: torch.ones(2)}):
        message = problem_of(saved(tmp_path, state))
        assert message.isprintable()


@pytest.mark.bad_input
def test_names_that_differ_only_in_wrappers_are_refused():
    state = dict(tiny().state_dict())
    state |= {f"module.{name}": tensor for name, tensor in state.items()}
    assert "names that differ only in the parts that wrappers add" in problem_of(state)
