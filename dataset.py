"""Pairs of pictures: checked, decoded once into a cache, augmented alike, dealt in batches."""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence

# albumentations asks a server for newer versions when imported, unless this is set before.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from config import Config
from pictures.cache import PairCache
from pictures.decode import BadPictures
from pictures.layouts import Pair
from pictures.pairs import Recipe

Key = tuple[int, int]  # (epoch, index of the pair)


class PairedImages(Dataset):
    """Pairs as uint8 or uint16 tensors, the input's channels before the target's.

    For training a pair is resized to load_size, cropped at random to crop_size and mirrored;
    for validation it is resized to crop_size. All randomness of a sample follows from
    (seed, epoch, index). Every picture is decoded once, into a file that all workers and later
    runs share.

    Args:
        pairs: Where the pairs lie.
        recipe: How they become samples.

    Attributes:
        recipe: As given.
        pairs: The pairs that are used, in the order of the indices.
        sizes: Original (height, width) of the input, per pair.
        notes: Remarks for the user; the one on pairs left out lists them below it.

    Raises:
        BadPictures: Naming every picture that cannot be read or used.
        OSError: The cache cannot be written.
    """

    def __init__(self, pairs: Sequence[Pair], recipe: Recipe) -> None:
        self.recipe = recipe
        self._cache = PairCache(pairs, recipe)
        self._augment = _augmentation(recipe)
        self.pairs: tuple[Pair, ...] = self._cache.pairs
        self.sizes: list[tuple[int, int]] = self._cache.sizes
        self.notes = self._cache.notes + _enlarged(self.sizes, recipe)

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.pairs)

    def __getitem__(self, key: Key) -> Tensor:
        """Return the sample (C, crop_size, crop_size) of (epoch, index)."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> Tensor:
        """Return the samples of several (epoch, index) as one batch.

        Returns:
            Tensor (N, input_nc + output_nc, crop_size, crop_size), uint8 or uint16.

        Raises:
            BadPictures: If a picture that is not cached has vanished or changed.
        """
        samples = [self._sample(epoch, index).transpose(2, 0, 1) for epoch, index in keys]
        # np.stack would keep the channels innermost in memory, and with them every later tensor.
        batch = np.empty((len(samples), *samples[0].shape), samples[0].dtype)
        return torch.from_numpy(np.stack(samples, out=batch))

    def _sample(self, epoch: int, index: int) -> np.ndarray:
        pair = self._cache.read(index)
        # Each step gets a seed of its own: with Compose.set_random_seed all would draw the same
        # numbers, and exactly the crops from the upper half would be mirrored.
        for step, transform in enumerate(self._augment.transforms):
            transform.set_random_seed(derived_seed(self.recipe.seed, epoch, index, step))
        # One array under the one target that is always transformed, so no half is left behind.
        return self._augment(image=pair)["image"]


def _augmentation(recipe: Recipe) -> A.Compose:
    # Validation pictures that kept their aspect are still longer than the crop.
    crop = A.RandomCrop if recipe.augment else A.CenterCrop
    mirror = [A.HorizontalFlip(p=0.5)] if recipe.augment and recipe.flip else []
    return A.Compose([crop(recipe.crop_size, recipe.crop_size), *mirror])


def _enlarged(sizes: Sequence[tuple[int, int]], recipe: Recipe) -> list[str]:
    small = sum(min(height_width) < recipe.size for height_width in sizes)
    setting = f"{'load_size' if recipe.augment else 'crop_size'} {recipe.size}"
    note = f"{small} of {len(sizes)} pictures are smaller than {setting} and are enlarged"
    return [note] if small else []


def derived_seed(*parts: int) -> int:
    """Return a seed of its own for each sequence of numbers, such as (seed, epoch, step)."""
    # Python's hash() may differ between versions; this may not.
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


class EpochOrder(Sampler[list[Key]]):
    """Which samples make up each batch of a whole run; an incomplete last batch is dropped.

    Args:
        n_pairs: Pairs of the data set.
        batch_size: Samples in a batch.
        seed: Decides the order, together with the number of the epoch alone.
        n_epochs: The epochs of the run are 0 to n_epochs - 1.
        start_epoch: Epoch to begin in.
        start_step: Batches of that epoch that are done already.
    """

    def __init__(
        self,
        n_pairs: int,
        batch_size: int,
        seed: int,
        n_epochs: int,
        start_epoch: int = 0,
        start_step: int = 0,
    ) -> None:
        self.n_pairs, self.batch_size, self.seed = n_pairs, batch_size, seed
        self.n_epochs, self.start_epoch, self.start_step = n_epochs, start_epoch, start_step

    def __len__(self) -> int:
        """Count the batches that are left."""
        epochs = max(0, self.n_epochs - self.start_epoch)
        return max(0, epochs * (self.n_pairs // self.batch_size) - self.start_step)

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield the (epoch, index) of each batch that is left."""
        for epoch in range(self.start_epoch, self.n_epochs):
            order = np.random.default_rng(derived_seed(self.seed, epoch)).permutation(self.n_pairs)
            done = self.start_step if epoch == self.start_epoch else 0
            for step in range(done, self.n_pairs // self.batch_size):
                batch = order[step * self.batch_size : (step + 1) * self.batch_size]
                yield [(epoch, int(index)) for index in batch]


class _Messenger(Dataset):
    """Pairs for the loader's workers: what goes wrong is handed over like a batch.

    Raised in a worker it would reach the user inside torch's traceback, and end the run only
    after a wait for that worker.
    """

    def __init__(self, pairs: PairedImages) -> None:
        self.pairs = pairs

    def __getitems__(self, keys: Sequence[Key]) -> Tensor | BadPictures | OSError:
        try:
            return self.pairs.__getitems__(keys)
        except (BadPictures, OSError) as error:
            return error


class _Loader(DataLoader):
    """A DataLoader that raises what its workers hand over, and says so if one is gone."""

    def __iter__(self) -> Iterator[Tensor]:
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise OSError(
                    "A process that prepares pairs was ended from outside. Give the same command "
                    "to go on, with fewer --num-workers if memory ran out."
                ) from error
            if isinstance(batch, BadPictures | OSError):
                raise batch
            yield batch


def training_loader(
    pairs: PairedImages,
    config: Config,
    start_epoch: int = 0,
    start_step: int = 0,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - it is immutable
    check: Callable[[], None] | None = None,
) -> DataLoader:
    """Return the batches of the whole rest of a run, to be iterated once.

    One iterator over all epochs keeps the workers busy across their borders. It draws nothing
    from torch's global generator, so the same run trains alike however often it is resumed.

    Args:
        pairs: The training pairs, at least batch_size of them.
        config: Resolved settings: batch_size, num_workers, seed and the number of epochs.
        start_epoch: Epoch to begin in, from 0.
        start_step: Batches of that epoch that are done already.
        device: Where the batches will go.
        check: Called now and then while a batch is waited for; what it raises ends the waiting.

    Returns:
        Loader of tensors (batch_size, C, crop_size, crop_size), uint8 or uint16.
    """
    n_epochs = config.n_epochs + config.n_epochs_decay
    order = EpochOrder(
        len(pairs), config.batch_size, config.seed, n_epochs, start_epoch, start_step
    )
    return _Loader(
        _Messenger(pairs),
        batch_sampler=order,
        num_workers=config.num_workers,
        collate_fn=_as_is,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        generator=torch.Generator(),
    )


def validation_loader(pairs: PairedImages) -> DataLoader:
    """Return the pairs one at a time and in order, as tensors (1, C, crop_size, crop_size)."""
    keys = [[(0, index)] for index in range(len(pairs))]
    return DataLoader(pairs, batch_sampler=keys, collate_fn=_as_is, generator=torch.Generator())


def _as_is(batch: Tensor) -> Tensor:
    return batch


def _start_worker(worker: int) -> None:
    # Ctrl-C and `timeout` signal the whole process group, but what it means is for the main
    # process to decide, which needs batches until then: workers leave the group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    # A fork inherits the main process's handler, and with it could not be ended at exit. Killed by
    # the signal, where it goes to every process (systemd, pkill), a worker would make torch raise
    # in the middle of the main process's step; one that exits lets it finish.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # A fork has none of the threads that OpenCV believes it started.
    cv2.setNumThreads(0)


def normalise(batch: Tensor, input_nc: int) -> tuple[Tensor, Tensor]:
    """Split a batch into inputs and targets and scale them; run it on the training device.

    Args:
        batch: (N, input_nc + output_nc, H, W), uint8 (0 to 255) or uint16 (0 to 65535).
        input_nc: Channels of the input.

    Returns:
        Inputs (N, input_nc, H, W) and targets (N, output_nc, H, W), float32 in [-1, 1].
    """
    half_range = 32767.5 if batch.dtype == torch.uint16 else 127.5
    scaled = batch.to(torch.float32) / half_range - 1
    return scaled[:, :input_nc], scaled[:, input_nc:]


def denormalise(picture: Tensor, dtype: np.dtype) -> np.ndarray:
    """Turn one picture, (C, H, W) in [-1, 1], into integers (H, W, C): uint8 or uint16."""
    half_range = np.iinfo(dtype).max / 2
    pixels = picture.float().cpu().numpy().transpose(1, 2, 0) * half_range + half_range
    return np.ascontiguousarray(pixels.round().clip(0, 2 * half_range).astype(dtype))
