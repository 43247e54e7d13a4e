"""The arguments of the entry functions of ``cpu.c``: its structures, field by field. No torch."""

import ctypes
import operator
from ctypes import c_char_p, c_float, c_int64, c_void_p
from typing import Any


def _fields(*declarations: tuple[Any, str]) -> list[tuple[str, Any]]:
    return [(name, kind) for kind, names in declarations for name in names.split()]


class Arguments(ctypes.Structure):
    """A structure whose values are converted by the kind of their field, never by their own type.

    An address is given as None or as the tensor or ctypes array that lies there, which is kept as
    long as the arguments. ctypes itself would cut an integer of more than 64 bits.

    Raises:
        TypeError: a value of another kind than its field.
        ValueError: an integer that 64 bits do not hold.
    """

    def __init__(self, **values: Any) -> None:
        kinds: dict[str, Any] = dict(self._fields_)  # type: ignore[arg-type]
        super().__init__(
            **{name: _CONVERSIONS[kinds[name]](name, value) for name, value in values.items()}
        )
        self._kept = values

    def wrong(self) -> str:
        """The arguments that the entry function refused, with their values."""
        names = (self.invalid or b"").decode().split()
        values = ((name, getattr(self, name)) for name in names)
        kinds: dict[str, Any] = dict(self._fields_)  # type: ignore[arg-type]
        return ", ".join(
            name if kinds[name] is c_void_p else f"{name} is {value}" for name, value in values
        )


class LrnArguments(Arguments):
    """Arguments of ``lrn``."""

    _fields_ = _fields(
        (c_void_p, "x grad out"),
        (c_int64, "batch channels pixels groups size channels_last dtype"),
        (c_float, "k alpha_over_size beta"),
        (c_int64, "next_tile out_of_memory"),
        (c_char_p, "invalid"),
    )


class EnlargeArguments(Arguments):
    """Arguments of ``enlarge``."""

    _fields_ = _fields(
        (c_void_p, "images corners mean std out"),
        (c_int64, "count channels height width resized_height resized_width top left"),
        (c_int64, "window crop size floating channels_last dtype"),
        (c_float, "scale"),
        (c_int64, "next_image out_of_memory"),
        (c_char_p, "invalid"),
    )


class ShrinkArguments(Arguments):
    """Arguments of ``shrink``."""

    _fields_ = _fields(
        (c_void_p, "images out"),
        (c_int64, "count channels height width"),
        (c_int64, "image_stride channel_stride row_stride column_stride"),
        (c_int64, "resized_height resized_width top left window"),
        (c_int64, "next_image out_of_memory"),
        (c_char_p, "invalid"),
    )


def _address(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, ctypes.Array):
        return ctypes.addressof(value)
    if hasattr(value, "data_ptr"):
        address: int = value.data_ptr()
        return address
    raise TypeError(f"{name} is {value!r}; expected a tensor, a ctypes array or None")


def _integer(name: str, value: Any) -> int:
    if hasattr(value, "data_ptr"):
        raise TypeError(f"{name} is a tensor; expected an integer")
    try:
        integer = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected an integer") from None
    if not -(2**63) <= integer < 2**63:
        raise ValueError(f"{name} is {integer}; expected an integer of 64 bits")
    return integer


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}; expected a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is {value}; expected a number that a float can hold") from None


_CONVERSIONS = {c_void_p: _address, c_int64: _integer, c_float: _number}


def try_entries(library: ctypes.CDLL) -> None:
    """Calls each entry function once, on few values.

    A compiler may use instructions that the processor lacks: a process that calls this ends then.
    """
    lrn: dict[str, Any]
    values, out = (c_float * 192)(*range(192)), (c_float * 192)()
    images, corners = (ctypes.c_uint8 * 192)(*range(192)), (ctypes.c_int32 * 2)()
    means, stds = (c_float * 3)(), (c_float * 3)(1, 1, 1)
    shape = {"channels": 3, "height": 8, "width": 8}
    for channels_last in (0, 1):
        for dtype in (0, 1):
            kinds = {"channels_last": channels_last, "dtype": dtype, "out": out}
            for grad in (None, values):
                lrn = {"x": values, "grad": grad, "batch": 1, "channels": 6, "pixels": 32}
                lrn |= {"groups": 1, "size": 5, "k": 2.0, "alpha_over_size": 0.1, **kinds}
                for beta in (0.75, 0.5):
                    library.lrn(ctypes.byref(LrnArguments(beta=beta, **lrn)))
            sides = {"resized_height": 8, "resized_width": 8, "window": 8, "crop": 8, "size": 8}
            source = {"images": images, "corners": corners, "mean": means, "std": stds}
            enlarge = {"count": 1, "scale": 1.0, **shape, **sides, **source, **kinds}
            library.enlarge(ctypes.byref(EnlargeArguments(**enlarge)))
    sides = {"resized_height": 4, "resized_width": 4, "window": 4}
    for channel, row, column in ((64, 8, 1), (1, 24, 3)):
        strides = {"image_stride": 192, "channel_stride": channel, "row_stride": row}
        strides |= {"column_stride": column}
        shrink = ShrinkArguments(images=images, out=out, count=1, **shape, **strides, **sides)
        library.shrink(ctypes.byref(shrink))
