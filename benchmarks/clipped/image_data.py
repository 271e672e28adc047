"""Small images as tensors: read, normalised, and cropped and flipped at random while one trains on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune_common.errors import ConfigurationError

__all__ = ["DEVICE", "Batch", "Images", "Shuffled", "augmented"]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Batch = tuple[Tensor, Tensor]


def augmented(
    x: Tensor, generator: torch.Generator, *, crop: int = 0, flip: bool = False, black: Tensor | float = 0.0
) -> Tensor:
    """Return each image cropped at a random place and, every second one, mirrored.

    Args:
        x: Images [rows, channels, height, width].
        generator: Of the random numbers; on the CPU.
        crop: Black pixels put around an image before a crop of its own size is taken.
        flip: Whether images are mirrored, left and right, with probability 1/2.
        black: The value of a black pixel, or one a channel [channels, 1, 1].

    Examples:
        >>> x = torch.arange(4.0).view(1, 1, 2, 2) + 1
        >>> augmented(x, torch.Generator().manual_seed(0)).equal(x)
        True
        >>> augmented(x, torch.Generator().manual_seed(0), crop=1).flatten().tolist()
        [0.0, 3.0, 0.0, 0.0]
    """
    rows, channels, height, width = x.shape
    if crop:
        framed = torch.empty(rows, channels, height + 2 * crop, width + 2 * crop, device=x.device)
        framed[:] = black
        framed[..., crop : crop + height, crop : crop + width] = x
        top, left = torch.randint(2 * crop + 1, (2, rows, 1), generator=generator).to(x.device)
        down = top + torch.arange(height, device=x.device)
        across = left + torch.arange(width, device=x.device)
        image = torch.arange(rows, device=x.device)[:, None, None]
        x = framed[image, :, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2).contiguous()
    if flip:
        mirrored = (torch.rand(rows, generator=generator) < 0.5).to(x.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    return x


class Images:
    """Training and test images as float tensors [rows, channels, height, width], with labels.

    Args:
        name: `digits` (scikit-learn's), a hub name, or a folder with `train` and `test` of class folders.
        augment: `crop` and `flip` of `augmented`, for training images; none are changed without it.
        normalisation: `mean` and `std` of each channel; those of the training images by default.
    """

    augment: Mapping[str, Any] | None = None
    black: Tensor | float = 0.0

    def __init__(
        self,
        name: str,
        augment: Mapping[str, Any] | None = None,
        normalisation: Mapping[str, list[float]] | None = None,
    ):
        if name == "digits":
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split

            digits = load_digits()
            split = train_test_split(digits.images, digits.target, test_size=360, random_state=0)
            x, test_x, y, test_y = (torch.as_tensor(values) for values in split)
            x, test_x = (values.float()[:, None] / 16 for values in (x, test_x))
        else:
            from datasets import load_dataset

            folder = Path(name).is_dir()
            dataset = load_dataset("imagefolder", data_dir=name) if folder else load_dataset(name)
            (x, y), (test_x, test_y) = (self._decoded(dataset[split]) for split in ("train", "test"))
        center, spread = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
        if normalisation:
            center, spread = (torch.tensor(normalisation[key])[:, None, None] for key in ("mean", "std"))
        self.augment, self.black = augment, (-center / spread).reshape(-1, 1, 1).to(DEVICE)
        self.train: Batch = (((x - center) / spread).to(DEVICE), y.long().to(DEVICE))
        self.test: Batch = (((test_x - center) / spread).to(DEVICE), test_y.long().to(DEVICE))

    @staticmethod
    def _decoded(rows: Any) -> Batch:
        from datasets import ClassLabel, Image

        image, label = (
            next((name for name, feature in rows.features.items() if isinstance(feature, kind)), None)
            for kind in (Image, ClassLabel)
        )
        if image is None or label is None:
            raise ConfigurationError(
                f"no images or no classes among the columns {', '.join(rows.column_names)}: give a dataset "
                "with an Image and a ClassLabel"
            )
        pixels = rows.with_format("torch")[image]
        return torch.stack([pixel.float() / 255 for pixel in pixels]), torch.as_tensor(rows[label])

    @property
    def classes(self) -> int:
        """The number of labels."""
        return int(self.train[1].max()) + 1

    def epoch(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Go once through the training images in a new order, each changed anew where they are augmented."""
        x, y = self.train
        for rows in torch.randperm(len(y), generator=generator).split(size):
            images = x[rows]
            if self.augment:
                images = augmented(images, generator, black=self.black, **self.augment)
            yield images, y[rows]


class Shuffled:
    """A new order of mini-batches at every pass."""

    def __init__(self, images: Images, size: int, seed: int):
        self.images, self.size = images, size
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Batch]:
        return self.images.epoch(self.size, self.generator)
