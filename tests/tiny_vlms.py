"""Random vision-language models as folders in the hub's layout, a few thousand parameters each."""

import json

import numpy as np
import torch
from conftest import tiny_tokenizer
from PIL import Image

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[INST] {% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %} [/INST]{% endfor %}"
)
GRID = [[28, 56], [56, 28]]


def pictures():
    """Of unlike shapes, so that prompts are of unlike lengths."""
    random = np.random.default_rng(1)
    sides = [(40, 30), (20, 60), (100, 30), (28, 28), (30, 90)]
    return [Image.fromarray(random.integers(0, 256, (*side, 3), dtype=np.uint8)) for side in sides]


def text_settings(tokenizer, width):
    return {
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "initializer_range": 0.4 * (32 / width) ** 0.5,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }


def clip_settings(width):
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=width,
    )


def save(folder, processor, model):
    folder.mkdir(exist_ok=True)
    processor.save_pretrained(folder)
    model.lm_head.weight.data[1] *= 2  # so that some captions end
    model.save_pretrained(folder)
    return str(folder)


def llava_next(folder, width=32):
    """LLaVA-NeXT over Mistral, as llava-v1.6-mistral-7b-hf is."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextProcessor,
        MistralConfig,
    )
    from transformers.models.llava_next import LlavaNextImageProcessorPil

    tokenizer = tiny_tokenizer(["<image>"])
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=GRID
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    torch.manual_seed(0)
    config = LlavaNextConfig(
        text_config=MistralConfig(**text_settings(tokenizer, width), sliding_window=None),
        vision_config=clip_settings(width),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=GRID,
        vision_feature_layer=-2,
        initializer_range=0.4 * (32 / width) ** 0.5,
        tie_word_embeddings=False,
    )
    return save(folder, processor, LlavaNextForConditionalGeneration(config))


def smolvlm(folder, width=32):
    """Idefics3, which SmolVLM-256M-Instruct is: pictures cut into tiles of their own count."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, LlamaConfig
    from transformers.models.idefics3 import Idefics3ImageProcessorPil

    markers = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = tiny_tokenizer(
        ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *markers]
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(
            size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
        ),
        tokenizer=tokenizer,
        image_seq_len=1,
        chat_template=TEMPLATE,
    )
    torch.manual_seed(0)
    config = Idefics3Config(
        text_config=LlamaConfig(**text_settings(tokenizer, width)),
        vision_config={
            "hidden_size": width,
            "intermediate_size": width,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
        pad_token_id=2,
    )
    model = Idefics3ForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 10  # its initial weights are so small that all captions are alike
    return save(folder, processor, model)


def smolvlm2(folder, width=32):
    """The same as a SmolVLM2, whose own processor wants num2words and torchvision for videos."""
    smolvlm(folder, width)
    named = {"model_type": "smolvlm", "architectures": ["SmolVLMForConditionalGeneration"]}
    rename(folder / "config.json", named)
    rename(folder / "processor_config.json", {"processor_class": "SmolVLMProcessor"})
    return str(folder)


def rename(file, named):
    file.write_text(json.dumps(json.loads(file.read_text()) | named))


def qwen2_5_vl(folder, width=32):
    import transformers as hf

    vision = {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
    kinds = hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration
    return qwen_vl(folder, width, *kinds, vision, {"mrope_section": [1, 1, 2]})


def qwen3_vl(folder, width=32):
    import transformers as hf

    vision = {"patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    kinds = hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration
    return qwen_vl(folder, width, *kinds, vision, {"mrope_section": [1, 1, 2], "mrope_interleaved": True})


def qwen_vl(folder, width, kind, model_kind, vision, rope):
    """Laid out as the hub's, whose processors list a video processor."""
    from transformers import Qwen2VLImageProcessorPil

    folder.mkdir(exist_ok=True)
    markers = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = tiny_tokenizer(markers)
    tokenizer.chat_template = TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer.save_pretrained(folder)
    start, end, image, video = tokenizer.convert_tokens_to_ids(markers)
    side = 2 * vision["patch_size"]
    Qwen2VLImageProcessorPil(
        patch_size=vision["patch_size"], size={"shortest_edge": side**2, "longest_edge": 16 * side**2}
    ).save_pretrained(folder)
    (folder / "video_preprocessor_config.json").write_text(
        '{"video_processor_type": "Qwen2VLVideoProcessor"}'
    )
    torch.manual_seed(0)
    vision |= {"hidden_size": width, "out_hidden_size": width, "intermediate_size": width}
    vision |= {"num_heads": 2, "depth": 2, "initializer_range": 0.4}
    text = text_settings(tokenizer, width)
    text |= {
        "head_dim": width // 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **rope},
    }
    config = kind(
        text_config=text, vision_config=vision, image_token_id=image,
        video_token_id=video, vision_start_token_id=start, vision_end_token_id=end, tie_word_embeddings=False,
    )  # fmt: skip
    model = model_kind(config)
    model.lm_head.weight.data[1] *= 2
    model.save_pretrained(folder)
    return str(folder)


BUILDERS = {
    "llava_next": llava_next, "smolvlm": smolvlm, "smolvlm2": smolvlm2, "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
}  # fmt: skip
IMAGE_TOKENS = {"qwen2_5_vl": "<|image_pad|>", "qwen3_vl": "<|image_pad|>"}  # of others "<image>"
