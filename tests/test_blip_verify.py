"""The recorded folder agrees; spoilt copies of it do not."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from verify_blip import Recorded, main

FIXTURES = Path(__file__).parent / "fixtures" / "blip"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(FIXTURES, tmp_path / "copy"))


def edit(file, change):
    """Rewrites the tensors of a file."""
    if file.suffix == ".pth":
        content = torch.load(file, weights_only=True)
        change(content["model"])
        torch.save(content, file)
    else:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)


def add(name, number, place=0):
    return lambda tensors: tensors[name].view(-1)[place].add_(number)


def test_recorded_folder_agrees_and_all_of_it_is_compared(capsys):
    assert main([str(FIXTURES)]) == 0
    printed = capsys.readouterr().out
    assert "NOT CHECKED" not in printed and re.fullmatch(r"all \d+ agree", printed.splitlines()[-1])
    for name in ("itm_logits_enc", "itc_sim", "pos_embed_64", "gen_beam3", "logits", "pixel_values_48"):
        assert re.search(rf"^ok .* {name} ", printed, re.MULTILINE), name
    assert printed.count("retrieval_full.pth") > 20 and "BLIP_ITM, 384 pixels" in printed


def test_changed_weights_and_changed_recordings_differ(copy, capsys):
    edit(copy / "itm.pth", add("visual_encoder.blocks.1.attn.qkv.bias", 1e-2))
    edit(
        copy / "retrieval_full.pth",
        add("text_encoder.encoder.layer.1.crossattention.self.value.weight", 1e-2),
    )
    unused = "text_encoder.embeddings.word_embeddings.weight"  # row 209 is [DEC], which is in no text
    edit(copy / "retrieval_full.pth", lambda tensors: tensors[unused][209].add_(1))
    edit(copy / "captioner.pth", lambda tensors: tensors.pop("visual_encoder.blocks.1.mlp.fc1.weight"))
    edit(copy / "itm_outputs.safetensors", add("input_ids_35_enc", 1, place=4))
    edit(copy / "preprocess.safetensors", add("resized_uint8_chw_80", 1, place=4))
    edit(copy / "itm_outputs.safetensors", lambda tensors: tensors.update(attention=torch.ones(1)))
    assert main([str(copy)]) == 1
    printed = capsys.readouterr().out
    for source, name in (
        ("itm.pth", "image_embeds"),
        ("retrieval_full.pth", "itm_logits_enc"),
        ("retrieval_full.pth", "weights of itm.pth"),
        ("tokenizer", "input_ids_35_enc"),
        ("images.py", "resized_uint8_chw_80"),
    ):
        assert re.search(rf"^DIFFERS +{source} +{name} ", printed, re.MULTILINE), name
    assert "missing: visual_encoder.blocks.1.mlp.fc1.weight" in printed
    assert re.search(r"^ok +retrieval_full.pth +image_embeds ", printed, re.MULTILINE)  # still compared
    assert "NOT CHECKED itm_outputs.safetensors: attention" in printed


def test_nan_differs_from_a_number():
    recorded = Recorded(FIXTURES / "itm_outputs.safetensors")
    for got, passes in (
        (recorded.tensors["text_proj"], True),
        (recorded.tensors["text_proj"] * torch.nan, False),
    ):
        recorded.compare("itm.pth", "text_proj", got)
        assert recorded.rows[-1][-1] is passes


@pytest.mark.parametrize("name", ["captioner.pth", "itm_outputs.safetensors", "vocab.txt", "itm.json"])
def test_a_missing_file_is_named(copy, capsys, name):
    (copy / name).unlink()
    assert main([str(copy)]) == 2
    error = capsys.readouterr().err
    assert name in error and error.count("\n") == 1


def test_a_torn_file_is_no_agreement(copy, capsys):
    file = copy / "itm_outputs.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    assert main([str(copy)]) == 2 and "cannot verify" in capsys.readouterr().err
