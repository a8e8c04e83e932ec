"""What people say of a scene, from precise to vague, and which scenes answer such words.

A `Description` is what is meant, `word` puts it into a sentence, and `matches` decides whether a scene
answers it: so every vague query knows all its relevant images.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from playground.demo.catalogue import BROADER, CATEGORIES, SETTINGS, things
from playground.demo.scenes import Item, Scene

LEVELS = ("full", "medium", "two", "one", "vague")  # the comment numbers 0 to 4

_SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large")}
_COUNT_WORDS = {2: ("two", "two", "a pair of"), 3: ("three", "three", "several")}
_RELATION_WORDS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    None: ("next to", "beside", "near"),
}
_OPENINGS = ("", "", "", "", "", "a picture of ", "there is ", "we see ", "an image of ", "this is ")
_IRREGULAR = {
    "mouse": "mice", "goose": "geese", "sheep": "sheep", "fish": "fish", "deer": "deer", "bison": "bison",
    "moose": "moose", "squid": "squid", "shrimp": "shrimp", "man": "men", "woman": "women", "wolf": "wolves",
    "loaf": "loaves", "knife": "knives", "leaf": "leaves", "die": "dice", "dice": "dice", "box": "boxes",
    "person": "people", "pufferfish": "pufferfish", "spaghetti": "spaghetti", "dragonfly": "dragonflies",
}  # fmt: skip


@dataclass(frozen=True)
class Mention:
    """Something said to be in the picture."""

    category: str  # its category, or a broader one
    noun: str | None = None  # None when only the category is said
    count: int | None = None  # None when not said: "a dog" is true of a picture of two
    size: str | None = None  # "small", "big", or None when not said


@dataclass(frozen=True)
class Description:
    """What is said of a scene."""

    mentions: tuple[Mention, ...]  # the things said to be there
    relation: str | None = None  # of the first mention to the second: "left", "right", "above", "below"
    setting: str | None = None  # None when it is not said


def describe(scene: Scene, level: str, rng: random.Random) -> Description:
    """Chooses what a person would say of a scene.

    Args:
        scene: Matches what is returned.
        level: One of `LEVELS`.
        rng: Source of the choices.
    """
    items = list(scene.items)
    rng.shuffle(items)
    if level == "full":
        mentions = tuple(
            _mention(item, rng, says_size=0.6 if not place else 0.45) for place, item in enumerate(items)
        )
        return Description(mentions, _relation(items, rng), scene.setting)
    if level == "medium":
        setting = scene.setting if rng.random() < 0.4 else None
        return Description(tuple(_mention(item, rng, says_size=0.1) for item in items), None, setting)
    if level == "two":
        pair = items[:2]
        return Description(tuple(_mention(item, rng, says_size=0.2) for item in pair), _relation(pair, rng))
    if level == "one":
        return Description((_mention(items[0], rng, says_size=0.1),), None, scene.setting)
    return _vague(scene, items, rng)


def matches(scene: Scene, description: Description) -> bool:
    """Says whether a scene answers a description: every mention by another item, relation and setting too."""
    if description.setting is not None and scene.setting != description.setting:
        return False
    for items in itertools.permutations(scene.items, len(description.mentions)):
        if all(map(_answers, items, description.mentions)) and (
            description.relation is None or _direction(items[0], items[1]) == description.relation
        ):
            return True
    return False


def word(description: Description, rng: random.Random) -> str:
    """Puts a description into a sentence; synonyms and phrases are drawn from the catalogue."""
    phrases = [_noun_phrase(mention, rng) for mention in description.mentions]
    if len(phrases) > 1 and (description.relation or (rng.random() < 0.3 and len(phrases) == 2)):
        link = rng.choice(_RELATION_WORDS[description.relation])
        phrases[:2] = [f"{phrases[0]} {link} {phrases[1]}"]
    if len(phrases) == 1:
        text = phrases[0]
    else:
        text = ", ".join(phrases[:-1]) + rng.choice((" and ", " and ", " with ")) + phrases[-1]
    if description.setting is None:
        return rng.choice(_OPENINGS) + text
    setting = rng.choice(SETTINGS[description.setting][1])
    if rng.random() < 0.2:
        return f"{setting}, {text}"
    return rng.choice(_OPENINGS) + f"{text} {setting}"


def _mention(item: Item, rng: random.Random, says_size: float) -> Mention:
    size = item.size if item.size != "medium" and rng.random() < says_size else None
    return Mention(item.category, item.noun, item.count if item.count > 1 else None, size)


def _vague(scene: Scene, items: list[Item], rng: random.Random) -> Description:
    items.sort(key=lambda item: not CATEGORIES[item.category][1])  # those with a category name first
    first, rest = items[0], items[1:]
    if not CATEGORIES[first.category][1]:
        return Description((_mention(first, rng, says_size=0.0),))
    draw = rng.random()
    if rest and draw < 0.25:
        return Description((_category(first, rng), _mention(rest[0], rng, says_size=0.0)))
    if rest and draw < 0.45 and CATEGORIES[rest[0].category][1]:
        return Description((_category(first, rng), _category(rest[0], rng)), None, scene.setting)
    return Description((_category(first, rng),), None, scene.setting)


def _category(item: Item, rng: random.Random) -> Mention:
    broader = BROADER.get(item.category, item.category)
    return Mention(rng.choice((item.category, item.category, broader)))


def _relation(items: list[Item], rng: random.Random) -> str | None:
    if len(items) < 2 or rng.random() < 0.35:
        return None
    return _direction(items[0], items[1])


def _direction(first: Item, second: Item) -> str | None:
    """Where the first stands as seen from the second; None when copies or a diagonal make it unclear."""
    if first.count > 1 or second.count > 1:
        return None
    dx, dy = (a - b for a, b in zip(first.centre, second.centre, strict=True))
    if abs(dx) > 1.2 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) > 1.2 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def mentionable(item: Item) -> tuple[str, ...]:
    """Returns what a mention may call an item: its noun, its category, the broader one if there is one."""
    broader = BROADER.get(item.category)
    return (item.noun, item.category, *((broader,) if broader else ()))


def _answers(item: Item, mention: Mention) -> bool:
    return (
        mention.category in (item.category, BROADER.get(item.category))
        and mention.noun in (None, item.noun)
        and mention.count in (None, item.count)
        and mention.size in (None, item.size)
    )


def _noun_phrase(mention: Mention, rng: random.Random) -> str:
    if mention.noun is None:
        return rng.choice(CATEGORIES[mention.category][1])
    thing = things()[mention.noun]
    noun = rng.choice((thing.noun, thing.noun, *thing.synonyms))
    adjective = rng.choice(_SIZE_WORDS[mention.size]) + " " if mention.size else ""
    if thing.is_plural:
        return rng.choice(("some ", "")) + adjective + noun
    if mention.count:
        return f"{rng.choice(_COUNT_WORDS[mention.count])} {adjective}{plural(noun)}"
    return with_article(adjective + noun)


def with_article(noun: str) -> str:
    """Returns the noun with "a" or "an"."""
    sounds_like_consonant = noun.startswith(("uni", "ufo", "eu"))
    return ("an " if noun[0] in "aeiou" and not sounds_like_consonant else "a ") + noun


def plural(noun: str) -> str:
    """Returns the plural of a noun of the catalogue, such as "cups of coffee"."""
    head, of, rest = noun.partition(" of ")
    words = head.split(" ")
    place = 0 if words[-1].endswith("ing") and len(words) > 1 else -1  # "men dancing"
    words[place] = _plural_word(words[place])
    return " ".join(words) + of + rest


def _plural_word(noun: str) -> str:
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("man") and noun != "human":
        return noun[:-3] + "men"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    if noun.endswith(("s", "x", "ch", "sh")) or noun in ("potato", "tomato"):
        return noun + "es"
    return noun + "s"
