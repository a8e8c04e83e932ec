"""What fits, what takes turns, what is refused; the presets fit the GPUs they are named after."""

import logging
import subprocess
import sys

import pytest
import tiny_vlms
import torch

from captioning import Captioning
from generation.footprint import Footprint
from generation.memory_plan import (
    GIB,
    MemoryPlan,
    ModelChoice,
    PlanSettings,
    blip_bytes,
    free_gpu_bytes,
    plan_memory,
    print_plan,
)
from generation.residency import Residency
from query_editing import QueryEditing
from settings import PRESETS, PROJECT


def plan(free, caption_batch=2, rewrite_batch=3):
    """Captioner: 100 and 10 a picture; rewriter: 200, 5 once, 1 a query."""
    caption = Footprint("some/captioner", "fp16", 50, 100, 1, 6, 4, 0)
    rewrite = Footprint("some/rewriter", "fp16", 100, 200, 0, 9, 1, 5)
    return MemoryPlan(
        {"caption": caption, "rewrite": rewrite}, {"caption": caption_batch, "rewrite": rewrite_batch}, free
    )


def test_the_sums_by_hand():
    assert plan(0).together_bytes == 100 + 200 + max(2 * 10, 5 + 3 * 1)
    assert plan(0).alone_bytes("caption") == 100 + 2 * 10
    assert plan(0).alone_bytes("rewrite") == 200 + 5 + 3 * 1


@pytest.mark.parametrize(
    ("free", "together", "fits", "said"),
    [
        (320, True, True, "fit together"),
        (319, False, True, "take turns"),
        (208, False, True, "take turns"),
        (207, False, False, "does not fit"),
    ],
)
def test_what_fits(free, together, fits, said):
    chosen = plan(free)
    assert (chosen.fits_together, chosen.fits) == (together, fits)
    assert said in chosen.verdict and "\n" not in chosen.verdict


def test_the_largest_batch():
    assert plan(345).largest_batch("caption", together=True) == 4
    assert plan(345).largest_batch("caption", together=False) == 24
    assert plan(345).largest_batch("rewrite", together=True) == 40
    assert plan(100).largest_batch("caption", together=True) == 0


def test_what_does_not_fit_alone_is_refused_with_what_to_do():
    plan(206).check("rewrite")  # a batch of one fits, and larger ones shrink
    for role, free in (("rewrite", 205), ("caption", 109)):
        with pytest.raises(
            ValueError, match=r"in fp16 needs about .* of GPU memory, got .*; use int4"
        ) as caught:
            plan(free).check(role)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, language_model):
    return {"caption": tiny_vlms.llava_next(tmp_path_factory.mktemp("llava")), "rewrite": language_model}


def free_for(folders, together):
    """Bytes that suffice for both models, or for each alone."""
    choices = {role: ModelChoice(folder, "fp32", 2) for role, folder in folders.items()}
    needs = plan_memory(choices, 0)
    both, alone = needs.together_bytes, max(needs.alone_bytes(role) for role in choices)
    assert alone < both
    return both if together else both - 1


def play(folders, free, rounds=2):
    """Captions and rewrites in turn with real models; returns what came out and who was released when."""
    choices = {role: ModelChoice(folder, "fp32", 2) for role, folder in folders.items()}
    residency = Residency(choices, lambda: free)
    captioning = Captioning(folders["caption"], "fp32", 2, residency)
    editing = QueryEditing(folders["rewrite"], "fp32", 2, residency)
    out, present = [], []
    for number in range(rounds):
        captions = captioning.caption(tiny_vlms.pictures()[:2])
        present.append(("_vision_language" in captioning.__dict__, "_loaded" in editing._model.__dict__))
        out.append((captions, editing.rewrite([f"a dog {number}", "a cat"], captions)))
        present.append(("_vision_language" in captioning.__dict__, "_loaded" in editing._model.__dict__))
    return out, present


def test_models_take_turns_only_where_both_do_not_fit_and_say_the_same(folders, caplog):
    with caplog.at_level(logging.INFO):
        together, present = play(folders, free_for(folders, together=True))
    assert present == [(True, False), (True, True), (True, True), (True, True)]
    assert sum("captioner and rewriter fit together" in message for message in caplog.messages) == 1
    caplog.clear()
    with caplog.at_level(logging.INFO):
        in_turns, present = play(folders, free_for(folders, together=False))
    assert present == [(True, False), (False, True), (True, False), (False, True)]
    assert sum("they take turns" in message for message in caplog.messages) == 1
    assert in_turns == together
    assert play(folders, None)[1] == [(True, False), (True, True), (True, True), (True, True)]


def test_a_model_that_does_not_fit_is_refused_when_it_is_needed_and_not_before(folders):
    choices = {
        "caption": ModelChoice(folders["caption"], "fp32", 2),
        "rewrite": ModelChoice("/no/such", "fp32", 2),
    }
    least = plan_memory({"caption": choices["caption"]}, 0).footprints["caption"]
    enough = least.weight_bytes + least.working_bytes(1)
    assert Captioning(folders["caption"], "fp32", 2, Residency(choices, lambda: enough)).caption(
        tiny_vlms.pictures()[:1]
    )
    small = Captioning(folders["caption"], "fp32", 2, Residency(choices, lambda: enough - 1))
    with pytest.raises(ValueError, match="in fp32 needs about"):
        small.caption(tiny_vlms.pictures()[:1])
    assert "_vision_language" not in small.__dict__


PRESET_MEMORY = {"rtx3090-int8": 24, "rtx3090-int4": 24, "fp16-48gb": 48, "rtx3060-int4": 12, "cpu-small": 6}


@pytest.mark.parametrize(("preset", "gib"), PRESET_MEMORY.items())
def test_the_presets_fit_the_memory_they_are_for(preset, gib, capsys):
    print_plan(PlanSettings(preset=preset, gpu_memory=gib))
    said = capsys.readouterr().out
    verdict = said.splitlines()[-1]
    assert ("they take turns" if preset == "rtx3060-int4" else "fit together") in verdict
    for key in ("caption_model", "rewrite_model"):
        assert PRESETS[preset][key] in said


def test_fp16_is_refused_on_a_small_gpu(capsys):
    with pytest.raises(
        ValueError, match=r"llava-v1.6-mistral-7b-hf in fp16 needs about 1.\.. GiB of GPU memory, got"
    ):
        print_plan(PlanSettings(preset="fp16-48gb", gpu_memory=12))
    assert "does not fit in" in capsys.readouterr().out


def test_single_settings_override_the_presets(capsys):
    print_plan(
        PlanSettings(
            preset="fp16-48gb", gpu_memory=12, quantization="int4", caption_batch=1,
            rewrite_model="Qwen/Qwen2.5-0.5B-Instruct",
        )
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "Qwen/Qwen2.5-0.5B-Instruct in int4" in said and "a batch of 1:" in said
    assert "fit together" in said


def test_without_a_gpu_one_has_to_be_named():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert free_gpu_bytes() is None
    with pytest.raises(ValueError, match="no GPU found; say for which one to plan, in GiB: --gpu-memory 24"):
        print_plan(PlanSettings())


def test_the_free_memory_counts_what_the_allocator_holds(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda gpu: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda gpu: 100)
    assert free_gpu_bytes() == int(2 * 1400 * 0.95)


def test_the_search_model_is_counted_by_its_configuration():
    from BLIP.model import BlipEncoder

    model = BlipEncoder.open(PROJECT / "BLIP/weights/demo").model
    held = {id(one): one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers())}
    position_numbers = 64 * 8  # of the transformers model that is planned for; the towers need none
    assert blip_bytes("BLIP/weights/demo") == sum(held.values()) + position_numbers
    assert blip_bytes("BLIP/chatir_weights.ckpt") == blip_bytes("Salesforce/blip-itm-base-coco")
    assert 0.8 * GIB < blip_bytes("Salesforce/blip-itm-base-coco") < 0.9 * GIB


def test_a_gguf_model_is_not_quantised_again():
    with pytest.raises(ValueError, match="stored as gguf already"):
        plan_memory({"rewrite": ModelChoice("smollm2-135m-instruct", "int4", 1)}, GIB)


def test_a_blip_without_a_configuration_counts_as_blip_base(tmp_path):
    (tmp_path / "captioner.pth").write_bytes(b"")
    for path in (tmp_path, tmp_path / "captioner.pth"):
        (planned,) = plan_memory({"caption": ModelChoice(str(path), "fp32", 1)}, GIB).footprints.values()
        assert planned.parameters == 223_971_644


def test_the_command_prints_the_plan_or_the_reason():
    command = [sys.executable, "-m", "generation.memory_plan", "--preset", "cpu-small", "--gpu-memory", "1"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "HuggingFaceTB/SmolVLM-256M-Instruct" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: ")
