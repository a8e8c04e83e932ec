"""Deterministic scenes: which things stand where, in which setting. One integer seed makes one scene."""

from __future__ import annotations

import random
from dataclasses import dataclass

from playground.demo.catalogue import SETTINGS, thing_weights, things

GRID = 28  # cells along a side; all positions and sizes are in cells
CELLS = {"small": 7, "medium": 10, "big": 14}  # a thing's width and height
VARIANTS = 6  # drawings of each setting
MAX_PICTURES = 4  # things in a scene, copies counted


@dataclass(frozen=True)
class Item:
    """One kind of thing in a scene."""

    noun: str  # key into `catalogue.things`
    size: str  # key into `CELLS`
    is_mirrored: bool  # whether the pictures are flipped left to right
    corners: tuple[tuple[int, int], ...]  # (x, y) of the upper left cell of each copy

    @property
    def count(self) -> int:
        """How many copies there are."""
        return len(self.corners)

    @property
    def category(self) -> str:
        """The thing's category."""
        return things()[self.noun].category

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the middle of all copies, in cells, y downwards."""
        half = CELLS[self.size] / 2
        xs, ys = zip(*self.corners, strict=True)
        return sum(xs) / len(xs) + half, sum(ys) / len(ys) + half


@dataclass(frozen=True)
class Scene:
    """A setting, which of its drawings, and one to four kinds of things."""

    seed: int
    setting: str
    variant: int
    items: tuple[Item, ...]


def make_scene(seed: int) -> Scene:
    """Returns the scene of a seed; the same on every machine."""
    rng = random.Random(seed)
    nouns, weights = zip(*thing_weights().items(), strict=True)
    setting = rng.choices(list(SETTINGS), [weight for weight, _ in SETTINGS.values()])[0]
    variant = rng.randrange(VARIANTS)
    while True:
        kinds = rng.choices([1, 2, 3, 4], [1.5, 4, 3.2, 1.5])[0]
        chosen: list[str] = []
        while len(chosen) < kinds:
            noun = rng.choices(nouns, weights)[0]
            if noun not in chosen:
                chosen.append(noun)
        items = _place(chosen, rng)
        if items:
            return Scene(seed, setting, variant, items)


def _place(nouns: list[str], rng: random.Random) -> tuple[Item, ...]:
    """Gives each thing a size, a count and free places; empty when they do not fit."""
    taken: list[tuple[int, int, int]] = []
    items: list[Item] = []
    for noun in nouns:
        thing = things()[noun]
        room = MAX_PICTURES - len(taken) - (len(nouns) - 1 - len(items))
        single = thing.is_plural or thing.category == "sky"
        count = 1 if single else min(rng.choices([1, 2, 3], [8, 1.6, 0.8])[0], room)
        crowded = len(nouns) + count > 3
        size = rng.choices(list(CELLS), [4, 3, 0.3] if crowded else [2, 4, 2])[0]
        corners: list[tuple[int, int]] = []
        for _ in range(count):
            corner = _free_corner(thing.category, CELLS[size], taken, rng)
            if corner is None:
                return ()
            corners.append(corner)
            taken.append((*corner, CELLS[size]))
        items.append(Item(noun, size, rng.random() < 0.5, tuple(corners)))
    return tuple(items)


def _free_corner(
    category: str, cells: int, taken: list[tuple[int, int, int]], rng: random.Random
) -> tuple[int, int] | None:
    """Tries forty places: things of the sky high up, aircraft mostly so, all others on the ground."""
    low, high = 12 - cells // 2, GRID - cells
    if category == "sky":
        low, high = 0, max(0, 11 - cells)
    elif category == "aircraft" and rng.random() < 0.7:
        low, high = 0, max(0, 15 - cells)
    for _ in range(40):
        x, y = rng.randint(0, GRID - cells), rng.randint(min(low, high), high)
        slack = cells // 10  # neighbours may touch a little
        if all(
            x + cells - slack <= other_x
            or other_x + other - slack <= x
            or y + cells - slack <= other_y
            or other_y + other - slack <= y
            for other_x, other_y, other in taken
        ):
            return x, y
    return None
