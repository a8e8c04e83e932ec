"""`make check-weights`: uses every model, and fails where weights are not what they should be."""

import re
from pathlib import Path

import pytest
import tiny_vlms
from tiny_encoders import save_encoder

from experiments.check_weights import (
    CheckSettings,
    check_weights,
    format_checks,
)
from settings import PRESETS
from tests.small_runs import model_folder

PROJECT = Path(__file__).parent.parent


@pytest.fixture
def demo(language_model):
    """The demo's trained BLIP searches and captions; a random chat model rewrites."""
    return {"preset": "demo", "rewrite_model": language_model, "quantization": "fp32"}


def test_every_model_is_used_and_the_picture_is_known(demo, language_model):
    checks = check_weights(CheckSettings(**demo))
    assert list(checks) == ["search", "captioner", "rewriter"]
    own, others = map(float, re.findall(r"0\.\d+", checks["search"].said))
    assert own > others + 0.2
    assert "dog" in checks["captioner"].said.split()
    assert checks["captioner"].model == "BLIP/weights/demo fp32"
    assert checks["rewriter"].said and checks["rewriter"].model == f"{language_model} fp32"
    for check in checks.values():
        assert check.use.first_seconds > 0 < check.use.second_seconds
        assert re.fullmatch(r"\d+\.\d\d GiB \((process|GPU)\)|not known", check.use.peak)
    assert [line.split()[1] for line in format_checks(checks).splitlines()[2:]] == list(checks)


@pytest.mark.parametrize("preset", ["laptop", "rtx3090-modern"])
def test_presets_of_current_models_are_checked_likewise(demo, preset, tmp_path):
    captioner = tiny_vlms.BUILDERS["smolvlm2" if preset == "laptop" else "qwen3_vl"](tmp_path / "vlm")
    encoder = str(tmp_path / "siglip")
    save_encoder("siglip", encoder)  # random, but it happens to know the picture
    named = demo | {"preset": preset, "caption_model": captioner, "encoder": encoder}
    checks = check_weights(CheckSettings(**named))
    assert (checks["search"].model, checks["captioner"].model) == (encoder, f"{captioner} fp32")


def test_weights_that_do_not_know_the_picture_are_refused(demo, tmp_path):
    settings = CheckSettings(**demo, encoder=str(model_folder(tmp_path, "itm.pth")))
    with pytest.raises(ValueError, match=r": 'there is a dog with a kite .* no trained retrieval model"):
        check_weights(settings)


def test_missing_weights_are_named(demo):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*chatir_weights.ckpt"):
        check_weights(CheckSettings(**demo | {"encoder": "no/chatir_weights.ckpt"}))
    with pytest.raises(ValueError, match="the model /no/such cannot be opened"):
        check_weights(CheckSettings(**demo | {"caption_model": "/no/such"}))


def test_presets_are_known_and_make_passes_them_on():
    with pytest.raises(ValueError, match="preset: got 'nosuch', expected one of demo"):
        CheckSettings("nosuch")
    assert CheckSettings().preset in PRESETS
    recipe = (PROJECT / "Makefile").read_text(encoding="utf-8").split("check-weights:")[1].splitlines()[1]
    assert recipe.strip() == "$(RUN) -m experiments.check_weights --preset $(PRESET)"
