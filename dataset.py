"""Pairs of pictures: checked, decoded once into a cache, augmented alike, dealt in batches."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from config import Config
from machine.devices import Machine
from machine.processes import Processes
from machine.workers import batches_from_workers
from pictures.encode import image_of
from pictures.layouts import Pair
from pictures.pairs import Preparation
from pictures.sides import Side, Sides
from pictures.store import open_store

Key = tuple[int, int]  # (epoch, index of the pair)


class PairedImages(Dataset):
    """Pairs as tensors of the numbers in their files, the input's channels before the target's.

    For training a pair is resized to load_size, cropped at random to crop_size and mirrored;
    for validation it is resized to crop_size. All randomness of a sample follows from
    (seed, epoch, index). Every picture is decoded once, into a file that all workers and later
    runs share. Pairs in shards are decoded each time.

    Args:
        pairs: Where the pairs lie.
        preparation: How they become samples.

    Attributes:
        preparation: As given.
        store: The pairs that are used, in the order of the indices, and what is known of them.
        notes: Remarks for the user; the one on pairs left out lists them below it.

    Raises:
        BadPictures: Naming every picture that cannot be read or used.
        OSError: The cache cannot be written.
    """

    def __init__(self, pairs: Sequence[Pair], preparation: Preparation) -> None:
        self.preparation = preparation
        self.store = open_store(pairs, preparation)
        self._augment = _augmentation(preparation)
        self.notes = self.store.notes + _enlarged(self.store.sizes, preparation)

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.store.pairs)

    def __getitem__(self, key: Key) -> Tensor:
        """Return the sample (C, crop_size, crop_size) of (epoch, index)."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> Tensor:
        """Return the samples of several (epoch, index) as one batch.

        Returns:
            Tensor (N, channels of both, crop_size, crop_size), uint8, uint16 or float32.

        Raises:
            BadPictures: If a picture that is not cached has vanished or changed, or is in a shard
                and cannot be used.
        """
        samples = [self._sample(epoch, index).transpose(2, 0, 1) for epoch, index in keys]
        # np.stack alone would keep the channels innermost in memory, and all later tensors so.
        batch = np.empty((len(samples), *samples[0].shape), samples[0].dtype)
        return torch.from_numpy(np.stack(samples, out=batch))

    def whole(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return input and target of a pair as they are kept, (H, W, channels) each."""
        pair, channels = self.store.read(index), self.store.kinds[0].channels
        return pair[..., :channels], pair[..., channels:]

    def _sample(self, epoch: int, index: int) -> np.ndarray:
        pair = self.store.read(index)
        # Each step gets a seed of its own: with Compose.set_random_seed all would draw the same
        # numbers, and exactly the crops from the upper half would be mirrored.
        for step, transform in enumerate(self._augment.transforms):
            transform.set_random_seed(derived_seed(self.preparation.seed, epoch, index, step))
        # Input and target are stacked in one array, so that one call crops and mirrors both alike.
        return self._augment(image=pair)["image"]


def _augmentation(preparation: Preparation) -> Any:
    """Return what crops and mirrors an array: an ``albumentations.Compose``."""
    # It asks a server for newer versions when imported, unless this is set before.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A  # here, as it takes a second that --help need not wait for

    # Validation pictures that kept their aspect are still longer than the crop.
    crop = A.RandomCrop if preparation.augment else A.CenterCrop
    mirror = [A.HorizontalFlip(p=0.5)] if preparation.augment and preparation.flip else []
    return A.Compose([crop(preparation.crop_size, preparation.crop_size), *mirror])


def _enlarged(sizes: Sequence[tuple[int, int]], preparation: Preparation) -> list[str]:
    small = sum(min(height_width) < preparation.size for height_width in sizes)
    setting = f"{'load_size' if preparation.augment else 'crop_size'} {preparation.size}"
    note = f"{small} of {len(sizes)} pictures are smaller than {setting} and are enlarged"
    return [note] if small else []


def derived_seed(*parts: int) -> int:
    """Return a seed of its own for each sequence of numbers, such as (seed, epoch, step)."""
    # Python's hash() may differ between versions; this may not.
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def epoch_order(
    n_pairs: int,
    batch_size: int,
    seed: int,
    n_epochs: int,
    start_epoch: int = 0,
    start_step: int = 0,
) -> Iterator[list[Key]]:
    """Yield which samples make up each batch of a run; an incomplete last batch is dropped.

    Args:
        n_pairs: Pairs of the data set.
        batch_size: Samples in a batch.
        seed: Decides the order, together with the number of the epoch alone.
        n_epochs: The epochs of the run are 0 to n_epochs - 1.
        start_epoch: Epoch to begin in.
        start_step: Batches of that epoch that are done already.
    """
    for epoch in range(start_epoch, n_epochs):
        order = np.random.default_rng(derived_seed(seed, epoch)).permutation(n_pairs)
        done = start_step if epoch == start_epoch else 0
        for step in range(done, n_pairs // batch_size):
            batch = order[step * batch_size : (step + 1) * batch_size]
            yield [(epoch, int(index)) for index in batch]


@contextmanager
def training_batches(
    pairs: PairedImages,
    config: Config,
    machine: Machine,
    check: Callable[[], None] = lambda: None,
    begin: tuple[int, int] = (0, 0),
) -> Iterator[Iterator[Tensor]]:
    """Give the batches of the whole rest of a run, on the device; the workers end with the block.

    One iterator over all epochs keeps the workers busy across their borders. It draws nothing
    from torch's global generator, so the same run trains alike however often it is resumed.

    Args:
        pairs: The training pairs, at least batch_size of them.
        config: Resolved settings: batch_size, num_workers, seed and the number of epochs.
        machine: Where the batches go. Processes that share the run get a share of each.
        check: Called before each batch, and every second while one is waited for; what it raises
            ends the batches, in all processes before the same one.
        begin: Where the run is: the epochs that are done, and the steps of the next one.

    Yields:
        An iterator over tensors (batch_size or the share of it, C, crop_size, crop_size), uint8,
        uint16 or float32. It raises BadPictures or OSError where a picture that is not cached
        has changed, or a worker is gone.
    """
    n_epochs = config.n_epochs + config.n_epochs_decay
    order = epoch_order(len(pairs), config.batch_size, config.seed, n_epochs, *begin)
    own = map(machine.processes.share_of, order)
    # Page-locked memory goes to a GPU while the host goes on.
    keep = Tensor.pin_memory if machine.device.type == "cuda" else Tensor.clone
    count = config.num_workers
    if count is None:
        count = _workers_needed(pairs, machine)
    batches = batches_from_workers(pairs, own, count, check=check, keep=keep)
    with closing(batches):
        together = machine.processes.in_step(batches, check)
        yield (batch.to(machine.device, non_blocking=True) for batch in together)


def _workers_needed(pairs: PairedImages, machine: Machine) -> int:
    """Return how many workers pay: none where cores that compute would only wait for each other."""
    if machine.device.type == "cpu" and pairs.store.is_stored:
        return 0
    return min(8, max(2, (os.cpu_count() or 1) // machine.processes.count))


def validation_batches(
    pairs: PairedImages, seed: int = 0, numbers: Iterable[int] | None = None
) -> Iterator[Tensor]:
    """Yield pairs one at a time, as tensors (1, C, crop_size, crop_size) of the files' numbers.

    Before each, torch's generator is seeded: a picture's noise (dropout at test) is its own,
    whichever process translates it.

    Args:
        pairs: The pairs.
        seed: Of the run.
        numbers: Which of them; None: all, in order.
    """
    for number in range(len(pairs)) if numbers is None else numbers:
        torch.manual_seed(derived_seed(seed, number))
        yield pairs[0, number][None]


def seed_noise(seed: int, epoch: int, step: int, processes: Processes) -> None:
    """Seed torch's generator for a step, so that its dropout follows from these numbers alone."""
    torch.manual_seed(derived_seed(seed, epoch, step, *processes.rank_seed))


def normalise(batch: Tensor, sides: Sides) -> tuple[Tensor, Tensor]:
    """Split a batch into inputs and targets and scale them; run it on the training device.

    Args:
        batch: (N, channels of both, H, W), numbers as in the files, of any type.
        sides: What these are, and which range of them becomes [-1, 1].

    Returns:
        Inputs (N, channels, H, W), cut off at -1 and 1; and targets (N, channels, H, W), uncut.
    """
    n = sides.input.channels
    return scaled(batch[:, :n], sides.input).clamp(-1, 1), scaled(batch[:, n:], sides.target)


def scaled(numbers: Tensor, side: Side) -> Tensor:
    """Return numbers of one side's files as float32, its range as [-1, 1]."""
    return (numbers.to(torch.float32) - side.low) / side.half_range - 1


def to_image(picture: Tensor) -> Image.Image:
    """Show one picture, (C, H, W) in [-1, 1], in 8 bits: of many channels the first three."""
    shown = picture[:3] if len(picture) >= 3 else picture[:1]
    return image_of(denormalise(shown, Side()))


def denormalise(picture: Tensor, side: Side) -> np.ndarray:
    """Turn one picture, (C, H, W) in [-1, 1], into numbers (H, W, C) as in the side's files."""
    numbers = picture.float().cpu().numpy().transpose(1, 2, 0) * side.half_range
    numbers += side.half_range + side.low
    if side.dtype != "float32":
        limits = np.iinfo(side.dtype)
        numbers = numbers.round().clip(limits.min, limits.max)
    return np.ascontiguousarray(numbers.astype(side.dtype))
