"""Heights, a sample of targets with a unit: aerial photos (A) and heights above ground (B).

The towns of towns.py, with houses and trees of some height. The sun stands in the south, 45 degrees
high: shadows fall to the top of the picture and are as long as what casts them is high, which tells
what roofs seen from above do not.
"""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from samples.plan import CLASSES, SPAN, Pen, outlines
from samples.towns import (
    OVERSAMPLE,
    ROOFS,
    draw_flat,
    draw_gabled,
    draw_ground,
    draw_roads,
    draw_set,
    draw_trees,
    expose,
    outline_discs,
    plan_with_all_classes,
    plant,
    random_of,
    save_photo,
)

METRE = 10  # heights are drawn in whole decimetres up to 25.5 m; a plan unit is a metre
STOREY = 3.0  # metres
STEPS = 8  # in which slopes are drawn
DARK = 165  # of 255: how dark shadows are


def _raise_roofs(pen: Pen, rects: np.ndarray, eaves: np.ndarray, ridges: np.ndarray) -> None:
    """Draw the heights of roofs, in metres, rising from their long sides to a ridge between."""
    shapes = pen.bend(outlines(rects))
    upright = rects[:, 3] - rects[:, 1] > rects[:, 2] - rects[:, 0]
    shapes[upright] = np.roll(shapes[upright], -1, axis=1)  # as in draw_gabled
    ridge = (shapes + shapes[:, ::-1]) / 2
    for share in np.arange(STEPS) / STEPS:
        heights = eaves + share * (ridges - eaves)
        pen.fill(shapes + share * (ridge - shapes), METRE * heights[:, None])


def _raise_trees(pen: Pen, crowns: np.ndarray) -> None:
    """Draw the heights of crowns: half-spheres on trunks as high as their radius."""
    for share in np.arange(STEPS, 0, -1) / STEPS:  # of the radius
        height = crowns[:, 2:] / pen.scale * (1 + np.sqrt(1 - share**2))
        pen.fill(outline_discs(crowns * [1, 1, share]), METRE * height)


def _off_buildings(crowns: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Leave out the crowns that touch a building."""
    points = np.clip(outline_discs(crowns), 0, len(classes) - 1).astype(int)
    touched = classes[points[..., 1], points[..., 0]] == CLASSES.index("building")
    return crowns[~touched.any(axis=1)]


def _shadows(heights: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Return where the sun does not shine, for (size, size) heights in metres."""
    pixels = heights * len(heights) / SPAN  # as high as their shadows are long
    reach = int(pixels.max()) + 1
    around = np.pad(pixels, reach)
    dark = np.zeros_like(around)  # up to which height there is no sun
    for distance in range(1, reach):
        x, y = np.rint(distance * light).astype(int)
        dark = np.maximum(dark, np.roll(around, (y, x), axis=(0, 1)) - distance)
    return (dark > around)[reach:-reach, reach:-reach]


def draw_pair(seed: int, split: str, index: int, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Draw one pair, which depends on nothing but the arguments.

    Args:
        seed: Non-negative number of the whole set.
        split: Name of the split, such as "train" or "val".
        index: Non-negative number of the pair within its split.
        size: Side of either picture in pixels, which spans 176 m.

    Returns:
        The aerial photo (size, size, 3) uint8, and the heights above ground in metres (size, size)
        float32: 0 to 25.5.
    """
    rng = random_of(seed, split, index)
    town, classes = plan_with_all_classes(rng, size)
    town = town._replace(light=np.array([0.0, -1.0]))
    photo, relief = Image.new("RGB", classes.shape, (94, 94, 98)), Image.new("L", classes.shape)
    pen, raising = Pen(photo, town), Pen(relief, town)
    rects = town.rects["building"]
    flat = rng.random(len(rects)) < town.lot / 25 - 0.8
    storeys = np.where(flat, rng.uniform(1, 8, len(rects)), rng.uniform(1, 3, len(rects)))
    eaves = STOREY * storeys
    ridges = eaves + np.where(flat, 0, rng.uniform(1.5, 4, len(rects)))
    crowns = _off_buildings(plant(pen, classes, rng), classes)
    _raise_roofs(raising, rects, eaves, ridges)
    _raise_trees(raising, crowns)
    heights = np.asarray(relief)[::OVERSAMPLE, ::OVERSAMPLE].astype(np.float32) / METRE

    tint = ROOFS[rng.integers(len(ROOFS), size=len(rects))] + rng.normal(0, 9, (len(rects), 1))
    draw_ground(pen, rng)
    draw_roads(pen, rng)
    draw_flat(pen, rects[flat], tint[flat], rng)
    draw_gabled(pen, rects[~flat], tint[~flat])
    draw_trees(pen, crowns, rng)
    shadow = (
        Image.fromarray(_shadows(heights, town.light)).convert("L").point(lambda dark: dark * 0.65)
    )
    photo.paste((18, 22, 34), mask=shadow.resize(photo.size))
    return expose(photo, rng), heights


def draw_heights(folder: Path, n_train: int, n_val: int, size: int = 256, seed: int = 0) -> None:
    """Draw the whole data set: folder/train/A/0001.png, folder/train/B/0001.tif and so on.

    A is the photo, B are the heights in metres as float32. The arguments are those of draw_towns.
    """

    def save(root: Path, split: str, index: int) -> None:
        photo, heights = draw_pair(seed, split, index, size)
        save_photo(photo, root / split / "A" / f"{index + 1:04d}.png")
        path = root / split / "B" / f"{index + 1:04d}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, heights, compression="zlib")

    draw_set(folder, n_train, n_val, save)
