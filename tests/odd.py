"""Values that nobody should pass, for the tests of arguments."""

import itertools
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

ODD = [
    *(None, True, False, 0, -1, 3, 2**31, 2**63, -(2**63) - 1, 10**400, 10**5000),
    *(0.0, 1.5, -0.5, math.nan, math.inf, 1e308, 1j, "", "text", "\0", "\ud800", "x" * 10**6),
    *(b"", b"bytes", [], [[]], [None], [1, 2, 3], (), {}, {"a": 1}, {1, 2}, frozenset(), object()),
    *(object, int, len, NotImplemented, ..., slice(1), (i for i in range(3)), itertools.count()),
    *(range(3), map(str, range(3)), memoryview(b"abc"), Path("a\0b"), Path("x" * 5000), Path()),
    *(torch.tensor(1.0), torch.zeros(3), torch.zeros(0), torch.tensor(1j), torch.tensor(True)),
    *(torch.zeros(2, 2).to_sparse(), torch.zeros(3, device="meta")),
    *(torch.tensor(1.0, device="meta"), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)),
    *(np.zeros(3), np.float32(1), np.int64(3), np.array(3), np.array(["a", "b"]), np.ndarray),
    *(np.array([object()] * 3), np.array("2026-01-01", "M8"), np.bool_(True), np.str_("text")),
    *(nn.Linear(1, 1), nn.Identity(), torch.float32, torch.device("cpu")),
]


def odd_id(value: object) -> str:
    """A short name for a test of one of them."""
    return type(value).__name__


def wrong_messages(call, arguments: dict, names=None, errors=(ValueError, TypeError)) -> list[str]:
    """What is wrong with the errors of a call when each of its arguments takes the odd values.

    A call may succeed. An error is of one of the types, short, and names the argument.
    """
    wrong = []
    for name in names or arguments:
        for value in ODD:
            try:
                call(**{**arguments, name: value})
            except errors as error:
                message = str(error)
                if name not in message or len(message) > 1000:
                    wrong.append(f"{name}={type(value).__name__}: {message[:200]}")
            except Exception as error:
                wrong.append(f"{name}={type(value).__name__}: {type(error)} {str(error)[:200]}")
    return wrong
