"""Files of ``torch.save``: their tensors, read without running anything that the files name.

The pickle is not unpickled but interpreted: it gives dictionaries, lists, tuples, plain values and
tensors. Whatever else it names or calls is an ``Unread``. The memory that is taken is bounded by
the size of the file.
"""

import math
import pickletools
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

# Bytes of a pickle, whose objects can take two hundred times as much; that of a network, with its
# optimiser, has some kilobytes.
_LONGEST_PICKLE = 4 << 20
_CHUNK = 1 << 20

_STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "QInt8": torch.int8,
    "QUInt8": torch.uint8,
    "QInt32": torch.int32,
    "Untyped": torch.uint8,
}
_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_DICTIONARIES = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter"}
_REBUILDS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
_PARAMETERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
}

_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Unread("builtins.set"),
}
# Of the operations with a literal, the parts of their names.
_LITERALS = ("INT", "LONG", "FLOAT", "UNICODE", "STRING", "BYTES", "BYTEARRAY")
# How many values an operation takes from the stack; of the others, all above a mark and as many.
_TAKES = {
    **{"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 2, "SETITEM": 3, "STACK_GLOBAL": 2},
    **{"REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3, "BUILD": 2, "BINPERSID": 1},
}
_TAKES_MARKED = {"TUPLE": 0, "LIST": 0, "DICT": 0, "APPENDS": 1, "SETITEMS": 1, "ADDITEMS": 1}

# The tensor of a storage: its key in the file, its dtype, its length.
_Storage = Callable[[str, torch.dtype, int], Tensor]


@dataclass(frozen=True, eq=False)
class Unread:
    """A class or function that a file names, or an object of it, which only its code could read."""

    name: str


def read_torch_file(file: Path) -> Any:
    """What ``torch.save`` was given; raises errors of many types for a damaged file."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive, file.stat().st_size)
    with file.open("rb") as opened:
        return _read_legacy(opened, file.stat().st_size)


def _read_archive(archive: zipfile.ZipFile, size: int) -> Any:
    parts = {part.filename: part for part in archive.infolist()}
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts.values()):
        raise ValueError("it is compressed, which torch.save does not do: unpack it, save it again")
    if sum(part.file_size for part in archive.infolist()) > size:
        raise ValueError("its parts are longer than the file")
    root = next(name for name in parts if name.endswith("data.pkl")).removesuffix("data.pkl")
    _check_length(parts[f"{root}data.pkl"].file_size)
    order = f"{root}byteorder"
    if order in parts and archive.read(order).decode() != sys.byteorder:
        raise ValueError("it is of a machine with another order of bytes")
    loaded: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in loaded:
            content = bytearray()
            with archive.open(f"{root}data/{key}") as part:  # whose checksum is verified
                while chunk := part.read(_CHUNK):
                    content += chunk
            loaded[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0)
        values = loaded[key].view(dtype)
        if len(values) != count:
            raise ValueError(f"a tensor has {len(values)} numbers in place of {count}")
        return values

    return _interpreted(archive.read(f"{root}data.pkl"), storage)


def _read_legacy(opened: BinaryIO, size: int) -> Any:
    """The format before torch 1.6: pickles one after the other, then the numbers."""
    loaded: dict[str, Tensor] = {}
    left = size

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        nonlocal left
        if key not in loaded:
            left -= count * dtype.itemsize
            if count < 0 or left < 0:
                raise ValueError("its tensors are longer than the file")
            loaded[key] = torch.zeros(count, dtype=dtype)
        return loaded[key].view(dtype)

    for _ in range(3):  # a number, a version, the system
        _interpreted(opened, storage)
    saved = _interpreted(opened, storage)
    for key in _interpreted(opened, storage):
        values = loaded.pop(key)
        if int.from_bytes(opened.read(8), sys.byteorder) != len(values):
            raise ValueError("a tensor has another length than it should have")
        content: Any = values.view(torch.uint8).numpy()
        if len(content) and opened.readinto(content) != len(content):  # type: ignore[attr-defined]
            raise ValueError("it ends within a tensor")
    if loaded:
        raise ValueError("tensors are missing")
    return saved


def _interpreted(pickle: Any, storage: _Storage) -> Any:
    """The object of a pickle, given as bytes or as a file at its start."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    for operation, argument in _operations(pickle):
        if operation == "STOP":
            break
        if operation == "MARK":
            marks.append(len(stack))
        elif operation.endswith("PUT"):
            memo[argument] = stack[-1]
        elif operation == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif operation.endswith("GET"):
            stack.append(memo[argument])
        elif operation not in {"PROTO", "FRAME"}:
            count = _TAKES.get(operation, 0)
            if operation in _TAKES_MARKED:
                count = len(stack) - marks.pop() + _TAKES_MARKED[operation]
            start = len(stack) - count
            if not 0 <= start <= len(stack):
                raise ValueError("the pickle takes more than it holds")
            items = stack[start:]
            del stack[start:]
            stack.append(_value(operation, argument, items, storage))
    return stack.pop()


def _operations(pickle: Any) -> Iterator[tuple[str, Any]]:
    first = None
    for code, argument, position in pickletools.genops(pickle):
        place = position or 0
        first = place if first is None else first
        _check_length(place - first)
        yield code.name, argument


def _check_length(pickle: int) -> None:
    if pickle > _LONGEST_PICKLE:
        raise ValueError(f"its pickle is longer than {_LONGEST_PICKLE:,} bytes")


def _value(operation: str, argument: Any, items: list[Any], storage: _Storage) -> Any:
    """What an operation makes of the values that it takes."""
    value = argument
    match operation:
        case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
            value = tuple(items)
        case "LIST":
            value = items
        case "DICT":
            value = _extended({}, items)
        case "APPEND" | "APPENDS" | "SETITEM" | "SETITEMS" | "ADDITEMS":
            value = _extended(items[0], items[1:])
        case "GLOBAL":
            value = Unread(argument.replace(" ", ".", 1))
        case "STACK_GLOBAL":
            value = Unread(".".join(items))
        case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
            value = _called(*items[:2])
        case "BUILD":
            value = items[0]  # without attributes, which no plain value has
        case "BINPERSID":
            value = _persistent(items[0], storage)
        case _ if operation in _CONSTANTS:
            value = _CONSTANTS[operation]()
        case _ if not any(literal in operation for literal in _LITERALS):
            raise ValueError(f"the pickle has an unknown operation, {operation}")
    return value


def _extended(container: Any, items: list[Any]) -> Any:
    """A list or a dictionary with more items; of another object they are left out."""
    if isinstance(container, list):
        container += items
    elif isinstance(container, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            # To hash what is nested can take for ever.
            plain = isinstance(key, str | bytes | int | float | None)
            container[key if plain else Unread(type(key).__name__)] = value
    return container


def _persistent(identifier: Any, storage: _Storage) -> Any:
    if identifier[0] == "module":  # before torch 1.6: a class with its source
        return identifier[1]
    _, kind, key, _, count, *view = identifier
    dtype = _STORAGES[kind.name.rpartition(".")[2].removesuffix("Storage")]
    values = storage(str(key), dtype, count)
    if view and view[0] is not None:
        _, start, length = view[0]
        values = values[start : start + length]
    return values


def _called(function: Any, arguments: Any) -> Any:
    """The result of a call, if it makes a tensor or a plain container."""
    name = function.name if isinstance(function, Unread) else ""
    if name in _DICTIONARIES:
        pairs = arguments[0] if name.endswith("OrderedDict") and arguments else []
        return _extended({}, [value for pair in pairs for value in pair])
    if name == "torch.Size":
        return tuple(arguments[0])
    if name in _PARAMETERS and isinstance(arguments[0], Tensor):
        return arguments[0]
    if name == "torch._tensor._rebuild_from_type_v2":
        return _called(arguments[0], arguments[2])
    if name in _REBUILDS and isinstance(arguments[0], Tensor):
        dtype = _DTYPES[arguments[6].name] if name.endswith("v3") else arguments[0].dtype
        return _tensor(arguments[0].view(dtype), *arguments[1:4])
    return Unread(name or type(function).__name__)


def _tensor(values: Tensor, start: Any, shape: Any, strides: Any) -> Tensor:
    numbers = (start, *shape, *strides)
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError("a tensor has a shape that is none")
    if math.prod(shape) and start + sum(
        (side - 1) * stride for side, stride in zip(shape, strides, strict=True)
    ) >= len(values):
        raise ValueError("a tensor reaches beyond its numbers")
    return torch.as_strided(values, shape, strides, start)
