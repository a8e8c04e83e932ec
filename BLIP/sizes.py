"""Sizes of a model: widths and depths from the shapes of its tensors, head counts from a JSON.

A head count leaves no trace in any shape, and a wrong one loads without complaint, so it is never guessed: it
comes from a JSON beside the weights, from the caller, or from the released models in ``configs/``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parent / "configs"
HOW_TO_GIVE = (
    'put a med_config.json beside the weights, or pass config={"num_attention_heads": TEXT_HEADS,'
    ' "vision": {"heads": VISION_HEADS}}'
)
_SHORT_VISION_KEYS = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_hidden": "intermediate_size",
}
_POSITIONS = "vision_model.embeddings.position_embedding"
_PATCHES = "vision_model.embeddings.patch_embedding.weight"
_VISION_LAYERS = "vision_model.encoder.layers."
_VISION_MLP = _VISION_LAYERS + "0.mlp.fc1.weight"


@dataclass(frozen=True)
class Sizes:
    """What the shapes tell.

    Attributes:
        vision_width: Width of the vision transformer; cross-attention reads the same width.
        vision_layers: Its depth.
        vision_mlp: Width inside its feed-forward blocks.
        patch: Side of a patch in pixels.
        grid: Patches along one side of the image.
        text_width: Width of the text transformer.
        text_layers: Its depth.
        text_mlp: Width inside its feed-forward blocks.
        vocabulary: Rows of the word embedding, [DEC] and [ENC] among them.
        positions: The most tokens a text can have.
        projection: Width of the joint embedding; None for a captioner.
    """

    vision_width: int
    vision_layers: int
    vision_mlp: int
    patch: int
    grid: int
    text_width: int
    text_layers: int
    text_mlp: int
    vocabulary: int
    positions: int
    projection: int | None


def anchors(text_prefix: str) -> dict[str, int]:
    """Returns the names (Hugging Face's) whose shapes `read_sizes` reads, with their number of axes."""
    return {
        _POSITIONS: 3,
        _PATCHES: 4,
        _VISION_MLP: 2,
        text_prefix + "embeddings.word_embeddings.weight": 2,
        text_prefix + "embeddings.position_embeddings.weight": 2,
        text_prefix + "encoder.layer.0.intermediate.dense.weight": 2,
    }


def read_sizes(shapes: Mapping[str, tuple[int, ...]], text_prefix: str) -> Sizes:
    """Reads the sizes off the shapes.

    Args:
        shapes: Shapes by Hugging Face names; holds all `anchors`, with their number of axes.
        text_prefix: ``text_encoder.`` or ``text_decoder.bert.``.

    Raises:
        ValueError: If the image positions do not form a class token and a square grid.
    """
    positions = shapes[_POSITIONS][1]
    grid = math.isqrt(max(positions - 1, 0))
    if grid < 1 or grid * grid != positions - 1:
        raise ValueError(f"{positions} image positions are not one class token and a square grid of patches")
    words = shapes[text_prefix + "embeddings.word_embeddings.weight"]
    projection = shapes.get("vision_proj.weight")
    return Sizes(
        vision_width=shapes[_POSITIONS][2],
        vision_layers=_depth(shapes, _VISION_LAYERS),
        vision_mlp=shapes[_VISION_MLP][0],
        patch=shapes[_PATCHES][3],
        grid=grid,
        text_width=words[1],
        text_layers=_depth(shapes, text_prefix + "encoder.layer."),
        text_mlp=shapes[text_prefix + "encoder.layer.0.intermediate.dense.weight"][0],
        vocabulary=words[0],
        positions=shapes[text_prefix + "embeddings.position_embeddings.weight"][0],
        projection=projection[0] if projection else None,
    )


@dataclass(frozen=True)
class Settings:
    """What a JSON states about a model, in Hugging Face's key names.

    Attributes:
        text: Of the text transformer.
        vision: Of the vision transformer.
        prompt: What captions begin with, or None when the JSON does not say.
    """

    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    prompt: str | None = None


def read_settings(config: Mapping[str, Any] | Path | str | None, weights: Path) -> Settings:
    """Reads the settings given, or else those in a JSON beside the weights.

    Args:
        config: A mapping or the path of a JSON file: a text configuration (``med_config.json``), to which a
            ``"vision": {"heads": ...}`` may be added, or a transformers ``BlipConfig``. None looks beside the
            weights for ``config.json``, then for a single ``*med_config*.json``.
        weights: The weights file.

    Returns:
        What is stated; empty when there is no JSON.

    Raises:
        FileNotFoundError: If the file named is not there.
        ValueError: If it is not a JSON object.
    """
    if config is None:
        beside = [weights.parent / "config.json", *sorted(weights.parent.glob("*med_config*.json"))]
        config = next((file for file in beside if file.is_file()), {})
    if not isinstance(config, Mapping):
        config = _read_json(Path(config))
    text = config.get("text_config") or config.get("text") or config
    vision = config.get("vision_config") or config.get("vision") or {}
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        raise ValueError("the text and vision settings in a model configuration must be JSON objects")
    vision = {_SHORT_VISION_KEYS.get(str(key), str(key)): value for key, value in vision.items()}
    return Settings(text, vision, config.get("prompt"))


def head_counts(sizes: Sizes, settings: Settings, source: Path) -> tuple[int, int]:
    """Settles the head counts, and checks that the settings are of this model.

    Args:
        sizes: From the weights.
        settings: From `read_settings`.
        source: The weights file, for messages.

    Returns:
        Heads of the vision transformer, heads of the text transformer.

    Raises:
        ValueError: If a head count is unknown or does not divide the width, or if the settings state another
            width or depth than the weights have.
    """
    has = {
        "vision": (sizes.vision_width, sizes.vision_layers, sizes.vision_mlp),
        "text": (sizes.text_width, sizes.text_layers, sizes.text_mlp),
    }
    heads = {}
    for part, stated in (("vision", settings.vision), ("text", settings.text)):
        for key, found in zip(
            ("hidden_size", "num_hidden_layers", "intermediate_size"), has[part], strict=True
        ):
            if stated.get(key, found) != found:
                raise ValueError(
                    f"{source}: its {part} transformer has {key} {found}, its configuration says"
                    f" {stated[key]}: the configuration is of another model; {HOW_TO_GIVE}"
                )
        width = has[part][0]
        count = stated.get("num_attention_heads", _released_heads(part, width))
        if count is None:
            raise ValueError(
                f"{source}: the head count of its {part} transformer (width {width}) is not in the file and"
                f" no released model has this width: {HOW_TO_GIVE}"
            )
        if not isinstance(count, int) or isinstance(count, bool) or count < 1 or width % count:
            raise ValueError(
                f"{source}: {count!r} heads do not divide the {part} width {width}: {HOW_TO_GIVE}"
            )
        heads[part] = count
    return heads["vision"], heads["text"]


def _released_heads(part: str, width: int) -> int | None:
    """Head count of the released models whose vision or text transformer is this wide."""
    for file in sorted(CONFIGS.glob("*.json")):
        released = read_settings(file, file)
        stated = released.vision if part == "vision" else released.text
        if stated["hidden_size"] == width:
            return stated["num_attention_heads"]
    return None


def _depth(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    numbers = [re.match(r"\d+", name[len(prefix) :]) for name in shapes if name.startswith(prefix)]
    return 1 + max(int(number.group()) for number in numbers if number)


def _read_json(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"no model configuration at {file}: {HOW_TO_GIVE}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): {HOW_TO_GIVE}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a JSON {type(content).__name__}, expected an object: {HOW_TO_GIVE}")
    return content
