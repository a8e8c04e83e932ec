"""Captions by the tiny BLIP captioner, and by tiny random models of the hub's kinds."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_vlms
import torch
from PIL import Image
from tiny_vlms import BUILDERS, pictures

from BLIP.captioner import BlipCaptioner
from captioning import MAX_TOKENS, MAX_WORDS, Captioning
from generation.parsing import one_line
from generation.prompts import CAPTION

FIXTURES = Path(__file__).parent / "fixtures" / "blip"


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioner")
    shutil.copy(FIXTURES / "captioner.pth", folder)
    shutil.copy(FIXTURES / "vocab.txt", folder)
    config = {"model_type": "blip", "num_attention_heads": 2, "vision": {"heads": 3}}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def vlm_folders(tmp_path_factory):
    return {kind: build(tmp_path_factory.mktemp(kind)) for kind, build in BUILDERS.items()}


def test_blip_describes_as_its_captioner_does(blip_folder):
    images = pictures()
    captioning = Captioning(blip_folder, "fp32", batch_size=2)
    captioner = BlipCaptioner.open(blip_folder)
    longest = min(MAX_TOKENS, captioner.positions)
    plain = [captioner.caption([image], max_length=longest)[0] for image in images]
    captions = captioning.caption(images)
    assert captions == [one_line(text, MAX_WORDS) or "an image" for text in plain]
    assert len(set(captions)) > 1
    assert captioning.caption([]) == []
    by_file = Captioning(f"{blip_folder}/captioner.pth", "fp32")
    assert by_file.caption(images[:2]) == captions[:2]


def test_blip_of_the_hub_goes_the_same_way(blip_folder, monkeypatch):
    """A hub id is known by its configuration; only the download itself is replaced."""
    import transformers

    import BLIP.weight_files

    fetched = []
    monkeypatch.setattr(
        transformers.AutoConfig, "from_pretrained", lambda *_, **__: transformers.BlipConfig()
    )
    monkeypatch.setattr(
        BLIP.weight_files, "fetch_checkpoint", lambda hub_id: fetched.append(hub_id) or Path(blip_folder)
    )
    captions = Captioning("Salesforce/blip-image-captioning-base", "fp32").caption(pictures()[:2])
    assert captions == Captioning(blip_folder, "fp32").caption(pictures()[:2])
    assert fetched == ["Salesforce/blip-image-captioning-base"]


def test_blip_takes_no_bitsandbytes(blip_folder):
    with pytest.raises(ValueError, match=r"got int. for a BLIP captioner, expected fp16, bf16 or fp32"):
        Captioning(blip_folder, True).caption(pictures())


def test_empty_captions_are_counted(blip_folder, monkeypatch):
    captioning = Captioning(blip_folder, "fp32", batch_size=2)
    said = iter([["...", "a dog\nand more"], [CAPTION, f"{CAPTION} a cat"], ["a dog " * 200]])
    monkeypatch.setattr(captioning._blip, "caption", lambda *_, **__: next(said))
    assert captioning.caption(pictures()) == ["an image", "a dog", "an image", "a cat", "a dog"]
    assert captioning.empty == 2


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_vision_language_model_describes_in_batches_as_alone(vlm_folders, kind):
    images = pictures()
    captions = Captioning(vlm_folders[kind], "fp32", batch_size=5).caption(images)
    assert len(set(captions)) > 2
    alone = Captioning(vlm_folders[kind], "fp32", batch_size=1)
    assert [alone.caption([image])[0] for image in images] == captions
    assert Captioning(vlm_folders[kind], "fp32", batch_size=2).caption(images[::-1]) == captions[::-1]
    for caption in captions:
        assert "\n" not in caption and len(caption.split()) <= MAX_WORDS
        assert CAPTION not in caption and "[/INST]" not in caption


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_prompt_is_the_templates_read_once(vlm_folders, kind):
    """One <s>, the picture's tokens, the words; padding on the left; what is decoded begins behind it."""
    captioning = Captioning(vlm_folders[kind], "fp32")
    model, processor = captioning._vision_language
    seen = []
    generate = model.generate

    def watched(**inputs):
        seen.append((inputs, generate(**inputs)))
        return seen[-1][1]

    model.generate = watched
    captioning.caption(pictures())
    ((inputs, output),) = seen
    tokenizer = processor.tokenizer
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert len({int(row.sum()) for row in mask}) > 1  # unequal prompts, else nothing is tested
    for row, seen_row in zip(ids, mask, strict=True):
        starts = int((seen_row == 0).sum())
        assert seen_row[starts:].all() and (row[:starts] == tokenizer.pad_token_id).all()
        told = row[starts:].tolist()
        assert told[0] == tokenizer.bos_token_id and told.count(tokenizer.bos_token_id) == 1
        image = tokenizer.convert_tokens_to_ids(tiny_vlms.IMAGE_TOKENS.get(kind, "<image>"))
        assert told.count(image) >= 1
        assert tokenizer.decode(told).endswith(f"{CAPTION} [/INST]")
    assert (output[:, : ids.shape[1]] == ids).all()
    assert output.shape[1] - ids.shape[1] <= MAX_TOKENS


def test_every_end_that_the_model_lists_ends_a_caption(vlm_folders, tmp_path):
    folder = shutil.copytree(vlm_folders["llava_next"], tmp_path / "model")
    plain = Captioning(str(folder), "fp32")
    (first,) = set(plain._with_instructions(pictures()[:1]))
    token = plain._vision_language[1].tokenizer(first, add_special_tokens=False)["input_ids"][3]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, token]}))
    (ended,) = Captioning(str(folder), "fp32")._with_instructions(pictures()[:1])
    assert len(ended) < len(first)


def test_out_of_memory_halves_the_batch_and_keeps_every_caption(vlm_folders, caplog):
    images = pictures()
    expected = Captioning(vlm_folders["llava_next"], "fp32", batch_size=1).caption(images)
    captioning = Captioning(vlm_folders["llava_next"], "fp32", batch_size=5)
    model = captioning._vision_language[0]
    generate, tried = model.generate, []

    def small_memory(**inputs):
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return generate(**inputs)

    model.generate = small_memory
    assert captioning.caption(images) == expected
    assert tried == [5, 2, 2, 1]
    assert "captioning: out of memory with a batch of 5, going on with 2" in caplog.messages
    assert captioning.caption(images[:3]) == expected[:3]
    assert tried[4:] == [2, 1]  # what was learned is kept


def test_a_released_captioner_comes_back(vlm_folders, blip_folder):
    for folder in (vlm_folders["smolvlm"], blip_folder):
        captioning = Captioning(folder, "fp32")
        before = captioning.caption(pictures())
        captioning.release()
        assert not {"_blip", "_vision_language"} & captioning.__dict__.keys()
        assert captioning.caption(pictures()) == before


def test_a_model_without_eyes_is_named_in_one_line(language_model):
    with pytest.raises(ValueError, match="no chat template for pictures, expected a vision-language"):
        Captioning(language_model, "fp32").caption(pictures())


@pytest.mark.parametrize(
    ("kind", "pixels", "tokens"),
    [
        ("llava_next", 28 * 28, {4 + 1}),  # the whole picture's tile of 2 x 2 patches, and an end of line
        ("smolvlm", 28 * 28, {1}),
        ("smolvlm2", 28 * 28, {1}),
        ("qwen2_5_vl", 2 * 28 * 28, {1, 2}),
        ("qwen3_vl", 2 * 32 * 32, {1, 2}),
    ],
)
def test_pixels_bound_the_tokens_of_a_picture(vlm_folders, kind, pixels, tokens):
    whole, bounded = (
        Captioning(vlm_folders[kind], "fp32"),
        Captioning(vlm_folders[kind], "fp32", pixels=pixels),
    )
    image = tiny_vlms.IMAGE_TOKENS.get(kind, "<image>")

    def counted(captioning):
        return [row.count(image) for row in prompts_of(captioning)]

    assert set(counted(bounded)) <= tokens and max(counted(whole)) > max(tokens)
    assert f" fp32 {pixels} pixels: Describe" in bounded.name and "pixels" not in whole.name
    captions = bounded.caption(pictures())
    assert len(set(captions)) > 1
    assert [bounded.caption([picture])[0] for picture in pictures()] == captions


def prompts_of(captioning):
    """What the model is given for each picture, as text."""
    model, processor = captioning._vision_language
    seen, generate = [], model.generate
    model.generate = lambda **inputs: seen.append(inputs["input_ids"]) or generate(**inputs)
    captioning.caption(pictures())
    model.generate = generate
    return processor.tokenizer.batch_decode(seen[0])


def test_llava_next_sees_the_whole_picture_in_one_tile(vlm_folders):
    (picture, *_) = pictures()
    rows = []
    for pixels in (None, 28 * 28):
        model, processor = Captioning(vlm_folders["llava_next"], "fp32", pixels=pixels)._vision_language
        inputs = processor(images=[picture], text="<image>", return_tensors="pt")
        features = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
        rows.append(features.pooler_output[0].detach())
    torch.testing.assert_close(rows[1][:4], rows[0][:4])
    torch.testing.assert_close(rows[1][4], model.model.image_newline.detach())


def test_a_model_that_cannot_be_bounded_says_so(vlm_folders, monkeypatch, caplog):
    caplog.set_level("INFO")
    captioning = Captioning(vlm_folders["llava_next"], "fp32", pixels=100)
    monkeypatch.setattr("captioning.bound_pixels", lambda *_: False)
    captioning.load()
    assert "caption_pixels has no effect on it" in caplog.text


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_line_of_pixels_is_described_too(vlm_folders, kind):
    line = Image.new("RGB", (2, 900), "red")
    assert len(Captioning(vlm_folders[kind], "fp32").caption([line, *pictures()])) == 6
