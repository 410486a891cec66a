"""Towns, the built-in sample data set: drawn pairs of an aerial photo (A) and its street map (B).

The map holds the pure colours of palettes.TOWNS. The photo of the same plan adds what no map can
tell: the crowns of trees, the colours of roofs, cars, shadows and grain.
"""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from machine.disk import whole_folder
from machine.progress import progress
from pictures.palettes import TOWNS
from samples.plan import Pen, Town, draw_classes, outlines, plan_town

N_TRAIN, N_VAL = 400, 40  # pairs of the set that train.py draws

OVERSAMPLE = 2  # pictures are drawn so much larger and shrunk, to smooth the photo's edges
MIN_SHARE, MAX_SHARE = 0.02, 0.45  # of a class in a picture: no slivers, and none fills it
WHITE, GREY, DARK, RED = (216, 214, 209), (146, 142, 136), (92, 90, 94), (132, 60, 52)
BLUE, BRICK, BROWN, SAND = (82, 102, 122), (150, 78, 60), (122, 86, 70), (170, 150, 124)
ROOFS = np.array([WHITE, GREY, DARK, RED, BLUE, BRICK, BROWN, SAND])
CARS = np.array([WHITE, WHITE, GREY, (40, 42, 46), (150, 40, 38), (52, 76, 130)])


def _beads(road: np.ndarray, offset: float, width: float, length: float, gap: float) -> np.ndarray:
    """Small rectangles in a row along a rectangle, dashes or cars, offset from its middle."""
    along = int(road[3] - road[1] > road[2] - road[0])
    start = np.arange(road[along] + gap, road[along + 2] - length - gap, length + gap)
    side = np.full(len(start), (road[1 - along] + road[3 - along]) / 2 + offset - width / 2)
    rects = np.stack([start, side, start + length, side + width], axis=-1)
    return rects[:, [1, 0, 3, 2]] if along else rects


def draw_ground(pen: Pen, rng: np.random.Generator) -> None:
    """Pavements, yards, lawns with paths, and water between its banks."""
    rects = pen.town.rects
    grass = np.array([92, 108, 66]) + rng.normal(0, 7, 3)
    garden = grass + np.array([26, 16, 8])  # mown and dry, as parks under their trees are not
    paved = np.array([150, 143, 128]) + rng.normal(0, 9) + rng.normal(0, 3, 3)
    for name, colour in (("block", paved), ("park", grass)):
        pen.rects(rects[name], (158, 154, 146), 1.2, 6)  # pavement
        pen.rects(rects[name], colour, 0, 6)
    green = rng.random((len(rects["lot"]), 1)) < 1.7 - pen.town.lot / 34
    pen.rects(rects["lot"], np.where(green, garden, paved) + rng.normal(0, 9, green.shape), -0.4, 3)
    for park in rects["park"]:
        pen.rects(_beads(park, rng.uniform(-12, 12), 2.6, 8, 0), (168, 156, 130))  # path
    for shore in pen.town.shores:
        points = pen.bend(shore)
        pen.draw.line([*map(tuple, points[0].tolist())], fill=(150, 140, 116), width=6)
        pen.fill(points, np.array([44, 66, 78]) + rng.normal(0, 8, 3))


def draw_roads(pen: Pen, rng: np.random.Generator) -> None:
    """Arterials, lane markings and cars."""
    arterials, streets = pen.town.rects["arterial"], pen.town.rects["street"]
    pen.rects(arterials, (170, 166, 158), 0, 40)
    pen.rects(arterials, (90, 90, 93), -1.2, 40)
    yellow = [_beads(road, 0, 1, 6, 0) for road in arterials]
    white = [_beads(road, 0, 0.7, 3, 4) for road in streets]
    white += [_beads(road, lane, 0.7, 4, 4) for road in arterials for lane in (-4.2, 4.2)]
    cars = [_beads(road, lane, 2.4, 5, 1.5) for road in streets for lane in (-3.3, 3.3)]
    lanes = (-6.2, -2.2, 2.2, 6.2)
    cars += [_beads(road, lane, 2.6, 5.6, 3.5) for road in arterials for lane in lanes]
    pen.rects(np.concatenate(yellow), (196, 168, 84))
    pen.rects(np.concatenate(white), (180, 180, 174))
    rects = np.concatenate(cars)
    rects = rects[rng.random(len(rects)) < rng.uniform(0.1, 0.25)]
    colours = CARS[rng.integers(len(CARS), size=len(rects))]
    pen.rects(rects + 0.5, (62, 62, 66), 0.3)  # shadow
    pen.rects(rects, colours)
    pen.rects(rects, colours * 0.7, -0.8)  # windows


def draw_flat(pen: Pen, rects: np.ndarray, tint: np.ndarray, rng: np.random.Generator) -> None:
    """Flat roofs with a parapet and machines that cast shadows."""
    pen.rects(rects, tint * 1.12)
    pen.rects(rects, tint * 0.94, -1)
    for _ in range(3):
        low = rects[:, :2] + (rects[:, 2:] - rects[:, :2]) * rng.uniform(0.15, 0.7, (len(rects), 2))
        boxes = np.concatenate([low, low + rng.uniform(1.5, 5, low.shape)], axis=1)
        shapes = pen.bend(outlines(boxes))
        pen.fill(shapes + pen.town.light * pen.scale, tint * 0.55)
        pen.fill(shapes, tint * rng.uniform(0.9, 1.25, (len(boxes), 1)))


def draw_gabled(pen: Pen, rects: np.ndarray, tint: np.ndarray) -> None:
    """Roofs of two slopes about a ridge, one lit and one dim."""
    shapes = pen.bend(outlines(rects))
    upright = rects[:, 3] - rects[:, 1] > rects[:, 2] - rects[:, 0]
    shapes[upright] = np.roll(shapes[upright], -1, axis=1)  # the ridge runs the longer way
    a, b, c, d = shapes.transpose(1, 0, 2)
    facing = (a - d) @ pen.town.light[:, None] / np.linalg.norm(a - d, axis=-1, keepdims=True)
    ridge = (b + c) / 2, (a + d) / 2
    pen.fill(np.stack([a, b, *ridge], axis=1), tint * (1 - 0.25 * facing))
    pen.fill(np.stack([d, c, *ridge], axis=1), tint * (1 + 0.25 * facing))


def outline_discs(discs: np.ndarray, shift: np.ndarray | float = 0.0) -> np.ndarray:
    """Outline discs (n, 3), x, y and radius, moved by shift: (n, points, 2)."""
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return (discs[:, :2] + shift)[:, None] + discs[:, 2:, None] * circle


def plant(pen: Pen, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose where crowns stand, (n, 3): x, y and radius in canvas pixels."""
    # In the order of CLASSES. Over streets and roofs a crown hides what the map shows.
    chance = np.array([8 / pen.town.lot - 0.1, 0.02, 0.07, 0.02, 0.9, 0])
    spots = rng.integers(0, len(classes), (900, 2))
    y, x = spots.T
    thicket = np.clip(0.8 + 0.7 * _noise(rng, 64, 12)[..., 0], 0.1, 1)  # 64: coarse is enough
    thicket = thicket[y * 64 // len(classes), x * 64 // len(classes)]
    spots = spots[rng.random(len(spots)) < chance[classes[y, x]] * thicket]
    return np.column_stack([spots[:, ::-1], rng.uniform(2.5, 6, len(spots)) * pen.scale])


def draw_trees(pen: Pen, crowns: np.ndarray, rng: np.random.Generator) -> None:
    """Crowns as heaps of leaves, brighter to the sun."""
    tone = np.array([60, 80, 44]) + rng.normal(0, [9, 9, 6], (len(crowns), 3))
    pen.fill(outline_discs(crowns), tone * 0.72)
    for _ in range(5):
        away = rng.normal(0, 0.4, (len(crowns), 2))
        light = 0.95 - 0.35 * away @ pen.town.light[:, None]
        leaves = crowns * [1, 1, rng.uniform(0.3, 0.55)]
        pen.fill(outline_discs(leaves, away * crowns[:, 2:]), tone * light)


def _draw_photo(town: Town, classes: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Draw the ground, then shadows over it, then what casts them."""
    photo, shadow = Image.new("RGB", classes.shape, (94, 94, 98)), Image.new("L", classes.shape)
    pen, shade = Pen(photo, town), Pen(shadow, town)
    draw_ground(pen, rng)
    draw_roads(pen, rng)
    crowns, buildings = plant(pen, classes, rng), town.rects["building"]
    reach = town.light * rng.uniform(2.5, 6) * pen.scale
    for share in (0.5, 1):
        shade.fill(pen.bend(outlines(buildings)) + share * reach, 135)
    shade.fill(outline_discs(crowns, 0.7 * reach), 125)
    photo.paste((18, 22, 34), mask=shadow)
    tint = ROOFS[rng.integers(len(ROOFS), size=len(buildings))]
    tint = tint + rng.normal(0, 9, (len(buildings), 1))
    flat = rng.random(len(buildings)) < pen.town.lot / 25 - 0.8
    draw_flat(pen, buildings[flat], tint[flat], rng)
    draw_gabled(pen, buildings[~flat], tint[~flat])
    draw_trees(pen, crowns, rng)
    return photo


def _noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise with so many blobs across, (size, size, 1), mostly within -1 to 1."""
    small = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))[..., None]


def expose(photo: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Shrink the photo and give it textures, haze, a tint and sensor noise."""
    pixels = np.asarray(photo.reduce(OVERSAMPLE), dtype=np.float32)
    # Leaves are rougher than anything built, and green tells where they are.
    leafy = np.clip(pixels[..., 1:2] - pixels[..., ::2].max(axis=-1, keepdims=True), 0, 16) / 16
    coarse, middle, fine = (_noise(rng, len(pixels), cells) for cells in (11, 50, 128))
    texture = 0.05 * coarse + 0.03 * middle + (0.02 + 0.11 * leafy) * fine
    gain = rng.uniform(0.95, 1.35) * (1 + rng.normal(0, 0.03, 3))
    haze = rng.uniform(0, 0.16)
    pixels = pixels * (1 + texture) * gain.astype(np.float32) * (1 - haze)
    pixels += haze * np.array([178, 188, 198], dtype=np.float32)
    grain = rng.standard_normal(pixels.shape, dtype=np.float32)
    pixels += rng.uniform(2, 5) * grain
    return np.clip(pixels, 0, 255).astype(np.uint8)


def draw_pair(seed: int, split: str, index: int, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Draw one pair, which depends on nothing but the arguments.

    Args:
        seed: Non-negative number of the whole set.
        split: Name of the split, such as "train" or "val".
        index: Non-negative number of the pair within its split.
        size: Side of either picture in pixels.

    Returns:
        The aerial photo and the street map, both (size, size, 3) uint8; every map pixel is
        exactly one of the colours of palettes.TOWNS.
    """
    rng = random_of(seed, split, index)
    town, classes = plan_with_all_classes(rng, size)
    aerial = expose(_draw_photo(town, classes, rng), rng)
    return aerial, np.array([*TOWNS.values()], dtype=np.uint8)[classes[::OVERSAMPLE, ::OVERSAMPLE]]


def random_of(seed: int, split: str, index: int) -> np.random.Generator:
    """Return the source of all randomness of one pair."""
    # The checksum turns the name into a number that is the same on every machine.
    return np.random.default_rng([seed, zlib.crc32(split.encode()), index])


def plan_with_all_classes(rng: np.random.Generator, size: int) -> tuple[Town, np.ndarray]:
    """Plan a town that shows some of each class; with its classes, OVERSAMPLE times as large."""
    while True:
        town = plan_town(rng)
        large = draw_classes(town, size * OVERSAMPLE)
        classes = large[::OVERSAMPLE, ::OVERSAMPLE]
        shares = np.bincount(classes.ravel()) / classes.size
        if shares[shares > 0].min() >= MIN_SHARE and shares.max() <= MAX_SHARE:
            return town, large


def draw_towns(folder: Path, n_train: int, n_val: int, size: int = 256, seed: int = 0) -> None:
    """Draw the whole data set: folder/train/0001.png ... and folder/val/0001.png ...

    Each file holds the photo on the left and the map on the right.

    Args:
        folder: Where the set goes; it must not exist yet.
        n_train: How many training pairs.
        n_val: How many validation pairs.
        size: Side of either half in pixels.
        seed: Non-negative number of the set.

    Raises:
        FileExistsError: If the folder already exists.
    """

    def save(root: Path, split: str, index: int) -> None:
        pair = np.concatenate(draw_pair(seed, split, index, size), axis=1)
        save_photo(pair, root / split / f"{index + 1:04d}.png")

    draw_set(folder, n_train, n_val, save)


def save_photo(pixels: np.ndarray, path: Path) -> None:
    """Save pixels (height, width, 3) as PNG, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Noise hardly shrinks, so strong compression would only cost time.
    Image.fromarray(pixels).save(path, compress_level=1)


def draw_set(
    folder: Path, n_train: int, n_val: int, save: Callable[[Path, str, int], None]
) -> None:
    """Draw a data set beside its folder and rename it when whole: a stopped draw leaves nothing.

    If another process finishes the same folder first, its set is kept.

    Args:
        folder: Where the set goes; it must not exist yet.
        n_train: How many training pairs.
        n_val: How many validation pairs.
        save: Draws and saves a pair, told the folder, the name of the split and the pair's index.

    Raises:
        FileExistsError: If the folder already exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} already exists: remove it to draw it anew")
    jobs = [("train", i) for i in range(n_train)] + [("val", i) for i in range(n_val)]
    with whole_folder(folder) as unfinished:
        for split, index in progress(jobs, desc=f"Drawing {folder.name}", unit="pair"):
            save(unfinished, split, index)
