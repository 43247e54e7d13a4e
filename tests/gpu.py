"""A GPU that is none: its tensors lie in the memory of the CPU, and say that they are on CUDA.

What runs on it goes through the lines that a run on a GPU goes through, and with numbers; what
would wait for the device, or travel between it and the CPU, is noted.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)

# To torch's C++ code, which would look for a real GPU, its tensors are on "meta".
_ITS_TYPES = {"cuda", "meta"}
# Whatever else torch marks as needing a number, or a count of them, to go on.
_WAITING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_COPIES = {torch.ops.aten._to_copy, torch.ops.aten.copy_}
_INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}


class _OnGpu(Tensor):
    device = property(lambda self: GPU)
    is_meta = False

    @staticmethod
    def __new__(cls, values: Tensor) -> "_OnGpu":
        options = {"dtype": values.dtype, "layout": values.layout, "device": "meta"}
        strides, offset = values.stride(), values.storage_offset()
        return Tensor._make_wrapper_subclass(
            cls, values.shape, strides=strides, storage_offset=offset, **options
        )

    def __init__(self, values: Tensor) -> None:
        self.values = values

    # What torch does not show, or refuses, of types other than its own.

    def new_tensor(self, numbers: Any) -> Tensor:
        return torch.tensor(numbers, dtype=self.dtype, device=GPU)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of `with PretendedGpu()`")


class PretendedGpu(TorchDispatchMode):
    """The block in which the device ``GPU`` can be used.

    Attributes:
        waits: the operations that would have waited for it.
        copies: those into pinned memory and from there, which do not wait.
    """

    # As torch's own fake tensors, so that nobody asks CUDA's driver for the device.
    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes seconds

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.copies: list[str] = []
        self._pinned: list[Tensor] = []  # kept, so that no other tensor gets their memory

    def __enter__(self) -> "PretendedGpu":
        # `torch.tensor(..., device=)` shows its copy.
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._before)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = {id(x.values): x for x in tensors if isinstance(x, _OnGpu)}
        device = kwargs.get("device")
        to_gpu = bool(on_gpu) if device is None else torch.device(device).type in _ITS_TYPES
        self._note(func, tensors, args, kwargs, to_gpu=to_gpu)
        if func.overloadpacket is torch.ops.aten.is_pinned:
            return self._is_pinned(args[0])
        if func.overloadpacket is torch.ops.aten._pin_memory:
            self.copies.append(str(func))
            self._pinned.append(args[0].clone())
            return self._pinned[-1]
        pinned = kwargs.get("pin_memory")
        kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        plain = tree_map(lambda x: x.values if isinstance(x, _OnGpu) else x, (args, kwargs))
        result = func(*plain[0], **plain[1])
        if pinned:
            self._pinned.append(result)

        def named(x: Any) -> Any:
            if id(x) in on_gpu:  # changed in place
                return on_gpu[id(x)]
            return _OnGpu(x) if to_gpu and isinstance(x, Tensor) else x

        return tree_map(named, result)

    def _is_pinned(self, tensor: Tensor) -> bool:
        memory = tensor.untyped_storage().data_ptr()
        return any(memory == pinned.untyped_storage().data_ptr() for pinned in self._pinned)

    def _note(self, func, tensors, args, kwargs, *, to_gpu: bool) -> None:
        near = [x for x in tensors if not isinstance(x, _OnGpu)]
        masks = [x for x in tensors[1:] if x.dtype in {torch.bool, torch.uint8}]
        if len(near) == len(tensors) and not (near and to_gpu):
            return  # the CPU alone, or new numbers
        name = str(func)
        if func.overloadpacket in _COPIES and near and to_gpu:
            source = args[-1] if func.overloadpacket is torch.ops.aten.copy_ else args[0]
            calm = kwargs.get("non_blocking") and self._is_pinned(source)
            (self.copies if calm else self.waits).append(name)
        elif func.overloadpacket in _INDEXING:
            if near or masks:
                self.waits.append(name)
        elif near or not to_gpu or _WAITING_TAGS & {*func.tags}:
            self.waits.append(name)
