"""Draws the pictures in docs/images, which the README and the pages show.

    alexnet-lib demo --out runs/demo
    alexnet-lib train cifar10 --out runs/cifar10
    python docs/pictures.py runs/demo runs/cifar10

The figures of each run have the name of its folder before their own; those that no page shows are
left out.
"""

import sys
from pathlib import Path

from PIL import Image

from alexnet_lib import ARCHITECTURES, plot_architecture, plot_examples, write_figures

IMAGES = Path(__file__).parent / "images"
# 256 colours are enough for a page, and take a third of the space.
COLORS = 256


def draw(*runs: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    for name in ARCHITECTURES:
        plot_architecture(name).savefig(IMAGES / f"{name}.svg")
    plot_examples("shapes").savefig(IMAGES / "shapes.png")
    copies = [IMAGES / "shapes.png"]
    pages = "".join(page.read_text(encoding="utf-8") for page in IMAGES.parent.glob("*.md"))
    for run in runs:
        for file in write_figures(run):
            copy = IMAGES / f"{Path(run).name}-{file.name}"
            if copy.name in pages:
                copy.write_bytes(file.read_bytes())
                copies.append(copy)
    for file in copies:
        if file.suffix == ".png":
            picture = Image.open(file).convert("RGBA")
            picture.quantize(COLORS, Image.Quantize.FASTOCTREE).save(file, optimize=True)


if __name__ == "__main__":
    draw(*sys.argv[1:])
