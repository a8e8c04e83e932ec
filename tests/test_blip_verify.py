"""Verification over the recorded folder, one of other sizes made here, and spoilt copies of both."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, interpolate, normalize
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from BLIP.verify import main

FIXTURES = Path(__file__).parent / "fixtures" / "blip"
WORDS = ["a", "picture", "of", "dog", "cat", "red", "big", "on", "the", "grass", "sea", "two", "birds", "fly"]
WORDS += ["over", "##s", "!", ","]
VOCABULARY = [*WORDS[:4], "[MASK]", "[PAD]", *WORDS[4:9], "[CLS]", "[UNK]", *WORDS[9:], "[SEP]"]
TEXTS = ["a red dog on the grass", "two birds!", "a big zebra, the sea and the sea and the sea and the sea"]
CAPTIONS = ["a picture of a dog", "a picture of two birds over the sea", "a picture of the red grass"]
PROMPT = "a picture of "
PATCH, GRID, SHORT, LONG = 8, 5, 12, 30
TEXT = {
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "vocab_size": len(VOCABULARY) + 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
VISION = {"hidden": 24, "layers": 3, "heads": 4, "mlp_hidden": 96}
TO_SALESFORCE = [
    (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding", "visual_encoder.patch_embed.proj"),
    (r"^vision_model\.post_layernorm", "visual_encoder.norm"),
    (r"^vision_model\.encoder\.layers", "visual_encoder.blocks"),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.qkv\.", ".attn.qkv."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
]


def salesforce_state(model):
    state = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in TO_SALESFORCE:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor.clone()
    return state


def random_model(model_class, image_size=PATCH * GRID):
    config = BlipConfig(
        text_config=TEXT | {"encoder_hidden_size": VISION["hidden"]},
        vision_config={
            "hidden_size": VISION["hidden"],
            "num_hidden_layers": VISION["layers"],
            "num_attention_heads": VISION["heads"],
            "intermediate_size": VISION["mlp_hidden"],
            "image_size": image_size,
            "patch_size": PATCH,
            "layer_norm_eps": 1e-6,
        },
        image_text_hidden_size=20,
    )
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = 1.0 if name.lower().endswith(("norm.weight", "norm1.weight", "norm2.weight")) else 0.0
            scale = 1.4 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.2
            parameter.copy_(gain + scale * torch.randn(parameter.shape, generator=generator))
    return model


def tokenised(texts, limit, length=None, first=None):
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)})
    padding = "max_length" if length else "longest"
    batch = tokenizer(
        texts, truncation=True, max_length=length or limit, padding=padding, return_tensors="pt"
    )
    if first is not None:
        batch["input_ids"][:, 0] = first
    return batch["input_ids"], batch["attention_mask"]


@torch.no_grad()
def retrieval_outputs(model):
    generator = torch.Generator().manual_seed(1)
    enc = len(VOCABULARY) + 1
    outputs = {}
    for before, suffix, texts, limit, length in (
        ("", "", TEXTS, LONG, None),
        ("", f"_{SHORT}", TEXTS, SHORT, SHORT),
        ("long_", "", ["the sea " * 50], LONG, None),
    ):
        ids, mask = tokenised(texts, limit, length)
        hidden = model.text_encoder(ids, attention_mask=mask).last_hidden_state
        outputs |= {f"{before}input_ids{suffix}": ids, f"{before}attention_mask{suffix}": mask}
        outputs |= {f"{before}text_proj{suffix}": model.text_proj(hidden[:, 0])}
        outputs |= {f"{before}text_feat{suffix}": normalize(model.text_proj(hidden[:, 0]), dim=-1)}
        if not before and not suffix:
            outputs["text_hidden"] = hidden
    mask = outputs[f"attention_mask_{SHORT}"]
    ids = {"cls": outputs[f"input_ids_{SHORT}"], "enc": tokenised(TEXTS, SHORT, SHORT, first=enc)[0]}
    outputs[f"input_ids_{SHORT}_enc"] = ids["enc"]
    for size in (PATCH * GRID, 24, 56):
        suffix = "" if size == PATCH * GRID else f"_{size}"
        resized = model
        if suffix:
            resized = random_model(BlipForImageTextRetrieval, size)
            state = dict(model.state_dict())
            old = state["vision_model.embeddings.position_embedding"]
            squares = old[0, 1:].T.reshape(1, -1, GRID, GRID)
            squares = interpolate(squares, (size // PATCH,) * 2, mode="bicubic", align_corners=False)
            new = torch.cat([old[:, :1], squares.flatten(2).transpose(1, 2)], dim=1)
            state["vision_model.embeddings.position_embedding"] = outputs[f"pos_embed{suffix}"] = new
            resized.load_state_dict(state)
        pixels = torch.randn(1 if suffix else 3, 3, size, size, generator=generator)
        hidden = resized.vision_model(pixels).last_hidden_state
        features = normalize(resized.vision_proj(hidden[:, 0]), dim=-1)
        outputs |= {f"pixel_values{suffix}": pixels, f"image_embeds{suffix}": hidden}
        outputs |= {f"image_proj{suffix}": resized.vision_proj(hidden[:, 0]), f"image_feat{suffix}": features}
        for head in ("cls", "enc"):
            logits = [
                resized(ids[head], pixel.expand(len(TEXTS), -1, -1, -1), attention_mask=mask).itm_score
                for pixel in pixels.split(1)
            ]
            outputs[f"itm_logits_{head}{suffix}"] = torch.stack(logits)
        if not suffix:
            outputs["itc_sim"] = features @ outputs[f"text_feat_{SHORT}"].T
            states = hidden[1:2].expand(len(TEXTS), -1, -1)
            fused = model.text_encoder(ids["enc"], attention_mask=mask, encoder_hidden_states=states)
            outputs["itm_hidden_enc_image1"] = fused.last_hidden_state
    return {name: tensor.contiguous() for name, tensor in outputs.items()}


@torch.no_grad()
def captioner_outputs(model):
    pixels = torch.randn(3, 3, PATCH * GRID, PATCH * GRID, generator=torch.Generator().manual_seed(2))
    dec, sep, pad = len(VOCABULARY), VOCABULARY.index("[SEP]"), VOCABULARY.index("[PAD]")
    ids, mask = tokenised(CAPTIONS, LONG, first=dec)
    prompt = tokenised([PROMPT], LONG, first=dec)[0][:, :-1].repeat(3, 1)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, : prompt.shape[1]] = -100
    hidden = model.vision_model(pixels).last_hidden_state
    logits = model.text_decoder(ids, mask, encoder_hidden_states=hidden).logits
    targets, scores = labels[:, 1:].flatten(), logits[:, :-1].flatten(0, 1)
    losses = cross_entropy(scores, targets, reduction="none", label_smoothing=0.2).view(3, -1)
    words = prompt
    ended = torch.zeros(3, dtype=torch.bool)
    while words.shape[1] < 11 and not ended.all():
        row = model.text_decoder(words, torch.ones_like(words), encoder_hidden_states=hidden).logits[:, -1]
        if words.shape[1] < 7:
            row[:, sep] = -torch.inf
        words = torch.cat([words, row.argmax(-1).masked_fill(ended, pad)[:, None]], dim=1)
        ended |= words[:, -1] == sep
    log_p = logits[:, :-1].log_softmax(-1)
    outputs = {
        "pixel_values": pixels,
        "image_embeds": hidden,
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "logits": logits,
        "token_logprob": torch.stack(
            [log_p[:, n, :].gather(1, ids[:, n + 1, None])[:, 0] for n in range(ids.shape[1] - 1)], 1
        ),
        "loss": losses.sum() / (targets != -100).sum(),
        "loss_no_smoothing": cross_entropy(scores, targets),
        "loss_sum_per_row": losses.sum(1),
        "loss_single": losses.sum(1) / (labels[:, 1:] != -100).sum(1),
        "gen_prompt_ids": prompt,
        "gen_short": words,
    }
    return {name: tensor.contiguous() for name, tensor in outputs.items()}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A folder like the recorded one, with other sizes, texts, vocabulary and settings."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "tiny_med_config.json").write_text(json.dumps(TEXT))
    retrieval, captioner = random_model(BlipForImageTextRetrieval), random_model(BlipForConditionalGeneration)
    save_file(salesforce_state(retrieval), folder / "itm.safetensors")
    torch.save({"model": salesforce_state(captioner)}, folder / "captioner.pth")
    save_file(retrieval_outputs(retrieval), folder / "itm_outputs.safetensors")
    save_file(captioner_outputs(captioner), folder / "captioner_outputs.safetensors")
    facts = {"vision": VISION, "texts": TEXTS, "long_text": "the sea " * 50}
    (folder / "itm.json").write_text(json.dumps(facts))
    settings = {"short": {"num_beams": 1, "max_length": 11, "min_length": 7}}
    facts = {
        "vision": VISION,
        "prompt": PROMPT,
        "captions": CAPTIONS,
        "label_smoothing": 0.2,
        "generation": settings,
    }
    (folder / "captioner.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def copy(tmp_path):
    def make(source):
        return Path(shutil.copytree(source, tmp_path / "copy"))

    return make


def edit(file, change):
    """Rewrites the tensors of a safetensors file."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_recorded_folder_agrees(capsys):
    assert main([str(FIXTURES)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("all agree of ") and "not checked" not in lines[-1]
    for name in (
        *load_file(FIXTURES / "itm_outputs.safetensors"),
        *load_file(FIXTURES / "captioner_outputs.safetensors"),
    ):
        assert any(name in line for line in lines), name
    compared = [line for line in lines if line.endswith(" ok")]
    assert len(compared) == len(lines) - 2
    assert sum("gen_beam" in line for line in compared) == 4


def test_both_containers_are_compared(copy, capsys):
    folder = copy(FIXTURES)
    state = torch.load(folder / "itm.pth", weights_only=True)["model"]
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "itm.safetensors")
    assert main([str(folder)]) == 0
    assert "weights of itm.pth" in capsys.readouterr().out
    # No text holds this word: only the comparison of the two files can show the change.
    edit(
        folder / "itm.safetensors",
        lambda tensors: tensors["text_encoder.embeddings.word_embeddings.weight"][209].add_(1),
    )
    assert main([str(folder)]) == 1
    assert re.search(r"weights of itm\.pth .* 1 .*DIFFERS.*word_embeddings", capsys.readouterr().out)


def test_a_folder_of_other_sizes_agrees(other, capsys):
    status = main([str(other)])
    printed = capsys.readouterr().out
    assert status == 0, printed
    for name in ("itm_logits_enc_56", "pos_embed_24", "itm_hidden_enc_image1", "gen_short", "long_text_feat"):
        assert re.search(rf" {name} .* ok$", printed, re.MULTILINE), name


@pytest.mark.parametrize(
    "name",
    [
        "visual_encoder.blocks.2.attn.qkv.bias",
        "text_encoder.encoder.layer.1.crossattention.self.value.weight",
        "text_proj.bias",
        "itm_head.weight",
    ],
)
def test_a_changed_weight_fails(other, copy, capsys, name):
    folder = copy(other)
    edit(
        folder / "itm.safetensors", lambda tensors: tensors[name].view(-1)[3 % len(tensors[name])].add_(1e-2)
    )
    assert main([str(folder)]) == 1
    assert re.search(r"^\d+ DIFFER of", capsys.readouterr().out, re.MULTILINE)


def test_a_weight_that_is_no_number_fails(other, copy):
    folder = copy(other)
    edit(folder / "itm.safetensors", lambda tensors: tensors["text_proj.bias"].fill_(torch.nan))
    assert main([str(folder)]) == 1


def test_another_token_fails(other, copy, capsys):
    folder = copy(other)

    def change(tensors):
        tensors[f"input_ids_{SHORT}_enc"][0, 2] += 1

    edit(folder / "itm_outputs.safetensors", change)
    assert main([str(folder)]) == 1
    assert re.search(rf"input_ids_{SHORT}_enc +ids that differ 1 +DIFFERS", capsys.readouterr().out)


def test_a_changed_caption_fails(other, copy, capsys):
    folder = copy(other)

    def change(tensors):
        tensors["gen_short"][1, 5] += 1

    edit(folder / "captioner_outputs.safetensors", change)
    assert main([str(folder)]) == 1
    assert re.search(r"gen_short +ids that differ 1 +DIFFERS", capsys.readouterr().out)


def test_a_dropped_tensor_is_named_and_the_rest_still_checked(other, copy, capsys):
    folder = copy(other)
    edit(folder / "itm.safetensors", lambda tensors: tensors.pop("visual_encoder.blocks.2.mlp.fc1.weight"))
    assert main([str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "missing: visual_encoder.blocks.2.mlp.fc1.weight" in printed
    assert re.search(r"captioner\.pth +logits .* ok$", printed, re.MULTILINE)


def test_a_dropped_last_layer_is_noticed(other, copy, capsys):
    folder = copy(other)
    edit(
        folder / "itm.safetensors",
        lambda tensors: [tensors.pop(name) for name in list(tensors) if ".blocks.2." in name],
    )
    assert main([str(folder)]) == 1
    assert "num_hidden_layers 2, its configuration says 3" in capsys.readouterr().out


def test_an_unknown_output_and_unknown_settings_are_reported(other, copy, capsys):
    folder = copy(other)
    edit(folder / "itm_outputs.safetensors", lambda tensors: tensors.update(attention=torch.ones(1)))
    facts = json.loads((folder / "captioner.json").read_text())
    facts["generation"]["nucleus"] = {"max_length": 9, "top_p": 0.9}
    (folder / "captioner.json").write_text(json.dumps(facts))
    assert main([str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "NOT CHECKED itm_outputs.safetensors: attention" in printed
    assert "gen_nucleus (settings not known: top_p)" in printed
    assert printed.rstrip().endswith("2 not checked")


@pytest.mark.parametrize(
    "name",
    [
        "captioner.pth",
        "itm_outputs.safetensors",
        "itm.json",
        "captioner_outputs.safetensors",
        "captioner.json",
        "vocab.txt",
    ],
)
def test_a_missing_file_is_named(other, copy, capsys, monkeypatch, name):
    monkeypatch.setattr(BertTokenizer, "from_pretrained", lambda *_: pytest.fail("asked the network"))
    folder = copy(other)
    (folder / name).unlink()
    assert main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert name in error and error.count("\n") == 1


def test_a_json_without_the_prompt_is_told(other, copy, capsys):
    folder = copy(other)
    facts = json.loads((folder / "captioner.json").read_text())
    del facts["prompt"]
    (folder / "captioner.json").write_text(json.dumps(facts))
    assert main([str(folder)]) == 2
    assert "captioner.json lacks the prompt" in capsys.readouterr().err


def test_a_vocabulary_of_another_name(other, copy):
    folder = copy(other)
    (folder / "vocab.txt").rename(folder / "words.txt")
    for name in ("itm.json", "captioner.json"):
        facts = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(facts | {"vocab_file": "words.txt"}))
    assert main([str(folder)]) == 0


def test_unreadable_weights_and_empty_folders(other, copy, capsys, tmp_path):
    folder = copy(other)
    (folder / "itm.safetensors").write_bytes((other / "itm.safetensors").read_bytes()[:-40])
    assert main([str(folder)]) == 2
    assert "itm.safetensors is damaged or truncated" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 2 and "no weights in" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2 and "no folder at" in capsys.readouterr().err


def test_help_is_quick():
    code = "import sys, BLIP.verify as v\ntry: v.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ran.returncode == 0 and "folder" in ran.stdout
