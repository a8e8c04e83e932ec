"""Random dual encoders as folders in the hub's layout, one of each family, a few thousand parameters each."""

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SIDE = 32
WORDS = ["a", "dog", "cat", "bus", "on", "the", "beach", "red", "狗", "海", "滩"]
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.4,
}
PATCHES = {"image_size": SIDE, "patch_size": 8}
SQUARE = {"height": SIDE, "width": SIDE}


def words_tokenizer(single, **options):
    """Whole words; `single` says how a text begins and ends."""
    start, end, pad = "<s>", "</s>", "<pad>"
    vocabulary = {word: number for number, word in enumerate([start, pad, end, "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single, special_tokens=[(start, 0), (end, 2)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=pad,
        unk_token="<unk>",
        **options,
    )


def gemma_tokenizer():
    """Letters; transformers turns whatever tokenizer it finds beside a SigLIP 2 into one of this class."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    entries = [*special, "▁", *"abcdefghijklmnopqrstuvwxyz狗海滩"]
    tokenizer = hf.Siglip2Tokenizer({entry: number for number, entry in enumerate(entries)})
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        "$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return tokenizer


def bert_tokenizer():
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return hf.BertTokenizer(vocab={entry: number for number, entry in enumerate(entries)})


def clip():
    tokenizer = words_tokenizer("<s> $A </s>")
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 12, "eos_token_id": 2}
    config = hf.CLIPConfig(text_config=text, vision_config=TOWER | PATCHES, projection_dim=16)
    processor = hf.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    return hf.CLIPModel, config, tokenizer, processor


def metaclip_2():
    tokenizer = words_tokenizer("<s> $A </s>")
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 12, "eos_token_id": 2}
    config = hf.MetaClip2Config(text_config=text, vision_config=TOWER | PATCHES, projection_dim=16)
    processor = hf.CLIPImageProcessorPil(size={"shortest_edge": SIDE + 8}, crop_size=SQUARE)
    return hf.MetaClip2Model, config, tokenizer, processor


def siglip():
    """SigLIP, and SigLIP 2 of fixed resolution, which is the same with another tokenizer."""
    tokenizer = words_tokenizer("$A </s>", model_input_names=["input_ids"])
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 32}
    config = hf.SiglipConfig(text_config=text, vision_config=TOWER | PATCHES)
    return hf.SiglipModel, config, tokenizer, hf.SiglipImageProcessorPil(size=SQUARE)


def siglip2():
    """SigLIP 2 that keeps a picture's proportions (NaFlex)."""
    tokenizer = gemma_tokenizer()
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 32}
    config = hf.Siglip2Config(text_config=text, vision_config=TOWER | {"patch_size": 8, "num_patches": 16})
    return hf.Siglip2Model, config, tokenizer, hf.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)


def chinese_clip():
    tokenizer = bert_tokenizer()
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    config = hf.ChineseCLIPConfig(text_config=text, vision_config=TOWER | PATCHES, projection_dim=16)
    processor = hf.ChineseCLIPImageProcessorPil(size=SQUARE, crop_size=SQUARE)
    return hf.ChineseCLIPModel, config, tokenizer, processor


def align():
    tokenizer = bert_tokenizer()
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    vision = {
        "image_size": SIDE, "width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 64,
        "depthwise_padding": [], "initializer_range": 0.4,
    }  # fmt: skip
    config = hf.AlignConfig(text_config=text, vision_config=vision, projection_dim=32)
    processor = hf.EfficientNetImageProcessorPil(
        size={"height": SIDE + 8, "width": SIDE + 8}, crop_size=SQUARE, do_center_crop=True, include_top=False
    )
    return hf.AlignModel, config, tokenizer, processor


FAMILIES = {build.__name__: build for build in (clip, metaclip_2, siglip, siglip2, chinese_clip, align)}


def save_encoder(name, folder):
    """Writes a family's model; returns it with its tokenizer and image processor."""
    kind, config, tokenizer, processor = FAMILIES[name]()
    torch.manual_seed(0)
    model = kind(config).eval()
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return model, tokenizer, processor
