"""Plans of made-up towns and their street maps.

A town is planned in flat plan coordinates, where every street, block and building is an upright
rectangle (left, top, right, bottom), and then bent and turned into the picture. So one simple
plan gives straight grids as well as winding quarters, and photo and map agree exactly.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from pictures.palettes import TOWNS

SPAN = 176  # lengths are in plan units, and so many of them span the picture at any size
REACH = 200  # half the side of the plan, whose turned and bent edge must stay out of sight
CLASSES = list(TOWNS)


class Town(NamedTuple):
    """A planned town."""

    rects: dict[str, np.ndarray]  # (n, 4) in plan coordinates, of the classes and of lots
    shores: list[np.ndarray]  # outlines of water in plan coordinates, each (1, points, 2)
    lot: float  # usual side of a lot; small ones hold houses in gardens, large ones halls
    turn: float  # rotation of the plan, radians
    waves: np.ndarray  # (3, 2): swing, wave length and phase along either axis
    light: np.ndarray  # (2,) unit vector pointing away from the sun


class Pen:
    """Draws a town's plan shapes onto an image, bent, in canvas pixels."""

    def __init__(self, image: Image.Image, town: Town) -> None:
        self.draw, self.town, self.scale = ImageDraw.Draw(image), town, image.width / SPAN

    def bend(self, points: np.ndarray) -> np.ndarray:
        """Carry plan points (..., 2) to canvas pixels."""
        swing, length, phase = self.town.waves
        bent = points + swing * np.sin(points[..., ::-1] / length + phase)
        cos, sin = np.cos(self.town.turn), np.sin(self.town.turn)
        return (bent @ np.array([[cos, sin], [-sin, cos]]) + SPAN / 2) * self.scale

    def fill(self, shapes: np.ndarray, colours: object) -> None:
        """Fill polygons (n, points, 2) in one colour, or each in its row of colours."""
        # Much of the plan lies out of sight: draw what has a corner in the picture or near it.
        low, high = -SPAN / 8 * self.scale, SPAN * 9 / 8 * self.scale
        seen = ((shapes > low) & (shapes < high)).all(axis=-1).any(axis=1)
        fills = np.broadcast_to(np.clip(colours, 0, 255), (len(shapes), *np.shape(colours)[-1:]))
        shapes, fills = shapes[seen].reshape(-1, 2 * shapes.shape[1]), fills[seen].astype(int)
        for points, fill in zip(shapes.tolist(), fills.tolist(), strict=True):
            self.draw.polygon(points, fill=fill if isinstance(fill, int) else tuple(fill))

    def rects(self, rects: np.ndarray, colours: object, grow: float = 0, steps: int = 1) -> None:
        """Fill plan rectangles (n, 4), grown on all sides, with so many points a side."""
        self.fill(self.bend(outlines(rects, grow, steps)), colours)


def outlines(rects: np.ndarray, grow: float = 0.0, steps: int = 1) -> np.ndarray:
    """Walk round rectangles (n, 4) with so many points a side: (n, 4 * steps, 2)."""
    left, top, right, bottom = (rects + grow * np.array([-1, -1, 1, 1])).T[..., None]
    there, stay = np.arange(steps) / steps, np.zeros(steps)
    share_u = np.concatenate([there, stay + 1, 1 - there, stay])
    share_v = np.concatenate([stay, there, stay + 1, 1 - there])
    return np.stack([left + (right - left) * share_u, top + (bottom - top) * share_v], axis=-1)


def _blocks_of(rect: np.ndarray, side: float, rng: np.random.Generator, streets: list) -> list:
    """Cut a rectangle into blocks of about the given side by streets, which are noted."""
    axis = int(rect[3] - rect[1] > rect[2] - rect[0])
    length = rect[axis + 2] - rect[axis]
    if length < side * rng.uniform(1.35, 1.85):
        return [rect]
    cut = rect[axis] + length * rng.uniform(0.4, 0.6)
    half = rng.uniform(5, 6.3)  # at least 9 wide, to be seen at half size
    street, first, second = rect.copy(), rect.copy(), rect.copy()
    first[axis + 2] = street[axis] = cut - half
    second[axis] = street[axis + 2] = cut + half
    streets.append(street)
    return _blocks_of(first, side, rng, streets) + _blocks_of(second, side, rng, streets)


def _shore(rect: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a wavering, rounded line within a rectangle (4,): (1, points, 2)."""
    line = outlines(rect[None], -7, steps=40)
    lap = np.linspace(0, 2 * np.pi, line.shape[1], endpoint=False)[:, None]
    for waves in (3, 8, 13):  # whole numbers of waves close the line
        line = line + rng.uniform(1, 3) * np.sin(waves * lap + rng.uniform(0, 6, 2))
    return np.mean([np.roll(line, shift, axis=1) for shift in range(-9, 10, 3)], axis=0)


def _build(blocks: list, lot: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cut blocks into lots (n, 4) and place buildings (m, 4), some with a wing."""
    gap = rng.uniform(2, lot / 5)  # the same in all the town: closed rows or free-standing houses
    lots = []
    for left, top, right, bottom in blocks:
        side = lot * rng.uniform(0.8, 1.25, 2)
        us = np.linspace(left, right, 1 + max(1, round((right - left) / side[0])))
        vs = np.linspace(top, bottom, 1 + max(1, round((bottom - top) / side[1])))
        lots += [(u[0], v[0], u[1], v[1]) for u in pairwise(us) for v in pairwise(vs)]
    lots = np.array(lots)
    buildings = lots + gap * rng.uniform(0.5, 1.5, lots.shape) * [1, 1, -1, -1]
    buildings = buildings[rng.random(len(lots)) < 0.9]  # the other lots are yards
    width, height = (buildings[:, 2:] - buildings[:, :2]).T
    winged = (height > 22) & (rng.random(len(buildings)) < 0.35)
    hall, wing = buildings[winged], buildings[winged]
    hall[:, 3] = wing[:, 1] = hall[:, 1] + height[winged] / 2
    wing[:, 2] -= width[winged] * rng.uniform(0.1, 0.5, len(wing))
    return lots, np.concatenate([buildings[~winged], hall, wing])


def plan_town(rng: np.random.Generator) -> Town:
    """Plan a town at random: arterials and water first, streets and blocks between them."""
    lot = rng.choice([25, 29, 34, 40, 48])
    side, bend = max(rng.uniform(62, 84), 1.8 * lot), rng.choice([0, 8, 16, 24])
    water = rng.choice(["river", "coast", "pond", "none"], p=[0.35, 0.2, 0.35, 0.1])
    row, column = rng.uniform(-50, 50, 2)
    half, quay = rng.uniform(8.5, 11), rng.uniform(9.5, 12)  # of an arterial; of a shore street
    low, high = column - rng.uniform(28, 42), column + rng.uniform(28, 42)
    high = REACH + 40 if water == "coast" else high
    arterials, streets, strips = [(-REACH, row - half, REACH, row + half)], [], []
    if water in ("river", "coast"):
        strips.append(np.array([low, -REACH, high, REACH]))
        streets += [(low - quay, -REACH, low, REACH), (high, -REACH, high + quay, REACH)]
    else:
        low, high, quay = column, column, half
        arterials.append((column - half, -REACH, column + half, REACH))
    plots = []
    for left, right in ((-REACH, low - quay), (high + quay, max(high + quay, REACH))):
        for top, bottom in ((-REACH, row - half), (row + half, REACH)):
            plots += _blocks_of(np.array([left, top, right, bottom]), side, rng, streets)
    parks, blocks = [], []
    for plot in plots:
        (parks if rng.random() < 0.16 else blocks).append(plot)
    lots, buildings = _build(blocks, lot, rng)
    shores = [_shore(strip, rng) for strip in strips]
    if water == "pond" and parks:  # in the park nearest to the middle
        shores = [_shore(min(parks, key=lambda park: abs(park[:2] + park[2:]).sum()), rng)]
    (parks if rng.random() < 0.6 else blocks).extend(strips)
    rects = {"block": blocks, "park": parks, "street": streets, "arterial": arterials}
    rects = {name: np.array(rows, dtype=float).reshape(-1, 4) for name, rows in rects.items()}
    waves = np.array([bend * rng.uniform(-1, 1, 2), rng.uniform(45, 75, 2), rng.uniform(0, 6, 2)])
    turn, sun = rng.uniform(0, 2 * np.pi, 2)
    light = np.array([np.cos(sun), np.sin(sun)])
    return Town(rects | {"lot": lots, "building": buildings}, shores, lot, turn, waves, light)


def draw_classes(town: Town, canvas: int) -> np.ndarray:
    """Draw the map as class numbers, (canvas, canvas) uint8."""
    image = Image.new("L", (canvas, canvas), CLASSES.index("street"))
    pen = Pen(image, town)
    for name, steps in (("block", 6), ("park", 6), ("building", 1)):
        pen.rects(town.rects[name], CLASSES.index(name), 0, steps)
    for shore in town.shores:
        pen.fill(pen.bend(shore), CLASSES.index("water"))
    pen.rects(town.rects["arterial"], CLASSES.index("arterial"), 0, 40)
    return np.asarray(image)
