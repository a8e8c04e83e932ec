"""`make check-weights`: uses every model, and fails where weights are not what they should be."""

import json
import re
import shutil
from pathlib import Path

import pytest

from experiments.check_weights import (
    PICTURE,
    Check,
    CheckSettings,
    Use,
    check_weights,
    format_checks,
)
from index.decode import open_image
from settings import PRESETS

PROJECT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures" / "blip"


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


def test_weights_that_do_not_know_the_picture_are_refused(demo, tmp_path):
    for name in ("itm.pth", "vocab.txt"):
        shutil.copy(FIXTURES / name, tmp_path)
    heads = {"model_type": "blip", "num_attention_heads": 2, "vision": {"heads": 3}}
    (tmp_path / "config.json").write_text(json.dumps(heads))
    settings = CheckSettings(**demo, blip=str(tmp_path))
    with pytest.raises(ValueError, match=r": 'there is a dog with a kite .* no trained retrieval model"):
        check_weights(settings)


def test_missing_weights_are_named(demo):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*chatir_weights.ckpt"):
        check_weights(CheckSettings(**demo | {"blip": "no/chatir_weights.ckpt"}))
    with pytest.raises(ValueError, match="the model /no/such cannot be opened"):
        check_weights(CheckSettings(**demo | {"caption_model": "/no/such"}))


def test_the_table_has_a_row_a_model():
    table = format_checks({"search": Check("blip", "said", Use(1.234, 0.5, "3.00 GiB (GPU)"))})
    cells = [cell.strip() for cell in table.splitlines()[2].strip("|").split("|")]
    assert cells == ["search", "blip", "said", "1.23", "0.50", "3.00 GiB (GPU)"]


def test_presets_are_known_and_make_passes_them_on():
    with pytest.raises(ValueError, match="preset: got 'nosuch', expected one of demo"):
        CheckSettings("nosuch")
    assert CheckSettings().preset in PRESETS
    recipe = (PROJECT / "Makefile").read_text(encoding="utf-8").split("check-weights:")[1].splitlines()[1]
    assert recipe.strip() == "$(RUN) -m experiments.check_weights --preset $(PRESET)"


def test_the_picture_is_there():
    assert open_image(PICTURE).size == (448, 448)
