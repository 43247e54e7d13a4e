"""AlexNet, complete: the network of 2012, its data path and its training.

The public names are loaded when first used, so that ``import alexnet_lib`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet_lib.architecture import (
        ARCHITECTURES,
        Architecture,
        Summary,
        conv_output_size,
        feature_map_shapes,
        solve_stride_padding,
        summary,
    )
    from alexnet_lib.channel_stats import (
        CIFAR10_STATS,
        CIFAR10_STATS_PER_IMAGE,
        ChannelStats,
        compute_channel_stats,
        compute_color_components,
    )
    from alexnet_lib.checkpoints import load_checkpoint, save_checkpoint
    from alexnet_lib.diagnosis import Diagnosis, diagnose
    from alexnet_lib.engine import (
        EpochMetrics,
        EvalMetrics,
        default_device,
        evaluate,
        train_one_epoch,
    )
    from alexnet_lib.inference import Prediction, predict
    from alexnet_lib.loaders import (
        Loaders,
        build_cifar10_loaders,
        build_dataset_loaders,
        build_image_folder_loaders,
        build_shapes_loaders,
    )
    from alexnet_lib.memory import keep_freed_memory
    from alexnet_lib.model import AlexNet
    from alexnet_lib.normalization import LocalResponseNorm
    from alexnet_lib.recipes import RECIPES, Recipe, RunOptions
    from alexnet_lib.training import Run, fit
    from alexnet_lib.transforms import ColorComponents, Preprocess

__version__ = "0.1.0"

_NAMES_BY_MODULE = {
    "architecture": (
        "ARCHITECTURES Architecture Summary conv_output_size feature_map_shapes "
        "solve_stride_padding summary"
    ),
    "channel_stats": (
        "CIFAR10_STATS CIFAR10_STATS_PER_IMAGE ChannelStats compute_channel_stats "
        "compute_color_components"
    ),
    "checkpoints": "load_checkpoint save_checkpoint",
    "diagnosis": "Diagnosis diagnose",
    "engine": "EpochMetrics EvalMetrics default_device evaluate train_one_epoch",
    "inference": "Prediction predict",
    "loaders": (
        "Loaders build_cifar10_loaders build_dataset_loaders build_image_folder_loaders "
        "build_shapes_loaders"
    ),
    "memory": "keep_freed_memory",
    "model": "AlexNet",
    "normalization": "LocalResponseNorm",
    "recipes": "RECIPES Recipe RunOptions",
    "training": "Run fit",
    "transforms": "ColorComponents Preprocess",
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names.split()}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
