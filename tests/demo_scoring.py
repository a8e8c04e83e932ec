"""Which things a caption names, and how right that is for a scene."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from playground.demo.catalogue import SETTINGS, things
from playground.demo.scenes import make_scene
from playground.demo.wording import plural


def object_scores(captions: Sequence[str], seeds: Sequence[int]) -> dict[str, float]:
    """Compares the things that captions name with those in their scenes (seeds), over all scenes together.

    "setting accuracy" is among the captions that name a setting.
    """
    named = there = right = settings_named = settings_right = 0
    for caption, seed in zip(captions, seeds, strict=True):
        scene = make_scene(seed)
        nouns, setting = read_caption(caption)
        truth = {item.noun for item in scene.items}
        named, there, right = named + len(nouns), there + len(truth), right + len(nouns & truth)
        settings_named += setting is not None
        settings_right += setting == scene.setting
    return {
        "object precision": right / named if named else 0.0,
        "object recall": right / there if there else 0.0,
        "setting accuracy": settings_right / settings_named if settings_named else 0.0,
    }


def read_caption(caption: str) -> tuple[set[str], str | None]:
    """Returns the nouns (by their main name) and the setting that a caption names; longest names win."""
    setting = None
    for phrase, name in sorted(_settings().items(), key=lambda pair: -len(pair[0])):
        if phrase in caption:
            caption, setting = caption.replace(phrase, " "), name
            break
    return {_names()[match] for match in _pattern().findall(caption)}, setting


@cache
def _names() -> dict[str, str]:
    names: dict[str, str] = {}
    for thing in things().values():
        for name in (thing.noun, *thing.synonyms):
            names.setdefault(name, thing.noun)
            names.setdefault(plural(name), thing.noun)
    return names


@cache
def _settings() -> dict[str, str]:
    return {phrase: name for name, (_, phrases) in SETTINGS.items() for phrase in phrases}


@cache
def _pattern() -> re.Pattern[str]:
    longest_first = sorted(_names(), key=len, reverse=True)
    return re.compile(r"\b(" + "|".join(map(re.escape, longest_first)) + r")\b")
