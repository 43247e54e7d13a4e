"""Fuzzes a reader of strangers' files: ``python fuzz/fuzz.py checkpoint -max_total_time=60``.

The readers are ``checkpoint``, ``weights``, ``image`` and ``table``; options are libFuzzer's. An
input that is read, or refused by an exception that the reader documents, is right. Any other
exception, more than 10 seconds or more than 4 GB are a finding. ``fuzz/found/`` keeps the inputs,
from which the next run starts. It needs atheris, which is for Linux and macOS.
"""

import io
import json
import math
import random
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import atheris
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

# With all that is read lazily otherwise.
with atheris.instrument_imports(include=["alexnet_lib"]):
    import alexnet_lib as lib
    import alexnet_lib.data.loaders
    import alexnet_lib.data.tables
    import alexnet_lib.interop.state_dicts
    import alexnet_lib.network.checkpoints
    from alexnet_lib.data.decoding import read_image
    from alexnet_lib.network import architecture as tables

LIMITS = ["-timeout=10", "-rss_limit_mb=4096", "-max_len=20000", "-print_final_stats=1"]

FOUND = Path(__file__).parent / "found"

SMALL = tables.Architecture(
    "small",
    12,
    (
        tables.Conv("conv1", 4, kernel=3, stride=2),
        tables.ReLU("relu1"),
        tables.LRN("norm1", groups=2),
        tables.MaxPool("pool1"),
        tables.AdaptiveAvgPool("avgpool", 2),
        tables.Flatten("flatten"),
        tables.Dropout("drop2"),
        tables.Linear("fc2", None),
    ),
)

# What takes the place of values in nested data.
ODD = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**53, 2**63, 2**64, 10**30, 1e308, -1e-308),
    *(0.5, "", "a", "paper", "\x1b[31m", "\0", "\ud800", [], {}, [[]], [0], {"a": 1}, [0.5] * 3),
    *("F64", "I32", "BOOL", "F8_E4M3", "float32", "training", "ReLU", "Conv"),
]


@dataclass(frozen=True)
class Reader:
    """A reader, the exceptions that it documents, valid files, and a mutation of them."""

    name: str
    read: Callable[[Path], Any]
    documented: tuple[type[Exception], ...]
    seeds: Callable[[Path], Sequence[bytes]]
    mutated: Callable[[bytes, random.Random], bytes] | None = None


def checkpoint_seeds(folder: Path) -> list[bytes]:
    """Checkpoints with and without all that can be kept with the weights."""
    file, model = folder / "seed.safetensors", lib.AlexNet(3, architecture=SMALL, seed=0)
    lib.save_checkpoint(file, model)
    plain = file.read_bytes()
    rest = {"classes": ["cat", "dog", "bird"], "preprocess": lib.Preprocess(14, 12)}
    lib.save_checkpoint(file, model, **rest, metrics={"a": [1, 0.5, None], "b": {"c": "text"}})
    return [plain, file.read_bytes()]


def read_checkpoint(file: Path) -> None:
    """Loads a checkpoint, and computes with it where that takes a moment."""
    model = lib.load_checkpoint(file)
    shapes = lib.feature_map_shapes(
        model.architecture, model.image_size, in_channels=model.in_channels
    )
    if sum(map(math.prod, shapes.values())) < 10**6 and model.image_size < 100:
        size = (1, model.in_channels, model.image_size, model.image_size)
        model(torch.zeros(size, dtype=next(model.parameters()).dtype))


def mutated_checkpoint(data: bytes, draw: random.Random) -> bytes:
    """The file with a changed header or changed metadata, and without its checksum."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    texts = header["__metadata__"]
    for key in ("sha256", "checked_by"):
        texts.pop(key, None)
    if draw.random() < 0.7:
        texts["alexnet_lib"] = json.dumps(with_odd(json.loads(texts["alexnet_lib"]), draw))
    else:
        header = with_odd(header, draw)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def with_odd(data: Any, draw: random.Random) -> Any:
    """Nested data with some of its values replaced, removed, repeated or renamed."""
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        container, key = data, None
        while isinstance(container, dict | list) and container:
            keys = [*container] if isinstance(container, dict) else [*range(len(container))]
            key = draw.choice(keys)
            inner = container[key]
            if not (isinstance(inner, dict | list) and inner) or draw.random() < 0.1:
                break
            container = inner
        if key is None:
            return draw.choice(ODD)
        match draw.randrange(6):
            case 0:
                del container[key]
            case 1 if isinstance(container, list) and len(container) < 1000:
                container *= 2
            case 2 if isinstance(container, dict):
                container[draw.choice(("a", "kind", "name", ""))] = container.pop(key)
            case 3 if isinstance(container[key], int | float):
                container[key] *= draw.choice((-1, 2, 1e10, 10**10))
            case _:
                container[key] = draw.choice(ODD)
    return data


def weight_seeds(folder: Path) -> list[bytes]:
    """Files of torch.save in both formats, and a safetensors file."""
    state = dict(lib.AlexNet(3, architecture=SMALL, seed=0).state_dict())
    checkpoint = {"state_dict": state, "epoch": 3, "best": torch.tensor(0.5), "names": ["a", "b"]}
    seeds = [save(state)]
    for value, new in ((state, True), (checkpoint, True), (checkpoint, False)):
        stream = io.BytesIO()
        torch.save(value, stream, _use_new_zipfile_serialization=new)
        seeds.append(stream.getvalue())
    return seeds


def read_weights(file: Path) -> None:
    """Reads the weights of another code."""
    lib.from_state_dict(file, architecture=SMALL, image_size=12)


def mutated_weights(data: bytes, draw: random.Random) -> bytes:
    """The file with a changed pickle, and right checksums."""
    if not data.startswith(b"PK"):
        return with_odd_bytes(data, draw)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl") or draw.random() < 0.05:
                content = with_odd_bytes(content, draw)
            new.writestr(name, content)
    return stream.getvalue()


def with_odd_bytes(data: bytes, draw: random.Random) -> bytes:
    """The bytes with some of them changed, removed or repeated."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        start = draw.randrange(len(changed) + 1)
        stop = start + draw.choice((0, 1, 1, 1, 2, 4, 8))
        changed[start:stop] = draw.choice(
            (draw.randbytes(stop - start), b"", changed[start:stop] * 2, b"\xff" * 4, b"h\x01")
        )
    return bytes(changed)


def image_seeds(folder: Path) -> list[bytes]:
    """A small image in each format and mode."""
    noise = np.random.default_rng(0)
    seeds = []
    for kind in ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "TGA"):
        for mode, shape in (("RGB", (9, 7, 3)), ("RGBA", (9, 7, 4)), ("L", (9, 7)), ("P", (9, 7))):
            image = Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8))
            stream = io.BytesIO()
            try:
                image.convert(mode).save(stream, kind)
            except OSError:  # the format does not have this mode
                continue
            seeds.append(stream.getvalue())
    return seeds


def table_seeds(folder: Path) -> list[bytes]:
    """Tables of a few images, which the folder has."""
    names, noise = [f"{i}.png" for i in range(8)], np.random.default_rng(0)
    for name in names:
        pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    text = "image,label\n" + "".join(f"{name},{int(name[0]) % 2}\n" for name in names)
    quoted = text.replace(",", '";"').replace("\n", '"\r\n"').replace(".png", "")
    return [text.encode(), b"\xef\xbb\xbf" + f'"{quoted}"'.encode()]


def read_table(file: Path) -> None:
    """Reads a batch of the images of a table."""
    next(iter(lib.build_loaders(file, image_size=8, batch_size=2).train))


READERS = {
    reader.name: reader
    for reader in (
        Reader(
            "checkpoint",
            read_checkpoint,
            (ValueError, OSError),
            checkpoint_seeds,
            mutated_checkpoint,
        ),
        Reader("weights", read_weights, (ValueError, TypeError), weight_seeds, mutated_weights),
        Reader("image", read_image, (ValueError,), image_seeds),
        Reader("table", read_table, (ValueError, OSError), table_seeds),
    )
}
SUFFIXES = {"checkpoint": "safetensors", "weights": "pth", "image": "jpg", "table": "csv"}


def main() -> None:
    """Fuzzes the reader of the command line's first argument."""
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"usage: fuzz.py {'|'.join(READERS)} [options of libFuzzer]")
    reader = READERS[sys.argv[1]]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = FOUND / reader.name
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(reader.seeds(folder)):
        (corpus / f"seed{i}").write_bytes(seed)
    file = folder / f"input.{SUFFIXES[reader.name]}"

    def test(data: bytes) -> None:
        file.write_bytes(data)
        try:
            reader.read(file)
        except reader.documented as error:
            if len(str(error)) > 2000:
                raise AssertionError("a message of many pages") from error

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if reader.mutated is not None and draw.random() < 0.7:
            try:
                new = reader.mutated(data, draw)
            except Exception:  # what an earlier mutation left is no longer such a file
                new = None
            if new is not None and len(new) <= most:
                return new
        return bytes(atheris.Mutate(data, most))

    options = [*LIMITS, f"-artifact_prefix={folder}/", *sys.argv[2:], str(corpus)]
    atheris.Setup([sys.argv[0], *options], test, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
