"""Calls the kernels with random arguments, valid and invalid: (library, number of cases, seed).

Built with sanitizers, the library ends the process at the first access outside of an array and at
the first undefined operation. Whether arguments are valid is decided here a second time, with
integers of any size.
"""

import ctypes
import random
import sys
from typing import Any

from alexnet_lib.kernels.arguments import (
    Arguments,
    EnlargeArguments,
    LrnArguments,
    ShrinkArguments,
)

LARGEST = 2**20  # bytes of an array here
MOST = (2**63 - 1) // 8  # bytes of any array
LONGEST = 2**30

EXTREMES = (0, -1, 1, 2, 2**15, 2**30, 2**30 + 1, 2**31, 2**32, 2**40, 2**61, 2**62, 2**63 - 1)

Fields = dict[str, Any]


class TooLargeError(Exception):
    """Valid, but more than is to be allocated here."""


def is_flag(value: int) -> bool:
    return value in {0, 1}


def fits(length: int, resized: int, first: int, side: int) -> bool:
    return (
        0 < length <= LONGEST
        and 0 < resized <= 2**40
        and first >= 0
        and 0 < side <= LONGEST
        and side <= resized - first
    )


def array(count: int, each: int, chance: random.Random, kind: Any = ctypes.c_uint8) -> Any:
    """Random bytes, of exactly this size."""
    if count * each > LARGEST:
        raise TooLargeError
    return (kind * (count * each // ctypes.sizeof(kind))).from_buffer_copy(
        chance.randbytes(count * each)
    )


# LRN


def lrn_fields(chance: random.Random) -> Fields:
    groups = chance.choice([1, 1, 2, 3])
    group = chance.randint(1, 40)
    return {
        "batch": chance.randint(1, 3),
        "channels": groups * group,
        "pixels": chance.choice([chance.randint(1, 40), chance.randint(500, 1100)]),
        "groups": groups,
        "size": chance.choice([5, chance.randint(1, 2 * group - 1)]),
        "channels_last": chance.randint(0, 1),
        "dtype": chance.randint(0, 1),
        "k": chance.choice([0.0, 2.0, float("nan")]),
        "alpha_over_size": chance.choice([0.0, 0.1, float("inf")]),
        "beta": chance.choice([0.75, 0.5, 0.0]),
    }


def lrn_is_valid(f: Fields) -> bool:
    each = 2 if f["dtype"] else 4
    return (
        is_flag(f["dtype"])
        and is_flag(f["channels_last"])
        and min(f["batch"], f["channels"], f["pixels"], f["groups"], f["size"]) >= 1
        and f["batch"] * f["channels"] * f["pixels"] * each <= MOST
        and f["channels"] % f["groups"] == 0
        and f["size"] <= 2 * (f["channels"] // f["groups"]) - 1
    )


def lrn_arrays(f: Fields, chance: random.Random) -> Fields:
    count, each = f["batch"] * f["channels"] * f["pixels"], 2 if f["dtype"] else 4
    grad = array(count, each, chance) if chance.random() < 0.5 else None
    return {"x": array(count, each, chance), "grad": grad, "out": array(count, each, chance)}


# Enlarging


def enlarge_fields(chance: random.Random) -> Fields:
    height, width = chance.randint(1, 24), chance.randint(1, 24)
    taller, wider = height + chance.randint(0, 40), width + chance.randint(0, 40)
    window = chance.randint(1, min(taller, wider))
    crop = chance.randint(1, window)
    return {
        "count": chance.randint(1, 3),
        "channels": chance.choice([1, 2, 3, 3, 4]),
        "height": height,
        "width": width,
        "resized_height": taller,
        "resized_width": wider,
        "top": chance.randint(0, taller - window),
        "left": chance.randint(0, wider - window),
        "window": window,
        "crop": crop,
        "size": crop + chance.randint(0, 5),
        "floating": chance.randint(0, 1),
        "channels_last": chance.randint(0, 1),
        "dtype": chance.randint(0, 1),
        "scale": chance.choice([1.0, 255.0, float("inf")]),
    }


def enlarge_is_valid(f: Fields) -> bool:
    return (
        all(is_flag(f[name]) for name in ("dtype", "channels_last", "floating"))
        and fits(f["height"], f["resized_height"], f["top"], f["window"])
        and fits(f["width"], f["resized_width"], f["left"], f["window"])
        and f["height"] <= f["resized_height"]
        and f["width"] <= f["resized_width"]
        and 1 <= f["crop"] <= min(f["window"], f["size"])
        and f["size"] <= LONGEST
        and f["count"] >= 1
        and 1 <= f["channels"] <= LONGEST
        and f["count"] * f["channels"] * f["height"] * f["width"] * 4 <= MOST
        and f["count"] * f["channels"] * f["size"] ** 2 * 4 <= MOST
    )


def enlarge_arrays(f: Fields, chance: random.Random) -> Fields:
    count, channels = f["count"], f["channels"]
    # Tables and scratch memory.
    if channels * f["window"] * max(f["window"], f["height"], f["width"]) > LARGEST:
        raise TooLargeError
    corners = array(2 * count, 4, chance, ctypes.c_int32)
    for i in range(2 * count):
        corners[i] = chance.randint(0, f["window"] - f["crop"])
    return {
        "images": array(count * channels * f["height"] * f["width"], 4 ** f["floating"], chance),
        "corners": corners,
        "mean": array(channels, 4, chance),
        "std": array(channels, 4, chance),
        "out": array(count * channels * f["size"] ** 2, 2 if f["dtype"] else 4, chance),
    }


# Shrinking


def shrink_fields(chance: random.Random) -> Fields:
    count, channels = chance.randint(1, 3), chance.choice([1, 2, 3, 3, 4, 5])
    height, width = chance.randint(1, 60), chance.randint(1, 60)
    taller, wider = chance.randint(1, 50), chance.randint(1, 50)
    window = chance.randint(1, min(taller, wider))
    step = max(channels, chance.choice([3, 4]))
    gap = chance.randint(0, 2)
    row, column, channel = chance.choice(
        [
            (width + gap, 1, (width + gap) * height),
            (step * width + gap, step, 1),
            (1, height, height * width),
            (0, 0, 0),
        ]
    )
    return {
        "count": count,
        "channels": channels,
        "height": height,
        "width": width,
        "image_stride": chance.choice([0, channel * channels + row * height + column * width]),
        "channel_stride": channel,
        "row_stride": row,
        "column_stride": column,
        "resized_height": taller,
        "resized_width": wider,
        "top": chance.randint(0, taller - window),
        "left": chance.randint(0, wider - window),
        "window": window,
    }


STRIDES = (
    ("image_stride", "count"),
    ("channel_stride", "channels"),
    ("row_stride", "height"),
    ("column_stride", "width"),
)


def shrink_is_valid(f: Fields) -> bool:
    return (
        fits(f["height"], f["resized_height"], f["top"], f["window"])
        and fits(f["width"], f["resized_width"], f["left"], f["window"])
        and min(f["count"], f["channels"]) >= 1
        and f["count"] * f["channels"] * f["height"] * f["width"] <= MOST
        and f["count"] * f["channels"] * f["window"] ** 2 <= MOST
        and all(f[stride] >= 0 and f[stride] * f[number] <= MOST for stride, number in STRIDES)
    )


def shrink_arrays(f: Fields, chance: random.Random) -> Fields:
    last = sum(f[stride] * (f[number] - 1) for stride, number in STRIDES)
    # Tables of weights, and time.
    if f["window"] * (f["height"] + f["width"]) * f["channels"] * f["count"] > LARGEST:
        raise TooLargeError
    out = array(f["count"] * f["channels"] * f["window"] ** 2, 1, chance)
    return {"images": array(last + 1, 1, chance), "out": out}


ENTRIES: dict[str, tuple[type[Arguments], Any, Any, Any]] = {
    "lrn": (LrnArguments, lrn_fields, lrn_is_valid, lrn_arrays),
    "enlarge": (EnlargeArguments, enlarge_fields, enlarge_is_valid, enlarge_arrays),
    "shrink": (ShrinkArguments, shrink_fields, shrink_is_valid, shrink_arrays),
}


def spoil(fields: Fields, chance: random.Random) -> None:
    """One or two fields become other integers."""
    integers = [name for name, value in fields.items() if isinstance(value, int)]
    for name in chance.sample(integers, chance.randint(1, 2)):
        value = chance.choice([*EXTREMES, fields[name] + 1, fields[name] - 1, 2 * fields[name]])
        fields[name] = chance.choice([value, value, -value])


def call(library: Any, chance: random.Random) -> str:
    """One case; what became of it."""
    entry = chance.choice([*ENTRIES])
    kind, fields_of, is_valid, arrays_of = ENTRIES[entry]
    fields = fields_of(chance)
    if chance.random() < 0.6:
        spoil(fields, chance)
    valid = is_valid(fields)
    try:
        arrays = arrays_of(fields if valid else fields_of(chance), chance)
    except TooLargeError:
        return "left out"
    out = bytes(arrays["out"])
    if valid and chance.random() < 0.1:
        missing = chance.choice([name for name in arrays if name != "grad"])
        arrays[missing], valid = None, False
    if valid and entry == "enlarge" and chance.random() < 0.1:
        # Of the last image: the images before it are computed.
        arrays["corners"][-1] = chance.choice(
            [-1, 2**31 - 1, fields["window"] - fields["crop"] + 1]
        )
        arguments = kind(**fields, **arrays)
        getattr(library, entry)(ctypes.byref(arguments))
        assert arguments.invalid == b"corners", (entry, fields)
        return "refused"
    arguments = kind(**fields, **arrays)
    getattr(library, entry)(ctypes.byref(arguments))
    assert not arguments.out_of_memory, (entry, fields)
    assert (arguments.invalid is None) == valid, (entry, fields, arguments.invalid)
    if valid:
        return f"computed by {entry}"
    assert arrays["out"] is None or bytes(arrays["out"]) == out, (entry, fields)
    return "refused"


def main() -> None:
    library, cases, seed = ctypes.CDLL(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    counts: dict[str, int] = {}
    for _ in range(cases):
        outcome = call(library, chance)
        counts[outcome] = counts.get(outcome, 0) + 1
    print(*(f"{outcome}: {count}" for outcome, count in sorted(counts.items())), sep="\n")


if __name__ == "__main__":
    main()
