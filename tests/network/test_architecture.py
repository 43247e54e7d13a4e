"""The tables, the arithmetic of shapes and the counts, held against what torch computes."""

import json
import math
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from odd import wrong_messages
from torch.utils.flop_counter import FlopCounterMode

from alexnet_lib import (
    ARCHITECTURES,
    AlexNet,
    Architecture,
    conv_output_size,
    feature_map_shapes,
    solve_stride_padding,
    summary,
)
from alexnet_lib.network.architecture import (
    LRN,
    MOST_COUNT,
    MOST_SIDE,
    AdaptiveAvgPool,
    Conv,
    Dropout,
    Flatten,
    Linear,
    MaxPool,
    ReLU,
    layer_infos,
)

NAMES = list(ARCHITECTURES)
SMALLEST = {"paper": 67, "single_tower": 67, "one_weird_trick": 63}

names = st.sampled_from(NAMES)
classes = st.integers(1, 2000)

CUSTOM = Architecture(
    "custom",
    image_size=32,
    layers=(
        Conv("conv1", 8, kernel=5, stride=2, padding=2),
        ReLU("relu1"),
        LRN("norm1", size=3, groups=4),
        Conv("conv2", 12, kernel=3, groups=2),
        MaxPool("pool2"),
        Flatten("flatten"),
        Dropout("drop3"),
        Linear("fc3", 20),
        ReLU("relu3"),
        Linear("fc4", None),
    ),
)


@st.composite
def layer_tables(draw):
    """Small tables of every form that an `Architecture` may have.

    The largest needs images of 10,531 pixels: four times a kernel of 7 with stride 4 and a pool of
    4 with stride 2.
    """
    layers = []
    for i in range(1, draw(st.integers(1, 4)) + 1):
        layers += [
            Conv(
                f"conv{i}",
                channels=4 * draw(st.integers(1, 3)),
                kernel=draw(st.integers(1, 7)),
                stride=draw(st.integers(1, 4)),
                padding=draw(st.integers(0, 4)),
                groups=1 if i == 1 else draw(st.sampled_from([1, 2, 4])),
            ),
            ReLU(f"relu{i}"),
        ]
        if draw(st.booleans()):
            layers.append(LRN(f"norm{i}", size=draw(st.integers(1, 6)), groups=2))
        if draw(st.booleans()):
            layers.append(MaxPool(f"pool{i}", draw(st.integers(1, 4)), draw(st.integers(1, 2))))
    if draw(st.booleans()):
        layers.append(AdaptiveAvgPool("avgpool", draw(st.integers(1, 3))))
    layers += [Flatten("flatten"), Dropout("drop"), Linear("hidden", 5), Linear("classes", None)]
    return tuple(layers)


# Called by the tests, not by the strategy: the run with type checks draws random numbers when an
# Architecture is made, and hypothesis allows none while it draws.
def random_architecture(layers):
    return Architecture("random", image_size=MOST_SIDE, layers=layers)


def leaves(model):
    """Each layer's module by the layer's name."""
    return {
        name.rpartition(".")[2]: module
        for name, module in model.named_modules()
        if not list(module.children())
    }


def meta_model(architecture, image_size=None, num_classes=1000, in_channels=3):
    sizes = {"image_size": image_size, "in_channels": in_channels}
    with torch.device("meta"):
        return AlexNet(num_classes, architecture=architecture, **sizes)


def meta_images(size):
    return torch.empty(1, 3, size, size, device="meta")


def computed_shapes(architecture, image_size, num_classes):
    """The shapes that torch computes, by the layer's name, in the order of computation."""
    model = meta_model(architecture, image_size, num_classes)
    shapes = {}
    for name, module in leaves(model).items():
        module.register_forward_hook(
            lambda module, inputs, output, name=name: shapes.update({name: tuple(output.shape[1:])})
        )
    model(meta_images(image_size))
    return shapes


@settings(max_examples=30)
@given(names, st.data(), classes)
def test_feature_map_shapes_are_those_that_torch_computes(name, data, num_classes):
    size = data.draw(st.integers(SMALLEST[name], 400))
    shapes = feature_map_shapes(name, size, num_classes=num_classes)
    computed = computed_shapes(name, size, num_classes)
    assert list(shapes.items()) == list(computed.items())


@given(layer_tables(), st.integers(0, 60), classes)
def test_shapes_of_any_table_are_those_that_torch_computes(layers, more, num_classes):
    architecture = random_architecture(layers)
    size = architecture.smallest_image_size + more
    shapes = feature_map_shapes(architecture, size, num_classes=num_classes)
    assert shapes == computed_shapes(architecture, size, num_classes)


@given(layer_tables())
def test_parameters_of_any_table_are_those_that_torch_holds(layers):
    architecture = random_architecture(layers)
    size = architecture.smallest_image_size
    modules = leaves(meta_model(architecture, size))
    for info in layer_infos(architecture, size):
        assert info.parameters == sum(p.numel() for p in modules[info.layer.name].parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_image_works(name):
    assert ARCHITECTURES[name].smallest_image_size == SMALLEST[name]
    assert feature_map_shapes(name, SMALLEST[name])["pool5"] == (256, 1, 1)
    assert computed_shapes(name, SMALLEST[name], 10)["pool5"] == (256, 1, 1)


@given(st.one_of(names.map(lambda name: ARCHITECTURES[name].layers), layer_tables()))
def test_torch_has_no_feature_map_for_an_image_one_pixel_smaller(layers):
    architecture = random_architecture(layers)
    smallest = architecture.smallest_image_size
    assume(smallest > 1)
    model = meta_model(architecture, smallest)
    model.features(meta_images(smallest))
    with pytest.raises(RuntimeError, match=r"size|small"):
        model.features(meta_images(smallest - 1))


@pytest.mark.bad_input
@pytest.mark.parametrize("refuse", [feature_map_shapes, meta_model], ids=["arithmetic", "model"])
@pytest.mark.parametrize("name", NAMES)
def test_an_image_one_pixel_smaller_is_refused(name, refuse):
    size = SMALLEST[name] - 1
    with pytest.raises(ValueError, match="image_size") as caught:
        refuse(name, size)
    assert str(caught.value) == (
        f"image_size is {size}; the architecture {name!r} needs images of at least "
        f"{size + 1}x{size + 1} pixels (an integer)"
    )


# Kernels that fit: size + 2 * padding >= kernel.
windows = st.tuples(
    st.integers(1, 60), st.integers(1, 15), st.integers(1, 9), st.integers(0, 7)
).filter(lambda window: window[0] + 2 * window[3] >= window[1])


@given(windows)
def test_conv_output_size_is_that_of_torchs_convolution(window):
    size, kernel, stride, padding = window
    images = torch.empty(1, 1, size, size, device="meta")
    kernels = torch.empty(1, 1, kernel, kernel, device="meta")
    expected = F.conv2d(images, kernels, stride=stride, padding=padding).shape
    assert (conv_output_size(size, kernel, stride, padding),) * 2 == expected[2:]


@given(windows)
def test_conv_output_size_is_that_of_torchs_max_pooling(window):
    size, kernel, stride, padding = window
    assume(padding <= kernel // 2)  # as torch asks
    expected = F.max_pool2d(meta_images(size), kernel, stride, padding).shape
    assert (conv_output_size(size, kernel, stride, padding),) * 2 == expected[2:]


@given(windows)
def test_rounded_up_it_is_torchs_max_pooling_where_the_last_window_starts_inside(window):
    size, kernel, stride, padding = window
    steps = conv_output_size(size, kernel, stride, padding, ceil_mode=True)
    assume(padding <= kernel // 2 and (steps - 1) * stride < size + padding)
    expected = F.max_pool2d(meta_images(size), kernel, stride, padding, ceil_mode=True).shape
    assert (steps, steps) == expected[2:]


@given(windows, st.booleans())
def test_conv_output_size_grows_with_size_and_padding(window, ceil_mode):
    size, kernel, stride, padding = window
    output = conv_output_size(size, kernel, stride, padding, ceil_mode=ceil_mode)
    for larger in ((size + 1, padding), (size, padding + 1)):
        assert output <= conv_output_size(larger[0], kernel, stride, larger[1], ceil_mode=ceil_mode)


@given(windows)
def test_rounding_up_adds_one_window_exactly_where_pixels_are_left_over(window):
    size, kernel, stride, padding = window
    left_over = (size + 2 * padding - kernel) % stride > 0
    up = conv_output_size(size, kernel, stride, padding, ceil_mode=True)
    assert up == conv_output_size(size, kernel, stride, padding) + left_over


def test_224_rounded_up_is_227_rounded_down():
    assert conv_output_size(224, kernel=11, stride=4, ceil_mode=True) == 55
    assert conv_output_size(227, kernel=11, stride=4) == 55
    assert conv_output_size(224, kernel=11, stride=4) == 54


@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 8))
def test_solve_stride_padding_finds_exactly_the_pairs_that_fit(size, output_size, kernel):
    # Counted by walking the window's left edge, not by the formula.
    expected = [
        (stride, padding)
        for stride in range(1, size + 1)
        for padding in range(kernel)
        if len(range(0, size + 2 * padding - kernel + 1, stride)) == output_size
    ]
    assert solve_stride_padding(size, output_size, kernel) == expected


@given(windows)
def test_solve_stride_padding_recovers_a_stride_and_padding(window):
    size, kernel, stride, padding = window
    assume(stride <= size and padding < kernel)
    output_size = conv_output_size(size, kernel, stride, padding)
    assert (stride, padding) in solve_stride_padding(size, output_size, kernel)


def test_conv3_has_stride_1_and_padding_1():
    assert solve_stride_padding(13, output_size=13, kernel=3) == [(1, 1)]


def test_solve_stride_padding_is_empty_where_nothing_fits():
    assert solve_stride_padding(13, output_size=100, kernel=3) == []


@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_each_layer_are_those_that_torch_holds(name):
    modules = leaves(meta_model(name, num_classes=10))
    counts = {info.layer.name: info.parameters for info in layer_infos(name, num_classes=10)}
    assert counts == {
        layer: sum(p.numel() for p in module.parameters()) for layer, module in modules.items()
    }


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        ("paper", 1000, 60_965_224),
        ("single_tower", 1000, 62_378_344),
        ("one_weird_trick", 1000, 61_100_840),
        ("single_tower", 10, 58_322_314),
    ],
)
def test_parameters_in_all_are_the_published_ones(name, num_classes, parameters):
    assert summary(name, num_classes=num_classes).parameters == parameters
    model = meta_model(name, num_classes=num_classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


@settings(max_examples=30)
@given(names, st.data(), classes)
def test_multiply_accumulates_are_half_the_operations_that_torch_counts(name, data, num_classes):
    size = data.draw(st.integers(SMALLEST[name], 400))
    model = meta_model(name, size, num_classes)
    with FlopCounterMode(display=False) as counter:
        model(meta_images(size))
    counts = {
        module.rpartition(".")[2]: sum(flops.values()) // 2
        for module, flops in counter.get_flop_counts().items()
    }
    infos = layer_infos(name, size, num_classes)
    for info in infos:
        assert info.multiply_accumulates == counts.get(info.layer.name, 0)
    assert sum(info.multiply_accumulates for info in infos) == counter.get_total_flops() // 2


def test_the_papers_layers_have_the_papers_shapes():
    shapes = feature_map_shapes("paper")
    weighted_and_pooled = {
        name: shape for name, shape in shapes.items() if name.startswith(("conv", "pool", "fc"))
    }
    assert weighted_and_pooled == {
        "conv1": (96, 55, 55),
        "pool1": (96, 27, 27),
        "conv2": (256, 27, 27),
        "pool2": (256, 13, 13),
        "conv3": (384, 13, 13),
        "conv4": (384, 13, 13),
        "conv5": (256, 13, 13),
        "pool5": (256, 6, 6),
        "fc6": (4096,),
        "fc7": (4096,),
        "fc8": (1000,),
    }


PAPER_SUMMARY = """\
AlexNet (paper), images of 227x227, 1,000 classes
layer    kernel   stride  pad  groups  then      output     parameters  MACs, M
-------------------------------------------------------------------------------
conv1    11x11x3       4    0       1  ReLU LRN  55x55x96       34,944    105.4
pool1    max 3x3       2                         27x27x96
conv2    5x5x48        1    2       2  ReLU LRN  27x27x256     307,456    223.9
pool2    max 3x3       2                         13x13x256
conv3    3x3x256       1    1       1  ReLU      13x13x384     885,120    149.5
conv4    3x3x192       1    1       2  ReLU      13x13x384     663,936    112.1
conv5    3x3x192       1    1       2  ReLU      13x13x256     442,624     74.8
pool5    max 3x3       2                         6x6x256
flatten                                          9216
fc6                                    ReLU      4096       37,752,832     37.7
drop6                                            4096
fc7                                    ReLU      4096       16,781,312     16.8
drop7                                            4096
fc8                                              1000        4,097,000      4.1
-------------------------------------------------------------------------------
total                                                       60,965,224    724.4"""


def test_the_printed_summary_of_the_paper_is_this_table():
    assert str(summary("paper")) == PAPER_SUMMARY
    assert repr(summary("paper")) == PAPER_SUMMARY


def html_rows(table):
    """The text of each cell; parsing fails on a character that should have been escaped."""
    rows = ElementTree.fromstring(table._repr_html_()).iter("tr")
    return [tuple(cell.text or "" for cell in row) for row in rows]


@pytest.mark.parametrize("architecture", [*NAMES, CUSTOM], ids=[*NAMES, "custom"])
def test_the_html_summary_has_the_printed_ones_rows(architecture):
    table = summary(architecture)
    header, *rows, total = html_rows(table)
    assert header == table.HEADER
    assert rows == [row.cells() for row in table.rows]
    assert total[0] == "total"
    assert total[-2] == f"{table.parameters:,}"
    assert float(total[-1].replace(",", "")) == pytest.approx(
        table.multiply_accumulates / 1e6, abs=0.05
    )


@pytest.mark.parametrize("architecture", NAMES)
@pytest.mark.parametrize("num_classes", [2, 1000])
def test_the_printed_summary_fits_eighty_columns(architecture, num_classes):
    lines = str(summary(architecture, num_classes=num_classes)).splitlines()
    assert max(map(len, lines)) <= 80


def test_the_html_summary_escapes_names():
    layers = (Conv("<script>&", 2, kernel=1), Flatten("flatten"), Linear("fc", None))
    table = summary(Architecture("<b>&'\"", image_size=4, layers=layers))
    assert html_rows(table)[1][0] == "<script>&"
    assert "<script>" not in table._repr_html_()
    assert "<b>" not in table._repr_html_()


def test_a_models_summary_is_of_its_own_sizes():
    with torch.device("meta"):
        model = AlexNet(10, architecture="single_tower", image_size=99)
    assert summary(model) == summary("single_tower", image_size=99, num_classes=10)


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_only_the_first_layer_depends_on_the_images_channels(name, channels):
    with torch.device("meta"):
        model = AlexNet(10, architecture=name, in_channels=channels)
    assert feature_map_shapes(name, num_classes=10, in_channels=channels) == feature_map_shapes(
        name, num_classes=10
    )
    table = summary(name, num_classes=10, in_channels=channels)
    assert table == summary(model)
    assert table.parameters == sum(p.numel() for p in model.parameters())
    assert table.rows[0].kernel == f"11x11x{channels}"
    assert table.rows[1:] == summary(name, num_classes=10).rows[1:]
    assert f"images of {table.image_size}x{table.image_size}x{channels}, 10 classes" in str(table)


def test_groups_of_the_first_layer_divide_the_images_channels():
    layers = (Conv("conv1", 8, kernel=3, groups=4), FLATTEN, CLASSES)
    architecture = Architecture("depthwise", 8, layers)
    table = summary(architecture, in_channels=8, num_classes=2)
    assert (table.rows[0].kernel, table.rows[0].groups) == ("3x3x2", 4)
    for call in (feature_map_shapes, summary):
        assert error_of(call, architecture, in_channels=6) == (
            "conv1 has 4 groups, which do not divide its 6 input and 8 output channels"
        )


def test_arguments_of_a_models_summary_go_before_the_models_own():
    with torch.device("meta"):
        model = AlexNet(10, image_size=99)
    assert summary(model, image_size=227, num_classes=1000) == summary("paper")


@given(layer_tables())
def test_an_architecture_survives_json(layers):
    architecture = random_architecture(layers)
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


@pytest.mark.parametrize("name", NAMES)
def test_the_three_architectures_survive_json(name):
    architecture = ARCHITECTURES[name]
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


def test_a_custom_architecture_goes_through_shapes_model_and_summary():
    model = AlexNet(7, architecture=CUSTOM, seed=0).eval()
    shapes = feature_map_shapes(CUSTOM, num_classes=7)
    assert shapes == computed_shapes(CUSTOM, 32, 7)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert summary(model).parameters == sum(p.numel() for p in model.parameters())
    assert [row.layer for row in summary(model).rows] == [
        *("conv1", "conv2", "pool2", "flatten", "drop3", "fc3", "fc4")
    ]


def test_only_an_adaptive_pool_takes_any_size():
    any_size = [name for name in NAMES if ARCHITECTURES[name].takes_any_size]
    assert any_size == ["one_weird_trick"]


# Wrong input: each error names the argument, what came and what was expected

NO_INTEGERS = [True, 3.0, "3", None]


CONV, FLATTEN, CLASSES = Conv("conv", 4, kernel=3), Flatten("flatten"), Linear("classes", None)


def error_of(call, *args, **kwargs):
    with pytest.raises(ValueError, match=r".") as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("argument", "value", "least"),
    [
        *((argument, 0, 1) for argument in ("size", "kernel", "stride")),
        ("padding", -1, 0),
        *(
            (argument, value, least)
            for argument, least in (("size", 1), ("kernel", 1), ("stride", 1), ("padding", 0))
            for value in NO_INTEGERS
        ),
    ],
)
def test_conv_output_size_names_an_argument_out_of_its_range(argument, value, least):
    arguments = {"size": 9, "kernel": 3, "stride": 1, "padding": 0, argument: value}
    expected = f"{argument} is {value!r}; expected an integer from {least} to {2**63 - 1}"
    assert error_of(conv_output_size, **arguments) == expected


@pytest.mark.bad_input
@pytest.mark.parametrize("value", [0, *NO_INTEGERS])
def test_a_number_of_channels_below_1_or_no_integer_is_refused(value):
    expected = f"in_channels is {value!r}; expected an integer from 1 to {MOST_COUNT}"
    assert error_of(feature_map_shapes, "paper", in_channels=value) == expected


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Conv("c", 0, 3), "channels is 0; expected an integer from 1 to 16777216"),
        (lambda: Conv("c", 4, 3.0), "kernel is 3.0; expected an integer from 1 to 16384"),
        (lambda: Conv("c", 4, 3, stride=0), "stride is 0; expected an integer from 1 to 16384"),
        (lambda: Conv("c", 4, 3, padding=-1), "padding is -1; expected an integer from 0 to 16384"),
        (
            lambda: Conv("c", 4, 3, groups=True),
            "groups is True; expected an integer from 1 to 16777216",
        ),
        (
            lambda: Conv("c", 4, 3, code_std=-1.0),
            "code_std is -1.0; expected a finite number that float32 can hold, at least 0",
        ),
        (lambda: LRN("n", size=0), "size is 0; expected an integer from 1 to 16777216"),
        (lambda: LRN("n", k=math.nan), "k is nan; expected a finite number"),
        (lambda: LRN("n", beta="1"), "beta is '1'; expected a finite number"),
        (lambda: MaxPool("p", stride=0), "stride is 0; expected an integer from 1 to 16384"),
        (lambda: AdaptiveAvgPool("a", 0), "output_size is 0; expected an integer from 1 to 16384"),
        (lambda: Linear("l", 0), "features is 0; expected an integer from 1 to 16777216, or None"),
        (lambda: ReLU(3), "name is 3; expected a string"),
    ],
)
def test_a_row_of_a_table_is_checked_when_it_is_made(build, message):
    assert error_of(build).startswith(message)


# NumPy's numbers, which the run with type checks refuses; they are stored as plain ones.
@pytest.mark.bad_input
def test_numpys_numbers_make_the_same_network():
    i, x = np.int64, np.float32
    table = Architecture(
        "own",
        image_size=np.uint8(9),
        layers=(
            Conv("conv1", i(8), i(3), i(1), i(0), i(1), x(0.5), x(1)),
            LRN("norm1", i(5), x(0.5), x(0.75), x(2), i(2)),
            MaxPool("pool1", np.int32(3), np.uint8(2)),
            AdaptiveAvgPool("avgpool", i(2)),
            FLATTEN,
            Linear("fc", None, x(0.5), x(1)),
        ),
    )
    assert Architecture.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    shapes = feature_map_shapes(table, i(12), num_classes=np.uint16(5), in_channels=np.uint8(1))
    assert json.loads(json.dumps(shapes))["fc"] == [5]
    text = repr(summary(table, image_size=i(12), num_classes=i(5), in_channels=i(1)))
    assert "images of 12x12x1, 5 classes" in text
    assert type(conv_output_size(i(227), kernel=i(11), stride=i(4), padding=i(0))) is int
    pairs = solve_stride_padding(i(13), output_size=i(13), kernel=i(3))
    assert [type(n) for pair in pairs for n in pair] == [int, int]
    # Products of NumPy's small integers overflow.
    assert conv_output_size(np.uint8(200), kernel=np.uint8(3), padding=np.uint8(100)) == 398


@pytest.mark.bad_input
def test_a_kernel_larger_than_the_padded_input_is_refused():
    assert error_of(conv_output_size, 4, kernel=7, padding=1) == (
        "kernel is 7, larger than the padded input: size 4 + 2 * padding 1 = 6"
    )


@pytest.mark.bad_input
@pytest.mark.parametrize("argument", ["size", "output_size", "kernel"])
@pytest.mark.parametrize("value", [0, *NO_INTEGERS])
def test_solve_stride_padding_names_an_argument_out_of_its_range(argument, value):
    arguments = {"size": 13, "output_size": 13, "kernel": 3, argument: value}
    expected = f"{argument} is {value!r}; expected an integer from 1 to 2048"
    assert error_of(solve_stride_padding, **arguments) == expected


@pytest.mark.bad_input
@pytest.mark.parametrize("call", [feature_map_shapes, summary])
def test_an_unknown_architecture_is_told_the_known_ones(call):
    name = "model_or_architecture" if call is summary else "architecture"
    assert error_of(call, "alexnet") == (
        f"{name} is 'alexnet'; expected an Architecture or one of "
        "'paper', 'single_tower', 'one_weird_trick'"
    )


@pytest.mark.bad_input
@pytest.mark.parametrize("value", [227.0, "227", True])
def test_an_image_size_that_is_no_integer_is_refused(value):
    assert error_of(feature_map_shapes, "paper", value) == (
        f"image_size is {value!r}; the architecture 'paper' needs images of at least "
        "67x67 pixels (an integer)"
    )


@pytest.mark.bad_input
@pytest.mark.parametrize("call", [feature_map_shapes, summary])
@pytest.mark.parametrize("value", [0, -1, True, 10.0])
def test_a_number_of_classes_below_1_or_no_integer_is_refused(call, value):
    expected = f"num_classes is {value!r}; expected an integer from 1 to {MOST_COUNT}"
    assert error_of(call, "paper", num_classes=value) == expected


@pytest.mark.bad_input
def test_a_summary_of_what_only_has_an_architecture_is_refused():
    with pytest.raises(
        TypeError, match=r"model_or_architecture is a types\.SimpleNamespace; expect"
    ):
        summary(SimpleNamespace(architecture=CUSTOM))


@pytest.mark.bad_input
def test_a_summary_of_something_else_says_what_it_is():
    with pytest.raises(TypeError) as caught:
        summary(torch.nn.Linear(2, 2))
    assert str(caught.value) == (
        "model_or_architecture is a torch.nn.modules.linear.Linear; "
        "expected an AlexNet, an Architecture or the name of one"
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        ((CONV, CLASSES), "has 0 Flatten layers; expected exactly one"),
        ((CONV, FLATTEN, Flatten("again"), CLASSES), "has 2 Flatten layers; expected exactly one"),
        (
            (CONV, ReLU("relu"), FLATTEN, ReLU("relu"), CLASSES),
            "repeats the names ['relu']; each layer needs its own",
        ),
        ((FLATTEN, CLASSES), "does not start with a Conv"),
        ((MaxPool("pool"), CONV, FLATTEN, CLASSES), "does not start with a Conv"),
        (
            (CONV, Linear("fc", 3), FLATTEN, CLASSES),
            "has the Linear layers ['fc'] before its Flatten",
        ),
        (
            (CONV, AdaptiveAvgPool("avgpool", 2), ReLU("relu"), FLATTEN, CLASSES),
            "has an AdaptiveAvgPool that is not directly before its Flatten",
        ),
        (
            (CONV, FLATTEN, MaxPool("pool"), CLASSES),
            "has ['pool'] after its Flatten; only Linear, ReLU and Dropout can be there",
        ),
        *(
            (layers, "must end with its only Linear(name, None), the layer of the classes")
            for layers in (
                (CONV, FLATTEN),
                (CONV, FLATTEN, Linear("fc", 10)),
                (CONV, FLATTEN, CLASSES, ReLU("relu")),
                (CONV, FLATTEN, Linear("fc", None), CLASSES),
            )
        ),
    ],
)
def test_a_table_of_another_form_is_told_what_is_wrong(layers, problem):
    assert error_of(Architecture, "wrong", 8, layers) == f"layers {problem}"


@pytest.mark.bad_input
def test_a_table_whose_own_image_is_too_small_is_refused():
    assert error_of(Architecture, "wrong", 2, (CONV, FLATTEN, CLASSES)) == (
        "image_size is 2; the architecture 'wrong' needs images of at least 3x3 pixels (an integer)"
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(("channels", "groups"), [(4, 2), (3, 3), (6, 2)])
def test_groups_that_do_not_divide_the_channels_are_refused(channels, groups):
    first, second = Conv("conv1", 5, kernel=1), Conv("conv2", channels, kernel=1, groups=groups)
    architecture = Architecture("wrong", 8, (first, second, FLATTEN, CLASSES))
    assert error_of(feature_map_shapes, architecture) == (
        f"conv2 has {groups} groups, which do not divide its 5 input and {channels} output channels"
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.pop("layers"), "data is ['name', 'image_size']; expected a mapping w"),
        (
            lambda data: data.pop("image_size"),
            "data is ['name', 'layers']; expected a mapping with",
        ),
        (
            lambda data: data.update(extra=1),
            "data is ['name', 'image_size', 'layers', 'extra']; ex",
        ),
        (lambda data: data.update(layers=3), "layers is 3; expected a list of at most 1000"),
        (lambda data: data["layers"][0].pop("kind"), "layers[0] is {'name': 'conv1', "),
        (lambda data: data["layers"][0].update(kind="Softmax"), "layers[0] is {'kind': 'Softmax',"),
        (lambda data: data["layers"][0].update(kind=[]), "layers[0] is {'kind': [],"),
        (
            lambda data: data["layers"][0].update(dilation=2),
            "layers[0], Conv, has an unknown key 'dilation'; expected name, channels, kernel, ",
        ),
        (lambda data: data["layers"][0].pop("kernel"), "layers[0], Conv, has no kernel; expected "),
        (
            lambda data: data["layers"][0].update(groups=0),
            "layers[0], Conv: groups is 0; expected an integer from 1 to 16777216",
        ),
        (lambda data: data["layers"].insert(0, 3), "layers[0] is 3; expected a mapping whose kind"),
    ],
)
def test_data_that_is_no_architecture_is_told_what_is_wrong(change, reason):
    data = CUSTOM.to_dict()
    change(data)
    assert error_of(Architecture.from_dict, data).startswith(reason)


@pytest.mark.bad_input
@pytest.mark.parametrize("data", [None, 3, "text", [1], torch.zeros(3), 10**5000], ids=type)
def test_data_that_is_no_mapping_is_no_architecture(data):
    assert error_of(Architecture.from_dict, data).startswith("data is ")


def bits(value):
    return f"{value.bit_length()} bits"


# What a network can mean: sizes that no machine could hold are refused before anything is computed.

HUGE = [2**63, 10**12, 10**400, 10**5000]


@pytest.mark.bad_input
@pytest.mark.parametrize("call", [feature_map_shapes, summary, meta_model])
@pytest.mark.parametrize("argument", ["image_size", "num_classes", "in_channels"])
@pytest.mark.parametrize("value", [*HUGE, MOST_COUNT + 1], ids=bits)
def test_sizes_that_mean_no_network_are_named(call, argument, value):
    assert error_of(call, "one_weird_trick", **{argument: value}).startswith(f"{argument} is ")


@pytest.mark.bad_input
@pytest.mark.parametrize("call", [feature_map_shapes, summary, meta_model])
def test_a_network_of_possible_parts_that_is_too_large_is_refused(call):
    message = error_of(call, "paper", image_size=MOST_SIDE, num_classes=MOST_COUNT)
    assert re.match(r"fc6 has \d+ parameters, with those before it; expected at most \d+", message)


@pytest.mark.parametrize("size", [MOST_SIDE, 4096])
def test_the_largest_images_and_class_counts_that_mean_something_are_computed(size):
    shapes = feature_map_shapes("one_weird_trick", size, num_classes=10**7)
    assert shapes["fc8"] == (10**7,)


@pytest.mark.bad_input
@pytest.mark.parametrize("value", [*HUGE, MOST_SIDE + 1], ids=bits)
@pytest.mark.parametrize("field", ["kernel", "stride", "padding", "output_size"])
def test_a_side_of_a_layer_has_a_bound(field, value):
    build = (
        (lambda **size: AdaptiveAvgPool("a", **size))
        if field == "output_size"
        else (lambda **size: Conv("c", **{"channels": 4, "kernel": 3, **size}))
    )
    assert error_of(build, **{field: value}).startswith(f"{field} is ")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "value", [1e308, math.inf, -math.inf, math.nan, 10**400, True, None, "1"], ids=str
)
@pytest.mark.parametrize("field", ["alpha", "beta", "k"])
def test_a_number_of_a_layer_is_one_that_float32_can_hold(field, value):
    assert error_of(LRN, "n", **{field: value}).startswith(f"{field} is ")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "name", ["", "a.b", "x\x1b[31m", "two\nlines", "n" * 101, None, 3, b"conv"]
)
def test_a_name_that_torch_or_a_terminal_cannot_take_is_refused(name):
    assert error_of(ReLU, name).startswith("name is ")


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["", "x\x1b[31m", "n" * 101, None, 3])
def test_an_architectures_name_is_a_printable_string(name):
    assert error_of(Architecture, name, 8, (CONV, FLATTEN, CLASSES)).startswith("name is ")


@pytest.mark.bad_input
@pytest.mark.parametrize("layers", [None, 3, "layers", {CONV}, {"conv": CONV}])
def test_layers_that_are_no_tuple_are_refused(layers):
    assert error_of(Architecture, "wrong", 8, layers).endswith("expected a tuple of layers")


@pytest.mark.bad_input
@pytest.mark.parametrize("layer", [None, "conv1", torch.nn.ReLU(), Conv, {"kind": "ReLU"}])
def test_a_layer_that_is_none_is_named(layer):
    assert error_of(Architecture, "wrong", 8, (CONV, layer)).startswith("layers[1] is ")


@pytest.mark.bad_input
def test_a_million_layers_are_refused():
    rows = [CONV, *(ReLU("relu") for _ in range(1000)), FLATTEN, CLASSES]
    expected = "layers has 1003 of them; expected at most 1000"
    assert error_of(Architecture, "wrong", 8, rows) == expected
    data = {**CUSTOM.to_dict(), "layers": [{"kind": "ReLU", "name": "x"}] * 10**6}
    assert error_of(Architecture.from_dict, data).endswith("expected a list of at most 1000")


@pytest.mark.bad_input
def test_strides_that_need_an_impossible_image_are_refused():
    rows = [Conv(f"conv{i}", 1, kernel=3, stride=9000) for i in range(900)]
    assert error_of(Architecture, "wrong", 8, (*rows, FLATTEN, CLASSES)) == (
        f"layers need images of more than {MOST_SIDE} pixels a side"
    )


@pytest.mark.bad_input
@pytest.mark.parametrize("value", HUGE, ids=bits)
@pytest.mark.parametrize("argument", ["size", "kernel", "stride", "padding"])
def test_windows_of_more_pixels_than_integers_of_torch_are_refused(argument, value):
    arguments = {"size": 9, "kernel": 3, argument: value}
    if value == 10**12:
        arguments["padding"] = value
        assert conv_output_size(**arguments) >= 1
    else:
        assert error_of(conv_output_size, **arguments).startswith(f"{argument} is ")


def test_the_most_pairs_are_found_in_a_moment():
    pairs = solve_stride_padding(2048, output_size=1, kernel=2048)
    assert len(pairs) == len(set(pairs)) == 1024**2 + 1024


@pytest.mark.bad_input
def test_a_feature_map_too_large_for_a_machine_is_refused():
    rows = (Conv("conv1", 96, kernel=3, padding=9000), AdaptiveAvgPool("avgpool", 1))
    table = Architecture("wide", 12, (*rows, FLATTEN, CLASSES))
    message = error_of(feature_map_shapes, table)
    assert message.startswith(f"conv1 has {96 * 18010**2} outputs; expected at most {2**31}: lower")


# Random arguments: each error says which one, and what was expected.


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (conv_output_size, {"size": 9, "kernel": 3, "stride": 1, "padding": 0, "ceil_mode": True}),
        (solve_stride_padding, {"size": 13, "output_size": 13, "kernel": 3}),
        (
            feature_map_shapes,
            {"architecture": "paper", "image_size": 227, "num_classes": 10, "in_channels": 3},
        ),
        (
            summary,
            {
                "model_or_architecture": "paper",
                "image_size": 227,
                "num_classes": 10,
                "in_channels": 3,
            },
        ),
        (meta_model, {"architecture": "paper", "image_size": 227, "num_classes": 10}),
        (Architecture, {"name": "own", "image_size": 12, "layers": (CONV, FLATTEN, CLASSES)}),
        (Architecture.from_dict, {"data": CUSTOM.to_dict()}),
        (Conv, {"name": "c", "channels": 4, "kernel": 3, "stride": 1, "padding": 0, "groups": 1}),
        (Conv, {"name": "c", "channels": 4, "kernel": 3, "code_std": 0.1, "initial_bias": 0.0}),
        (LRN, {"name": "n", "size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0, "groups": 1}),
        (MaxPool, {"name": "p", "kernel": 3, "stride": 2}),
        (AdaptiveAvgPool, {"name": "a", "output_size": 2}),
        (Linear, {"name": "l", "features": 4, "code_std": 0.1, "initial_bias": 0.0}),
        (Dropout, {"name": "d"}),
    ],
)
def test_odd_arguments_are_named_or_right(call, arguments):
    assert call(**arguments) is not None
    assert not wrong_messages(call, arguments)
