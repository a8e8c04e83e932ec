"""What the demo scenes are made of: things (pictures from OpenMoji) and settings (drawn backgrounds)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Thing:
    """One kind of object."""

    code_point: str  # OpenMoji's file name without suffix, such as 1F436
    category: str  # one of `CATEGORIES`
    noun: str
    synonyms: tuple[str, ...]  # other names people use for it
    is_plural: bool  # whether the noun takes no article ("some grapes")


# How often a category is drawn, and what people call it when they are vague.
CATEGORIES: dict[str, tuple[float, tuple[str, ...]]] = {
    "animal": (10, ("an animal", "a creature")),
    "bird": (4, ("a bird",)),
    "sea animal": (3, ("a sea animal", "something that lives in the sea")),
    "insect": (2.5, ("an insect", "a bug")),
    "plant": (6, ("a plant",)),
    "fruit": (4, ("some fruit", "a fruit")),
    "vegetable": (3, ("a vegetable", "some vegetables")),
    "food": (5, ("some food", "food", "something to eat")),
    "dessert": (3, ("something sweet", "a dessert")),
    "drink": (3, ("a drink", "something to drink")),
    "vehicle": (6, ("a vehicle",)),
    "aircraft": (2, ("something that flies", "an aircraft")),
    "boat": (2, ("a boat",)),
    "building": (5, ("a building",)),
    "person": (9, ("a person", "somebody")),
    "athlete": (5, ("somebody doing sports", "an athlete")),
    "ball": (3, ("a ball",)),
    "instrument": (3, ("a musical instrument", "an instrument")),
    "furniture": (4, ("something from a house", "a household item")),
    "clothing": (4, ("something to wear", "a piece of clothing")),
    "tool": (4, ("a tool",)),
    "device": (4, ("a gadget", "an electronic device")),
    "toy": (3.5, ("a toy",)),
    "thing": (5, ()),  # nobody looks for "an object"
    "sky": (3, ("something in the sky",)),
}

# What is also called by a broader name: a picture of a bird answers "an animal".
BROADER = {
    "bird": "animal",
    "sea animal": "animal",
    "athlete": "person",
    "fruit": "food",
    "vegetable": "food",
    "dessert": "food",
}

# How often a setting is drawn, and the phrases for it.
SETTINGS: dict[str, tuple[float, tuple[str, ...]]] = {
    "beach": (3, ("on the beach", "at the beach", "by the sea", "on the sand")),
    "field": (3, ("in a field", "on the grass", "in a meadow")),
    "night": (2, ("at night", "under a night sky", "in the dark")),
    "snow": (2, ("in the snow", "on a snowy day", "in winter")),
    "room": (2.5, ("in a room", "indoors", "inside a house")),
    "desert": (1.5, ("in the desert", "on sand dunes")),
    "street": (2.5, ("on a street", "in the city", "in town")),
    "sea": (2, ("on the water", "at sea", "in the ocean")),
    "forest": (2, ("in a forest", "in the woods")),
    "sunset": (1.5, ("at sunset", "in the evening", "under an orange sky")),
    "pink": (1, ("on a pink background", "against pink")),
    "blue": (1, ("on a blue background", "against a light blue background")),
    "yellow": (1, ("on a yellow background", "against yellow")),
    "white": (1, ("on a white background", "against white")),
}


@cache
def things() -> dict[str, Thing]:
    """Returns all things by noun, in the order of ``objects.csv``."""
    path = Path(__file__).with_name("objects.csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            Thing(
                code_point=row["code_point"],
                category=row["category"],
                noun=row["noun"],
                synonyms=tuple(filter(None, row["synonyms"].split("/"))),
                is_plural=row["number"] == "plural",
            )
            for row in csv.DictReader(file)
        ]
    return {thing.noun: thing for thing in rows}


@cache
def thing_weights() -> dict[str, float]:
    """Returns how often each noun is drawn: by category, the first of a category somewhat more often."""
    weights: dict[str, float] = {}
    for category, (category_weight, _) in CATEGORIES.items():
        nouns = [thing.noun for thing in things().values() if thing.category == category]
        raw = [1 / (rank + 12) for rank in range(len(nouns))]
        for noun, weight in zip(nouns, raw, strict=True):
            weights[noun] = category_weight * weight / sum(raw)
    return weights
