"""What prepares pictures and prompts for a vision-language model: for pictures alone, of bounded size."""

from __future__ import annotations

import logging
from typing import Any

from generation.loading import naming_model

log = logging.getLogger(__name__)


def open_processor(model_id: str) -> Any:
    """Opens the processor of a model of the hub or of a folder, with Pillow's image processor.

    Its video part is left out: it needs torchvision, and no video is shown. Errors are those of
    `generation.loading.naming_model`.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, Idefics3Processor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    with naming_model(model_id):
        config = AutoConfig.from_pretrained(model_id)
        kind: Any = PROCESSOR_MAPPING.get(type(config), None) or AutoProcessor
        if (
            config.model_type == "smolvlm"
        ):  # reads a picture as its parent does, whose processor has no videos
            kind = Idefics3Processor
        elif "video_processor" in getattr(kind, "get_attributes", list)():
            parts = [part for part in kind.get_attributes() if part != "video_processor"]
            kind = type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda cls: parts)})
        processor = kind.from_pretrained(model_id)
        if hasattr(processor, "image_processor"):
            processor.image_processor = AutoImageProcessor.from_pretrained(model_id, backend="pil")
    return processor


def bound_pixels(model: Any, processor: Any, pixels: int) -> bool:
    """Makes a model and its processor read at most so many pixels of a picture, and so fewer tokens.

    Qwen-VL's pictures are scaled down; of Idefics3's (SmolVLM) and LLaVA-NeXT's the tiles beside the one of
    the whole picture get fewer, or none: that one is always read.

    Returns:
        Whether the model can be bounded; others read every picture at one size, or are not known here.
    """
    images = processor.image_processor
    if hasattr(images, "image_grid_pinpoints"):
        side = images.crop_size["height"]
        grid = [[height, width] for height, width in images.image_grid_pinpoints if height * width <= pixels]
        images.image_grid_pinpoints = grid or [[side, side]]
        model.config.image_grid_pinpoints = grid or [[0, 0]]  # no tile but that of the whole picture
        if not grid:
            # The tile's patches, those that the processor counts for a class token, and an end of line.
            tokens = (side // processor.patch_size) ** 2 + processor.num_additional_image_tokens + 1
            processor._get_number_of_features = lambda *_: tokens
    elif hasattr(images, "do_image_splitting"):
        tile = images.max_image_size["longest_edge"]
        images.do_image_splitting = pixels >= 2 * tile * tile
        images.size = {
            "longest_edge": min(images.size["longest_edge"], int(pixels**0.5) // tile * tile or tile)
        }
    elif hasattr(images, "merge_size"):
        smallest = min(images.size["shortest_edge"], pixels)
        images.size = {"shortest_edge": smallest, "longest_edge": min(images.size["longest_edge"], pixels)}
    else:
        return False
    return True
