"""The recorded folder agrees; spoilt copies of it do not."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from verify_blip import beam_search, main

from BLIP.captioner import BlipCaptioner

FIXTURES = Path(__file__).parent / "fixtures" / "blip"


@pytest.fixture(autouse=True)
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


def test_recorded_folder_agrees_and_all_of_it_is_compared(capsys):
    assert main([str(FIXTURES)]) == 0
    printed = capsys.readouterr().out
    assert "NOT CHECKED" not in printed and re.fullmatch(r"all \d+ agree", printed.splitlines()[-1])
    for name in ("itm_logits_enc", "itc_sim", "pos_embed_64", "gen_beam3", "logits", "pixel_values_48"):
        assert re.search(rf"^ok .* {name} ", printed, re.MULTILINE), name
    assert printed.count("retrieval_full.pth") > 20 and "BLIP_ITM, 384 pixels" in printed


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("itm.pth", "visual_encoder.blocks.1.attn.qkv.bias"),
        ("retrieval_full.pth", "text_encoder.encoder.layer.1.crossattention.self.value.weight"),
        ("itm.pth", "itm_head.weight"),
        ("captioner.pth", "text_decoder.cls.predictions.transform.dense.bias"),
    ],
)
def test_a_changed_weight_differs(copy, capsys, file, name):
    edit(copy / file, lambda tensors: tensors[name].view(-1)[0].add_(1e-2))
    assert main([str(copy)]) == 1
    assert re.search(rf"^DIFFERS +{file}", capsys.readouterr().out, re.MULTILINE)


def test_a_weight_that_no_output_shows_differs(copy, capsys):
    unused = "text_encoder.embeddings.word_embeddings.weight"  # row 209 is [DEC], which is in no text
    edit(copy / "retrieval_full.pth", lambda tensors: tensors[unused][209].add_(1))
    assert main([str(copy)]) == 1
    assert re.search(
        r"^DIFFERS +retrieval_full.pth +weights of itm.pth", capsys.readouterr().out, re.MULTILINE
    )


def test_a_weight_that_is_nan_differs(copy):
    edit(copy / "itm.pth", lambda tensors: tensors["text_proj.bias"].fill_(torch.nan))
    assert main([str(copy)]) == 1


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("itm_outputs.safetensors", "input_ids_35_enc"),
        ("captioner_outputs.safetensors", "gen_beam3"),
        ("preprocess.safetensors", "resized_uint8_chw_80"),
    ],
)
def test_another_recorded_number_differs(copy, capsys, file, name):
    edit(copy / file, lambda tensors: tensors[name].view(-1)[4].add_(1))
    assert main([str(copy)]) == 1
    assert re.search(rf"^DIFFERS .* {name} ", capsys.readouterr().out, re.MULTILINE)


def test_a_dropped_tensor_is_named_and_the_rest_still_compared(copy, capsys):
    edit(copy / "itm.pth", lambda tensors: tensors.pop("visual_encoder.blocks.1.mlp.fc1.weight"))
    assert main([str(copy)]) == 1
    printed = capsys.readouterr().out
    assert "missing: visual_encoder.blocks.1.mlp.fc1.weight" in printed
    assert re.search(r"^ok +captioner.pth +logits", printed, re.MULTILINE)


def test_an_unknown_output_is_reported(copy, capsys):
    edit(copy / "itm_outputs.safetensors", lambda tensors: tensors.update(attention=torch.ones(1)))
    assert main([str(copy)]) == 0
    assert "NOT CHECKED itm_outputs.safetensors: attention" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["captioner.pth", "itm_outputs.safetensors", "captioner.json", "vocab.txt", "itm.json"]
)
def test_a_missing_file_is_named(copy, capsys, name):
    (copy / name).unlink()
    assert main([str(copy)]) == 2
    error = capsys.readouterr().err
    assert name in error and error.count("\n") == 1


def test_a_torn_file_is_no_agreement(copy, capsys):
    file = copy / "captioner_outputs.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    assert main([str(copy)]) == 2 and "cannot verify" in capsys.readouterr().err


def test_beams_enough_for_all_sentences_find_the_best():
    config = {"num_attention_heads": 2, "vision": {"heads": 3}}
    captioner = BlipCaptioner.open(FIXTURES / "captioner.pth", config=config)
    pixels = load_file(FIXTURES / "captioner_outputs.safetensors")["pixel_values"][:1]
    hidden, end = captioner.image_hidden(pixels), captioner.tokenizer.sep_id
    prompt = captioner.prompt_ids()[0].tolist()

    @torch.inference_mode()
    def log_p(sentences):
        states = hidden.expand(len(sentences), -1, -1)
        logits = captioner.model.text_decoder(torch.tensor(sentences), encoder_hidden_states=states).logits
        return logits[:, -1].log_softmax(dim=-1)

    # All sentences of at most one new word and the end, or two words: scored by hand.
    first = log_p([prompt])[0]
    second = log_p([[*prompt, word] for word in range(len(first))])
    scored = [(first[end].item() / len(prompt), [*prompt, end])]
    for word in range(len(first)):
        if word != end:
            ended = (first[word] + second[word, end]).item() / (len(prompt) + 1)
            scored.append((ended, [*prompt, word, end]))
            rest = second[word].clone()
            rest[end] = -torch.inf
            total, other = rest.max(dim=0)
            scored.append(((first[word] + total).item() / (len(prompt) + 2), [*prompt, word, other.item()]))
    found = beam_search(captioner, hidden, prompt, num_beams=100, max_length=len(prompt) + 2)
    assert found == max(scored)[1]


def test_a_json_that_lacks_an_entry_is_told(copy, capsys):
    facts = json.loads((copy / "captioner.json").read_text())
    del facts["prompt"]
    (copy / "captioner.json").write_text(json.dumps(facts))
    assert main([str(copy)]) == 2
    assert "'prompt'" in capsys.readouterr().err
