"""BLIP checkpoints of the hub: found in the hub's cache, and one line when the hub cannot be reached."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from BLIP.hub import fetch_checkpoint, is_hub_id
from BLIP.model import BlipEncoder

FIXTURES = Path(__file__).parent / "fixtures" / "blip"
CONFIG = '{"model_type": "blip", "num_attention_heads": 2, "vision": {"heads": 3}}'


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("Salesforce/blip-itm-base-coco", True),
        ("me/my_blip.v2", True),
        ("BLIP/chatir_weights.ckpt", False),
        ("BLIP/weights/demo", False),
        ("weights", False),
        ("/a/b", False),
        ("", False),
    ],
)
def test_hub_ids_are_told_from_paths(name, is_one):
    assert is_hub_id(name) == is_one


@pytest.fixture
def offline_cache(tmp_path, monkeypatch):
    """The hub's cache in its own layout; the hub itself out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def add(hub_id, **files):
        folder = tmp_path / f"models--{hub_id.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
        for name, source in files.items():
            shutil.copy(source, snapshot / name)
        (snapshot / "config.json").write_text(CONFIG)
        return snapshot

    return add


def test_a_model_of_the_hub_opens(offline_cache):
    files = {"pytorch_model.bin": FIXTURES / "itm.pth", "vocab.txt": FIXTURES / "vocab.txt"}
    snapshot = offline_cache("some/blip", **files)
    path = fetch_checkpoint("some/blip")
    assert path == snapshot / "pytorch_model.bin"
    rows = BlipEncoder.open(path).encode_texts(["a dog"])
    there = BlipEncoder.open(FIXTURES / "itm.pth", config=snapshot / "config.json")
    assert (rows == there.encode_texts(["a dog"])).all()


def test_safetensors_come_first(offline_cache):
    files = dict.fromkeys(("model.safetensors", "pytorch_model.bin", "vocab.txt"), FIXTURES / "vocab.txt")
    snapshot = offline_cache("some/blip", **files)
    assert fetch_checkpoint("some/blip") == snapshot / "model.safetensors"


@pytest.mark.parametrize("files", [{}, {"vocab.txt": FIXTURES / "vocab.txt"}])
def test_what_cannot_be_fetched_is_said_in_one_line(offline_cache, files):
    offline_cache("some/blip", **files)
    with pytest.raises(
        ValueError, match="some/blip is no path here and cannot be fetched from the hub"
    ) as caught:
        fetch_checkpoint("some/blip")
    assert "\n" not in str(caught.value)
