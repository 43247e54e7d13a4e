"""The promises of the checks: an error names the argument, what came and what was expected."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum, StrEnum
from fractions import Fraction
from typing import Annotated, Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from alexnet_lib.checks import (
    ABOVE_ZERO,
    AT_LEAST_ZERO,
    FRACTION,
    PROBABILITY,
    Range,
    as_integer,
    as_number,
    at_least,
    check_choice,
    check_fields,
    check_integer,
    check_number,
    length_of,
    shown,
    type_name,
)

# For each range: its text, values inside and values outside.
RANGES = {
    ABOVE_ZERO: ("a finite number above 0", (1e-300, 1, 1e300), (0, 0.0, -0.0, -1, 10**400)),
    AT_LEAST_ZERO: ("a finite number of at least 0", (0, -0.0, 2.5), (-1e-300, -1)),
    PROBABILITY: ("a probability from 0 to 1", (0, 0.5, 1, 1.0), (-1e-9, 1.001, 2)),
    FRACTION: ("a fraction from 0 to below 1", (0, 0.0, 0.999), (1, 1.0, -0.1)),
}
INSIDE = [(allowed, value) for allowed, (_, inside, _) in RANGES.items() for value in inside]
OUTSIDE = [
    (allowed, value)
    for allowed, (_, _, outside) in RANGES.items()
    for value in (*outside, math.nan, math.inf, -math.inf, None, "1", True, [1], np.True_, 1j)
]


@dataclass
class Fields:
    """One field of each kind that can be declared."""

    text: str = "a"
    flag: bool = False
    count: int = 0
    number: float = 0.0
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    at_least_two: Annotated[int, at_least(2)] = 2
    share: Annotated[float, FRACTION] = 0.5
    maybe_text: str | None = None
    maybe_count: Annotated[int | None, at_least(1)] = None
    maybe_share: Annotated[float | None, FRACTION] = None
    maybe_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(("allowed", "value"), INSIDE)
def test_a_number_in_its_range_passes(allowed, value):
    check_number("rate", value, allowed)


@pytest.mark.parametrize(("allowed", "value"), OUTSIDE)
def test_a_number_outside_of_its_range_is_named_with_the_range(allowed, value):
    text = f"rate is {shown(value)}; expected {RANGES[allowed][0]}"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        check_number("rate", value, allowed)


@pytest.mark.parametrize("value", [3, 4, 10**400])
def test_an_integer_that_is_large_enough_passes(value):
    check_integer("count", value, 3)
    check_integer("count", None, 3, optional=True)


@pytest.mark.parametrize("value", [2, -3, 3.0, True, "3", math.nan, math.inf, None])
def test_another_integer_is_named_with_the_least(value):
    text = f"count is {value!r}; expected an integer of at least 3"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        check_integer("count", value, 3)


def test_an_optional_integer_may_be_none_and_the_error_says_so():
    with pytest.raises(
        ValueError, match=r"^count is 2; expected an integer of at least 3, or None$"
    ):
        check_integer("count", 2, 3, optional=True)


@pytest.mark.parametrize("value", ["a", 1, None])
def test_a_choice_passes(value):
    check_choice("kind", value, ["a", 1, None])


@pytest.mark.parametrize("value", ["b", 1.0, True, 2, ["a"], math.nan])
def test_what_is_no_choice_is_named_with_all_choices(value):
    text = f"kind is {value!r}; expected one of 'a', 1, None"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        check_choice("kind", value, ("a", 1, None))


def test_choices_may_come_from_an_iterator():
    with pytest.raises(ValueError, match=r"expected one of 'a', 'b'$"):
        check_choice("kind", "c", iter("ab"))


def test_fields_of_their_types_and_in_their_ranges_pass():
    Fields()
    Fields("b", True, -5, 3, "b", ("x", "y"), 9, 0, "c", 1, 0.0, ())


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("text", 1, "a string"),
        ("text", None, "a string"),
        ("flag", 1, "True or False"),
        ("flag", "yes", "True or False"),
        ("count", 1.0, "an integer"),
        ("count", True, "an integer"),
        ("number", "1", "a number"),
        ("number", False, "a number"),
        ("kind", "c", "one of 'a', 'b'"),
        ("kind", None, "one of 'a', 'b'"),
        ("names", ["x"], "a tuple of strings"),
        ("names", (1,), "a tuple of strings"),
        ("names", "xy", "a tuple of strings"),
        ("at_least_two", 1, "an integer of at least 2"),
        ("at_least_two", 2.0, "an integer of at least 2"),
        ("share", 1, "a fraction from 0 to below 1"),
        ("share", math.nan, "a fraction from 0 to below 1"),
        ("maybe_text", 1, "a string, or None"),
        ("maybe_count", 0, "an integer of at least 1, or None"),
        ("maybe_share", -0.5, "a fraction from 0 to below 1, or None"),
        ("maybe_names", [], "a tuple of strings, or None"),
    ],
)
def test_a_field_of_another_type_or_range_is_named(field, value, expected):
    with pytest.raises(
        ValueError, match=f"^{re.escape(f'{field} is {value!r}; expected {expected}')}$"
    ):
        Fields(**{field: value})


# Numbers of other libraries.


class Colour(IntEnum):
    RED = 3


class Kind(StrEnum):
    A = "a"


INTEGERS = [
    *(kind(3) for kind in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32)),
    *(np.int64(3), np.uint64(3), np.array(3), np.array(3, dtype=np.uint8)),
    *(torch.tensor(3), torch.tensor(3, dtype=torch.uint8), Colour.RED),
]
NUMBERS = [
    *(kind(0.5) for kind in (np.float16, np.float32, np.float64, np.longdouble)),
    *(np.array(0.5), np.array(0.5, dtype=np.float32), torch.tensor(0.5)),
    *(torch.tensor(0.5, dtype=torch.bfloat16), Fraction(1, 2)),
]
NO_NUMBERS = [
    *(True, np.True_, np.False_, np.array(True), torch.tensor(True), "3", b"3", None, 1j),
    *(
        np.complex64(1),
        Decimal(3),
        np.array([3, 4]),
        np.array("3"),
        [3],
        (3,),
        np.datetime64("2020"),
    ),
]


@pytest.mark.parametrize("value", INTEGERS, ids=repr)
def test_an_integer_of_any_library_becomes_a_plain_one(value):
    for plain in (check_integer("count", value, 3), as_integer(value), as_number(value)):
        assert (type(plain), plain) == (int, 3)
    assert type(check_number("rate", value, ABOVE_ZERO)) is int


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_a_number_of_any_library_becomes_a_plain_one(value):
    plain = check_number("rate", value, FRACTION)
    assert (type(plain), plain) == (float, 0.5)
    assert as_integer(value) is None
    with pytest.raises(ValueError, match=re.escape(f"count is {value!r}; expected an integer")):
        check_integer("count", value, 0)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_stays_none(value):
    assert as_integer(value) is None
    assert as_number(value) is None
    with pytest.raises(ValueError, match=re.escape(f"rate is {value!r}; expected a finite number")):
        check_number("rate", value, AT_LEAST_ZERO)


def test_an_integer_may_be_huge_but_a_number_not():
    assert check_integer("count", 10**400, 3) == 10**400
    for value in (10**400, -(10**400), Fraction(10**400), np.longdouble("1e4000")):
        with pytest.raises(ValueError, match="expected a number above -1"):
            check_number("rate", value, Range("a number above -1", lambda x: x > -1))


def test_fields_of_other_libraries_become_plain():
    fields = Fields(
        text=np.str_("b"),
        flag=np.True_,
        count=np.int8(4),
        number=np.float32(0.5),
        kind=Kind.A,
        at_least_two=torch.tensor(2),
        maybe_share=np.array(0.25),
    )
    expected = {"text": "b", "flag": True, "count": 4, "number": 0.5, "kind": "a"}
    expected |= {"at_least_two": 2, "maybe_share": 0.25}
    for name, value in expected.items():
        plain = getattr(fields, name)
        assert (type(plain), plain) == (type(value), value), name


@pytest.mark.parametrize(
    ("value", "choice"),
    [(np.int64(2), 2), (np.str_("a"), "a"), (Kind.A, "a"), (np.True_, True), (torch.tensor(2), 2)],
)
def test_a_choice_of_other_libraries_becomes_the_plain_one(value, choice):
    plain = check_choice("kind", value, ["a", 2, True, None])
    assert (type(plain), plain) == (type(choice), choice)


@pytest.mark.parametrize("value", [np.True_, np.float64(1), np.array([1]), torch.tensor(True)])
def test_a_choice_of_another_type_is_refused(value):
    with pytest.raises(ValueError, match=r"expected one of 1, 'a'$"):
        check_choice("kind", value, [1, "a"])


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (3, "int"),
        (None, "NoneType"),
        (np.int64(3), "numpy.int64"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (Fields(), f"{__name__}.Fields"),
    ],
)
def test_a_type_is_named_with_its_module(value, name):
    assert type_name(value) == name


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


class Unknown:
    def __len__(self):
        raise NotImplementedError


def test_a_length_is_what_len_gives():
    assert length_of([1, 2]) == 2
    assert length_of(np.zeros((4, 2))) == 4
    assert length_of(DataLoader(range(6), batch_size=4)) == 2


@pytest.mark.parametrize(
    "value", [3, None, iter([1]), DataLoader(Stream()), Unknown(), np.array(1)]
)
def test_what_has_no_length_has_none(value):
    assert length_of(value) is None
