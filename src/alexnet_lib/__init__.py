"""AlexNet in PyTorch: the network of 2012, its data loading and its training.

Every public name is imported from here: ``from alexnet_lib import AlexNet``. The names are loaded
on first use, so that ``import alexnet_lib`` is fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet_lib.analysis.diagnosis import Diagnosis, LayerDiagnosis, diagnose
    from alexnet_lib.analysis.drawing import plot_architecture
    from alexnet_lib.analysis.features import extract_features, grad_cam
    from alexnet_lib.analysis.figures import (
        LearningCurves,
        plot_confusion_matrix,
        plot_kernels,
        plot_learning_curves,
    )
    from alexnet_lib.analysis.image_figures import (
        plot_batch,
        plot_examples,
        plot_feature_maps,
        plot_grad_cam,
        plot_neighbors,
        plot_predictions,
    )
    from alexnet_lib.analysis.run_figures import write_figures
    from alexnet_lib.data.augmentation import (
        Augmentation,
        ColorNoise,
        HorizontalFlip,
        RandomCrop,
        RandomShift,
        TrivialAugment,
    )
    from alexnet_lib.data.cifar10 import download_cifar10
    from alexnet_lib.data.decoding import ImageError
    from alexnet_lib.data.loaders import BatchLoader, Loaders, build_cifar10_loaders, build_loaders
    from alexnet_lib.data.preprocess import VIEWS, Preprocess
    from alexnet_lib.data.statistics import (
        CIFAR10_STATS,
        CIFAR10_STATS_PER_IMAGE,
        IMAGENET_STATS,
        ChannelStats,
        ColorComponents,
        compute_channel_stats,
        compute_class_weights,
        compute_color_components,
    )
    from alexnet_lib.devices import Placement, RunOptions, default_device
    from alexnet_lib.inference import Prediction, predict
    from alexnet_lib.interop.state_dicts import from_state_dict
    from alexnet_lib.interop.torchvision import from_torchvision
    from alexnet_lib.kernels.memory import keep_freed_memory
    from alexnet_lib.network.architecture import (
        ARCHITECTURES,
        LRN,
        AdaptiveAvgPool,
        Architecture,
        Conv,
        Dropout,
        Flatten,
        Linear,
        MaxPool,
        ReLU,
        conv_output_size,
        feature_map_shapes,
        solve_stride_padding,
    )
    from alexnet_lib.network.checkpoints import load_checkpoint, save_checkpoint
    from alexnet_lib.network.model import AlexNet
    from alexnet_lib.network.normalization import LocalResponseNorm
    from alexnet_lib.network.summary import Summary, SummaryRow, summary
    from alexnet_lib.training.fit import Run, fit
    from alexnet_lib.training.loggers import Logger, TensorBoardLogger
    from alexnet_lib.training.loop import evaluate, train_one_epoch
    from alexnet_lib.training.metrics import EpochMetrics, EpochRecord, EvalMetrics
    from alexnet_lib.training.optimization import build_optimizer, build_plateau, build_schedule
    from alexnet_lib.training.preparation import prepare_loaders, prepare_model
    from alexnet_lib.training.recipes import RECIPES, Recipe, stored_recipe

__version__ = "0.1.0"

_NAMES_BY_MODULE = {
    "analysis.diagnosis": "Diagnosis LayerDiagnosis diagnose",
    "analysis.drawing": "plot_architecture",
    "analysis.features": "extract_features grad_cam",
    "analysis.figures": "LearningCurves plot_confusion_matrix plot_kernels plot_learning_curves",
    "analysis.image_figures": (
        "plot_batch plot_examples plot_feature_maps plot_grad_cam plot_neighbors plot_predictions"
    ),
    "analysis.run_figures": "write_figures",
    "data.augmentation": (
        "Augmentation ColorNoise HorizontalFlip RandomCrop RandomShift TrivialAugment"
    ),
    "data.cifar10": "download_cifar10",
    "data.decoding": "ImageError",
    "data.loaders": "BatchLoader Loaders build_cifar10_loaders build_loaders",
    "data.preprocess": "VIEWS Preprocess",
    "data.statistics": (
        "CIFAR10_STATS CIFAR10_STATS_PER_IMAGE IMAGENET_STATS ChannelStats ColorComponents "
        "compute_channel_stats compute_class_weights compute_color_components"
    ),
    "devices": "Placement RunOptions default_device",
    "inference": "Prediction predict",
    "interop.state_dicts": "from_state_dict",
    "interop.torchvision": "from_torchvision",
    "kernels.memory": "keep_freed_memory",
    "network.architecture": (
        "ARCHITECTURES LRN AdaptiveAvgPool Architecture Conv Dropout Flatten Linear MaxPool "
        "ReLU conv_output_size feature_map_shapes solve_stride_padding"
    ),
    "network.checkpoints": "load_checkpoint save_checkpoint",
    "network.model": "AlexNet",
    "network.normalization": "LocalResponseNorm",
    "network.summary": "Summary SummaryRow summary",
    "training.fit": "Run fit",
    "training.loggers": "Logger TensorBoardLogger",
    "training.loop": "evaluate train_one_epoch",
    "training.metrics": "EpochMetrics EpochRecord EvalMetrics",
    "training.optimization": "build_optimizer build_plateau build_schedule",
    "training.preparation": "prepare_loaders prepare_model",
    "training.recipes": "RECIPES Recipe stored_recipe",
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names.split()}

# Written out, because type checkers read it.
# fmt: off
__all__ = [  # noqa: RUF022
    "ARCHITECTURES", "AdaptiveAvgPool", "AlexNet", "Architecture", "Augmentation", "BatchLoader",
    "CIFAR10_STATS", "CIFAR10_STATS_PER_IMAGE", "ChannelStats", "ColorComponents", "ColorNoise",
    "Conv", "Diagnosis", "Dropout", "EpochMetrics", "EpochRecord", "EvalMetrics", "Flatten",
    "HorizontalFlip", "IMAGENET_STATS", "ImageError", "LRN", "LayerDiagnosis", "LearningCurves",
    "Linear", "Loaders", "LocalResponseNorm", "Logger", "MaxPool", "Placement", "Prediction",
    "Preprocess", "RECIPES", "RandomCrop", "RandomShift", "ReLU", "Recipe", "Run", "RunOptions",
    "Summary", "SummaryRow", "TensorBoardLogger", "TrivialAugment", "VIEWS",
    "build_cifar10_loaders", "build_loaders",
    "build_optimizer", "build_plateau", "build_schedule", "compute_channel_stats",
    "compute_class_weights", "compute_color_components", "conv_output_size", "default_device",
    "diagnose", "download_cifar10", "evaluate", "extract_features", "feature_map_shapes", "fit",
    "from_state_dict", "from_torchvision", "grad_cam", "keep_freed_memory", "load_checkpoint",
    "plot_architecture", "plot_batch", "plot_confusion_matrix", "plot_examples",
    "plot_feature_maps", "plot_grad_cam", "plot_kernels", "plot_learning_curves", "plot_neighbors",
    "plot_predictions", "predict", "prepare_loaders", "prepare_model", "save_checkpoint",
    "solve_stride_padding", "stored_recipe", "summary", "train_one_epoch", "write_figures",
]
# fmt: on


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
