"""A stopped run goes on with the same pictures, queries and models, and is refused with any other."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_language_model
from PIL import Image as PILImage

from evaluation.runs import read_rounds
from experiments.dialogues import run_dialogues
from experiments.identity import sampled_sha256
from experiments.own_models import OwnModels
from experiments.run import run_experiment
from files import write_json
from settings import ExperimentSettings
from tests.small_runs import write_captions
from tests.test_experiments_dialogues import settings_of as dialogue_settings_of
from tests.test_experiments_dialogues import visdial  # noqa: F401  fixture

COLOURS = ("red", "green", "blue")


class Colours:
    """Texts by the colours they name, pictures by their mean colour."""

    def encode_texts(self, texts):
        return np.array([[1 + (colour in text) for colour in COLOURS] for text in texts])

    def encode_images(self, images):
        return np.array([1 + np.asarray(image).mean(axis=(0, 1)) for image in images])

    def caption(self, images):
        return [f"mostly {COLOURS[np.argmax(row)]}" for row in self.encode_images(images)]


def draw(folder, names, seed=0):
    random = np.random.default_rng(seed)
    for name in names:
        PILImage.new("RGB", (20, 16), tuple(map(int, random.integers(0, 256, 3)))).save(folder / name)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = [f"{number:02}.png" for number in range(24)]
    draw(folder, names)
    said = {name: [f"something {COLOURS[n % 3]} {place}" for place in "01"] for n, name in enumerate(names)}
    write_captions(folder, said)
    return folder


@pytest.fixture
def settings(pictures, tmp_path):
    return ExperimentSettings(
        "image_folder", pictures, user="reference", strategy="append", rounds=2, queries=6,
        caption_numbers=("0",), output=tmp_path / "run",
    )  # fmt: skip


def stop_in_the_midst(folder):
    """Leaves what a kill leaves: some records of the first round."""
    for path in folder.glob("*rounds.jsonl"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))


def repaint(folder):
    draw(folder, ["03.png"], seed=2)


def edit_query(folder):
    path = folder / "images_captions.csv"
    path.write_text(path.read_text().replace("something red 0", "anything red 0", 1))


CHANGES = [
    (repaint, "image_files_sha256: '.{8}' there, '.{8}' now.*embed changed pictures again"),
    (edit_query, "image_captions_sha256: '.{8}' there, '.{8}' now, queries_sha256: '.{8}' there, '.{8}' now"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
def test_a_run_over_other_pictures_or_words_is_refused(settings, pictures, change, message):
    own = OwnModels(Colours(), Colours())
    folder = run_experiment(settings, own)
    whole = read_rounds(folder / "rounds.jsonl")
    stop_in_the_midst(folder)
    run_experiment(settings, own)
    assert read_rounds(folder / "rounds.jsonl") == whole
    stop_in_the_midst(folder)
    kept = (folder / "rounds.jsonl").read_bytes()
    change(pictures)
    with pytest.raises(ValueError, match=f"other settings or data .*{message}"):
        run_experiment(settings, own)
    assert (folder / "rounds.jsonl").read_bytes() == kept
    run_experiment(replace(settings, restart=True), own)


def test_dialogues_over_other_pictures_are_refused(visdial, tmp_path):  # noqa: F811
    root = tmp_path / "visdial"
    shutil.copytree(visdial, root, ignore=shutil.ignore_patterns("index-*"))
    stop_in_the_midst(run_dialogues(dialogue_settings_of(root, tmp_path / "run")))
    names = [f"unlabeled2017/{number}.jpg" for number in range(14)]
    write_json(root / "space.json", names)
    with pytest.raises(ValueError, match="image_count: 12 there, 14 now"):
        run_dialogues(dialogue_settings_of(root, tmp_path / "run"))


def test_other_weights_or_prompts_under_the_same_name_are_refused(settings, tmp_path, monkeypatch):
    """The language model's are changed in place, the sentence encoder's too."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    rewriter, words = tmp_path / "rewriter", tmp_path / "words"
    make_language_model(rewriter)
    words.mkdir()
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *COLOURS, "something", "0", "1"]
    (words / "vocab.txt").write_text("\n".join(entries))
    BertTokenizerFast(str(words / "vocab.txt")).save_pretrained(words)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(entries), **shape)).save_pretrained(words)
    settings = replace(
        settings, strategy="rewrite", user="independent", rewrite_model=str(rewriter), user_model=str(words),
        quantization="fp32", rounds=1,
    )  # fmt: skip
    own = OwnModels(Colours(), Colours())
    folder = run_experiment(settings, own)
    run_experiment(settings, own)
    for model, name in ((rewriter, "rewriter"), (words, "sentence_encoder")):
        weights = model / "model.safetensors"
        before = weights.read_bytes()
        weights.write_bytes(before[:-4] + b"\x00\x00\x00\x3f")
        stop_in_the_midst(folder)
        with pytest.raises(ValueError, match=rf"\({name}: '.*' there, '.*' now\)"):
            run_experiment(settings, own)
        weights.write_bytes(before)
    monkeypatch.setattr("experiments.setup.PROMPTS", "edited")
    with pytest.raises(
        ValueError, match=r"\(rewriter: '.*' there, '.* prompts edited, transformers \d+' now"
    ):
        run_experiment(settings, own)


@pytest.mark.parametrize("size", [0, 1, 8192, 300_000])
def test_both_ends_and_the_size_of_a_file_count(tmp_path, size):
    content = bytearray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes())
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(content)
    same = sampled_sha256(tmp_path / "a", 2)
    assert sampled_sha256(tmp_path / "b", 2) == same
    changed = [content + b"x", *(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
                                 for place in ((0, size - 1) if size else ()))]  # fmt: skip
    for other in changed:
        (tmp_path / "b").write_bytes(other)
        assert sampled_sha256(tmp_path / "b", 2) != same
    assert sampled_sha256(tmp_path / "none", 2) == "unreadable" != same
