"""Checks of arguments: errors give the name, the value and what was expected.

A check returns the value as a plain Python one: NumPy's numbers, truth values and strings are
accepted, but JSON and keyword arguments of torch do not take them.
"""

import difflib
import math
import operator
import sys
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints


class Range(NamedTuple):
    """A range of finite numbers.

    In the type of a dataclass field, ``Annotated[float, Range(...)]``, it is checked by
    ``check_fields``.
    """

    text: str
    includes: Callable[[Any], bool]


ABOVE_ZERO = Range("a finite number above 0", lambda x: x > 0)
AT_LEAST_ZERO = Range("a finite number of at least 0", lambda x: x >= 0)
PROBABILITY = Range("a probability from 0 to 1", lambda x: 0 <= x <= 1)
FRACTION = Range("a fraction from 0 to below 1", lambda x: 0 <= x < 1)

# Pixels of the side of an image, a kernel, a stride or a padding: a batch of one image of this side
# takes 3 GB in float32. A file that says more is damaged, or meant to exhaust its reader.
MOST_SIDE = 2**14
# The largest number that float32 holds is a little more.
MOST_FLOAT = 3.4e38

_SHOWN = 200  # characters of a value in an error

_TYPES = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}


def at_least(least: int) -> Range:
    """The integers of at least ``least``."""
    return Range(f"an integer of at least {least}", lambda x: x >= least)


def between(least: int, most: int) -> Range:
    """The integers from ``least`` to ``most``."""
    return Range(f"an integer from {least} to {most}", lambda x: least <= x <= most)


def check_integer(
    name: str, value: object, least: int, most: int | None = None, *, optional: bool = False
) -> Any:
    """The value as an ``int``; a ``ValueError`` unless it is one from ``least`` to ``most``.

    If it is ``optional``, it can also be None.
    """
    allowed = at_least(least) if most is None else between(least, most)
    return _checked(name, value, int | None if optional else int, allowed)


def check_number(name: str, value: object, allowed: Range) -> int | float:
    """The value as an ``int`` or ``float``; a ``ValueError`` unless it is in the range."""
    number: int | float = _checked(name, value, float, allowed)
    return number


def check_choice(name: str, value: object, choices: Iterable[object]) -> Any:
    """The choice that the value is; a ``ValueError`` unless it is one, of the same type."""
    choices, plain = tuple(choices), _plain(value)
    for choice in choices:
        # For == a bool is a number; members of a StrEnum are strings.
        both_truth = isinstance(plain, bool) == isinstance(choice, bool)
        if both_truth and isinstance(plain, type(choice)) and plain == choice:
            return choice
    expected = f"{', '.join(map(repr, choices))}{did_you_mean(value, choices)}"
    raise ValueError(f"{name} is {shown(value)}; expected one of {expected}")


def did_you_mean(value: object, names: Iterable[object]) -> str:
    """For an error: ``"; did you mean 'cifar10'?"``, or nothing where no name is near."""
    name = nearest(value, names)
    return "" if name is None else f"; did you mean {name!r}?"


def nearest(
    value: object, names: Iterable[object], short: Mapping[str, str] | None = None
) -> str | None:
    """The name that was probably meant; ``short`` has common short names of some of them."""
    if not isinstance(value, str):
        return None
    near = {_letters(name): name for name in names if isinstance(name, str)} | {**(short or {})}
    words = difflib.get_close_matches(_letters(value), near, 1)
    return near[words[0]] if words else None


def _letters(name: str) -> str:
    return name.lower().translate({ord(sign): None for sign in "-_ ./"})


def check_fields(instance: Any) -> None:
    """Raises a ``ValueError`` unless each field of a dataclass has the type and range it declares.

    Fields are ``Literal``; or ``bool``, ``int``, ``float``, ``str`` or ``tuple[str, ...]``, these
    also with None. Values of other libraries are replaced by plain ones.
    """
    for name, hint in get_type_hints(type(instance), include_extras=True).items():
        kind, allowed = get_args(hint) if get_origin(hint) is Annotated else (hint, None)
        # The class may be frozen.
        object.__setattr__(instance, name, _checked(name, getattr(instance, name), kind, allowed))


def as_integer(value: object) -> int | None:
    """The value as an ``int``, or None if it is not an integer; True and False are not."""
    value = _plain(value)
    # For isinstance a bool is an int, but it is hardly ever meant as one.
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def as_number(value: object) -> int | float | None:
    """The value as an ``int`` or ``float``, or None if it is not a real number.

    A fraction that no ``float`` can hold becomes infinite.
    """
    plain: Any = _plain(value)
    integer = as_integer(plain)
    if integer is not None or not isinstance(plain, Real) or isinstance(plain, bool):
        return integer
    try:
        return float(plain)
    except OverflowError:
        return math.inf if plain > 0 else -math.inf  # type: ignore[operator]


def _plain(value: Any) -> Any:
    """What a scalar or an array or tensor without dimensions holds; others as they are."""
    if isinstance(value, type) or getattr(value, "ndim", None) != 0:
        return value
    try:
        return value.item()
    except (AttributeError, RuntimeError, NotImplementedError):  # on the meta device, for example
        return value


def shown(value: object) -> str:
    """The value for an error: at most a line, also where its ``repr`` is long or fails."""
    try:
        text = repr(value)
    except Exception:  # of a stranger's class; or an integer of too many digits
        return f"a {type_name(value)}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def type_name(value: object) -> str:
    """The type of a value with its module, for errors: ``"torchvision.models.alexnet.AlexNet"``."""
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"


def length_of(value: Any) -> int | None:
    """The length, or None; a loader over an iterable data set has ``__len__``, but no length."""
    try:
        return len(value)
    except (TypeError, NotImplementedError, ValueError, OverflowError):
        return None


def _checked(name: str, value: Any, hint: Any, allowed: Range | None) -> Any:
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    optional = NoneType in kinds
    if value is None and optional:
        return None
    kind = kinds[0]
    if get_origin(kind) is Literal:
        return check_choice(name, value, get_args(kind))
    plain = _plain(value)
    if get_origin(kind) is tuple:
        fits = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        expected = "a tuple of strings"
    else:
        if kind in {int, float}:
            plain = as_integer(value) if kind is int else as_number(value)
        fits = isinstance(plain, (int, float) if kind is float else kind)
        expected = _TYPES[kind]
        if allowed is not None:
            # An integer may be too large for a float.
            finite = fits and (kind is int or abs(plain) <= sys.float_info.max)
            fits = finite and allowed.includes(plain)
            expected = allowed.text
    if not fits:
        raise ValueError(f"{name} is {shown(value)}; expected {expected}" + ", or None" * optional)
    return plain
