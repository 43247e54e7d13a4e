"""What this library is measured against: the AlexNet of the usual blog post, as its readers run it.

Single tower, torch's LocalResponseNorm, torch's initialisation; each image resized and normalised
by itself; SGD with learning rate 0.0001. Its faults are left in: the loss is averaged per batch and
fetched from the device at every step, and `view` mixes images where the size is wrong.

    python benchmarks/tutorial.py shapes --train-images 1280 [--keep-memory]
"""

import argparse
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from tqdm import tqdm

from alexnet_lib import keep_freed_memory
from alexnet_lib.data.images import ImageTensors
from alexnet_lib.data.sources import open_parts


class AlexNet(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, kernel_size=11, stride=4, padding=0),
            nn.ReLU(),
            nn.LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=2),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(96, 256, kernel_size=5, stride=1, padding=2),
            nn.ReLU(),
            nn.LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=2),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(256, 384, kernel_size=3, stride=1, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 384, kernel_size=3, stride=1, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, kernel_size=3, stride=1, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        x = x.view(-1, 256 * 6 * 6)
        return self.classifier(x)


class Pictures(Dataset):
    """Images of 32x32 pixels as torchvision's CIFAR10 gives them, one at a time."""

    def __init__(self, images: ImageTensors, count: int) -> None:
        self.images = images.images[:count].permute(0, 2, 3, 1).numpy()
        self.labels = images.labels[:count].tolist()
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.ToTensor(),
                transforms.Resize((227, 227)),
                transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def build_loader(data: str, train_images: int) -> DataLoader:
    pictures = Pictures(open_parts(data).train, train_images)
    return DataLoader(pictures, batch_size=128, shuffle=True)


def train(model: nn.Module, loader: DataLoader, device: str) -> float:
    """One epoch of the blog post's loop; its images per second."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0001, momentum=0.9, weight_decay=0.0005)
    model.train()
    running_loss, correct, total = 0.0, 0, 0
    started = time.perf_counter()
    for images, labels in tqdm(loader):
        images, labels = images.to(device), labels.to(device)  # noqa: PLW2901
        optimizer.zero_grad()
        outputs = model(images)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
        correct += (outputs.argmax(1) == labels).sum().item()
        total += labels.size(0)
    print(f"loss {running_loss / len(loader):.4f}, accuracy {correct / total:.1%}")
    return total / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--train-images", type=int, default=1280)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep-memory", action="store_true")
    arguments = parser.parse_args()
    if arguments.keep_memory:
        keep_freed_memory()
    loader = build_loader(arguments.data, arguments.train_images)
    print(f"{train(AlexNet().to(arguments.device), loader, arguments.device):.2f} images/s")


if __name__ == "__main__":
    main()
