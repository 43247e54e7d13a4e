"""In how many directions the patches that conv1 sees differ, at two sizes of the images.

    python benchmarks/patches.py cifar10-jpeg

Prints, for 24,000 patches of 2,000 normalised training images, how much of their variance the first
directions have (the eigenvalues of their covariance).
"""

import sys

import torch

from alexnet_lib import Recipe, RunOptions, prepare_loaders
from alexnet_lib.data.sources import open_parts

SIDE, IMAGES, PATCHES = 11, 2000, 12  # patches of an image
SIZES, DIRECTIONS = (131, 227), (1, 2, 3, 5, 10)


def variances(data: str, size: int) -> torch.Tensor:
    """The fraction of the variance in the first 1, 2, 3 ... directions."""
    recipe = Recipe("patches", image_size=size, flip=False, train_images=IMAGES, batch_size=100)
    recipe = recipe.overridden({"validation_fraction": 0.0})
    options = RunOptions("cpu", "float32", progress=False)
    loader = prepare_loaders(open_parts(data), recipe, options=options).train
    generator, patches = torch.Generator().manual_seed(0), []
    for images, _ in loader:
        for image in images:
            for y, x in torch.randint(size - SIDE + 1, (PATCHES, 2), generator=generator).tolist():
                patches.append(image[:, y : y + SIDE, x : x + SIDE].flatten())
    eigenvalues = torch.linalg.eigvalsh(torch.stack(patches).double().T.cov()).flip(0)
    return eigenvalues.cumsum(0) / eigenvalues.sum()


if __name__ == "__main__":
    for size in SIZES:
        fractions = variances(sys.argv[1], size)
        text = ", ".join(f"{count}: {fractions[count - 1]:.1%}" for count in DIRECTIONS)
        print(f"{size} pixels, of {len(fractions)} directions: {text}")
