"""Sizes of a model: widths and depths from the shapes of its tensors, head counts from a JSON.

A head count leaves no trace in any shape, and a wrong one loads without complaint, so it is never guessed: it
comes from a JSON beside the weights, or from what the released models have at that width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from files import read_json

if TYPE_CHECKING:
    from transformers import BlipConfig

    from BLIP.tokenizer import Tokenizer

VISION_EPSILON = 1e-6  # of the released models; transformers' default is 1e-5
TEXT_EPSILON = 1e-12
# Heads by width of salesforce/BLIP's models: base, large (whose text transformer is the base one's).
RELEASED_HEADS = {"vision": {768: 12, 1024: 16}, "text": {768: 12}}
LABEL_SMOOTHING = 0.1  # of the caption loss; transformers reads it from the text configuration only
HOW_TO_GIVE = (
    'put a config.json beside the weights that holds {"num_attention_heads": TEXT_HEADS,'
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
    """Everything that decides the shape of a model.

    ``mlp`` is the width inside a feed-forward block, ``patch`` and ``image_size`` are sides in pixels,
    ``vocabulary`` counts [DEC] and [ENC], ``positions`` is the longest text in tokens, ``projection`` the
    width of the joint space (None for a captioner). Cross-attention reads states of the vision width.
    """

    vision_width: int
    vision_layers: int
    vision_mlp: int
    vision_heads: int
    patch: int
    image_size: int
    text_width: int
    text_layers: int
    text_mlp: int
    text_heads: int
    vocabulary: int
    positions: int
    projection: int | None

    @property
    def grid(self) -> int:
        """Patches along one side of an image."""
        return self.image_size // self.patch

    def configuration(self, tokenizer: Tokenizer | None = None) -> BlipConfig:
        """Returns the transformers configuration, with everything set that its defaults get wrong for BLIP.

        The tokenizer supplies the special ids; without it only [DEC], the last but one, is known.
        """
        from transformers import BlipConfig

        ids = {"bos_token_id": self.vocabulary - 2}
        if tokenizer is not None:
            ids = {
                "bos_token_id": tokenizer.dec_id,
                "pad_token_id": tokenizer.pad_id,
                "sep_token_id": tokenizer.sep_id,
                "eos_token_id": tokenizer.sep_id,
            }
        text = ids | {
            "vocab_size": self.vocabulary,
            "hidden_size": self.text_width,
            "encoder_hidden_size": self.vision_width,
            "num_hidden_layers": self.text_layers,
            "num_attention_heads": self.text_heads,
            "intermediate_size": self.text_mlp,
            "max_position_embeddings": self.positions,
            "layer_norm_eps": TEXT_EPSILON,
            "is_decoder": True,  # builds the cross-attention; text mode stays bidirectional all the same
            "label_smoothing": LABEL_SMOOTHING,
        }
        vision = {
            "hidden_size": self.vision_width,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.vision_heads,
            "intermediate_size": self.vision_mlp,
            "patch_size": self.patch,
            "image_size": self.image_size,
            "hidden_act": "gelu",
            "layer_norm_eps": VISION_EPSILON,
            "initializer_range": 0.02,
        }
        config = BlipConfig(text_config=text, vision_config=vision)
        if self.projection is not None:
            config.image_text_hidden_size = self.projection
        return config


def anchors(text_prefix: str) -> dict[str, int]:
    """Returns the tensors (Hugging Face names) whose shapes `read_sizes` reads, with their number of axes."""
    return {
        _POSITIONS: 3,
        _PATCHES: 4,
        _VISION_MLP: 2,
        text_prefix + "embeddings.word_embeddings.weight": 2,
        text_prefix + "embeddings.position_embeddings.weight": 2,
        text_prefix + "encoder.layer.0.intermediate.dense.weight": 2,
    }


@dataclass(frozen=True)
class Stated:
    """What a JSON says about the text and the vision transformer, in Hugging Face's key names.

    `prompt` is what captions begin with, or None if the JSON does not say.
    """

    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    prompt: str | None = None


def read_stated(weights: Path) -> Stated:
    """Reads the configuration beside the weights: ``config.json``, else ``*med_config*.json``, else nothing.

    It is a text configuration (as ``med_config.json``), to which a ``"vision": {"heads": ...}`` may be added,
    or a transformers ``BlipConfig``. ValueError if it is no JSON object, or its activation is not BLIP's.
    """
    config: Mapping[str, Any] = {}
    for file in (weights.parent / "config.json", *sorted(weights.parent.glob("*med_config*.json"))):
        if file.is_file():
            try:
                config = read_json(file)
            except ValueError as error:
                raise ValueError(f"{error}: {HOW_TO_GIVE}") from error
            break
    text = config.get("text_config") or config.get("text") or config
    vision = config.get("vision_config") or config.get("vision") or {}
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        raise ValueError("the text and vision settings in a model configuration must be JSON objects")
    if text.get("hidden_act", "gelu") != "gelu":
        raise ValueError(
            f"hidden_act: got {text['hidden_act']!r}, expected 'gelu', which every BLIP was trained with"
        )
    vision = {_SHORT_VISION_KEYS.get(str(key), str(key)): value for key, value in vision.items()}
    return Stated(text, vision, config.get("prompt"))


def read_sizes(
    shapes: Mapping[str, tuple[int, ...]], text_prefix: str, stated: Stated, source: Path
) -> Sizes:
    """Reads the sizes off the shapes and settles the head counts.

    `shapes` go by Hugging Face name and include all `anchors`, with their number of axes; `source` is named
    in messages. ValueError if the image positions are not a class token and a square grid, a head count is
    unknown or does not divide the width, or the configuration is of a model with other widths or depths.
    """
    positions = shapes[_POSITIONS][1]
    grid = math.isqrt(max(positions - 1, 0))
    if grid < 1 or grid * grid != positions - 1:
        raise ValueError(
            f"{source}: {positions} image positions are not one class token and a square grid of patches"
        )
    vision = {
        "hidden_size": shapes[_POSITIONS][2],
        "num_hidden_layers": _depth(shapes, _VISION_LAYERS),
        "intermediate_size": shapes[_VISION_MLP][0],
    }
    words = shapes[text_prefix + "embeddings.word_embeddings.weight"]
    text = {
        "hidden_size": words[1],
        "num_hidden_layers": _depth(shapes, text_prefix + "encoder.layer."),
        "intermediate_size": shapes[text_prefix + "encoder.layer.0.intermediate.dense.weight"][0],
    }
    patch = shapes[_PATCHES][3]
    projection = shapes.get("vision_proj.weight")
    return Sizes(
        vision_width=vision["hidden_size"],
        vision_layers=vision["num_hidden_layers"],
        vision_mlp=vision["intermediate_size"],
        vision_heads=_heads("vision", vision, stated.vision, source),
        patch=patch,
        image_size=grid * patch,
        text_width=text["hidden_size"],
        text_layers=text["num_hidden_layers"],
        text_mlp=text["intermediate_size"],
        text_heads=_heads("text", text, stated.text, source),
        vocabulary=words[0],
        positions=shapes[text_prefix + "embeddings.position_embeddings.weight"][0],
        projection=projection[0] if projection else None,
    )


def _heads(part: str, found: Mapping[str, int], stated: Mapping[str, Any], source: Path) -> int:
    """Settles one transformer's head count, after checking that the configuration is of this model."""
    for key, value in found.items():
        if stated.get(key, value) != value:
            raise ValueError(
                f"{source}: its {part} transformer has {key} {value}, its configuration says"
                f" {stated[key]}: the configuration is of another model; {HOW_TO_GIVE}"
            )
    width = found["hidden_size"]
    count = stated.get("num_attention_heads", RELEASED_HEADS[part].get(width))
    if count is None:
        raise ValueError(
            f"{source}: the head count of its {part} transformer (width {width}) is not in the file and"
            f" no released model has this width: {HOW_TO_GIVE}"
        )
    if not isinstance(count, int) or isinstance(count, bool) or count < 1 or width % count:
        raise ValueError(f"{source}: {count!r} heads do not divide the {part} width {width}: {HOW_TO_GIVE}")
    return count


def _depth(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    numbers = [re.match(r"\d+", name[len(prefix) :]) for name in shapes if name.startswith(prefix)]
    return 1 + max(int(number.group()) for number in numbers if number)
