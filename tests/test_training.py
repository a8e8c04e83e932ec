"""Training a tiny BLIP: it opens, a resumed run is the uninterrupted one, other settings are refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from BLIP import train_retrieval, training_loop
from BLIP.captioner import BlipCaptioner
from BLIP.model import BlipEncoder
from BLIP.train_retrieval import TrainingSettings, train
from BLIP.training_data import COLUMNS, MIN_SHARE, PatchTargets, WordTargets, make_batch
from BLIP.training_losses import hard_negatives

FIXTURES = Path(__file__).parent / "fixtures" / "blip"
WORDS = ("red", "green", "blue", "dark", "bright", "picture", "square", "colour", "small", "wide")
COUNT = 24


@pytest.fixture(autouse=True, scope="module")
def short_log_and_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_loop, "LOG_EVERY", 5)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    lines = ["image_name,comment_number,comment"]
    for number in range(COUNT):
        Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        for place in range(3):
            words = " ".join(random.choice(WORDS, 4, replace=False))
            lines.append(f"{number}.png,{place},a picture of {words}")
    (folder / "images_captions.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def settings(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    return TrainingSettings(
        dataset="image_folder",
        root=root,
        output=folder / "whole",
        split="all",
        dev_split="all",
        steps=16,
        batch_size=8,
        learning_rate=0.02,  # the warm-up is longer than the run
        image_size=32,
        width=32,
        vision_layers=1,
        text_layers=1,
        checkpoint_every=5,
        head_steps=8,
    )


@pytest.fixture(scope="module")
def trained(settings):
    return train(settings)


def test_the_trained_folder_opens(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"model.safetensors", "config.json", "vocab.txt", "training_log.jsonl"} <= names
    assert not [name for name in names if "unfinished" in name or "building" in name]
    encoder = BlipEncoder.open(trained)
    rows = encoder.encode_texts(["a red picture", "something blue"])
    assert rows.shape == (2, 256) and encoder.image_size == 32
    picture = Image.new("RGB", (32, 32), "red")
    assert encoder.encode_images([picture]).shape == (1, 256)
    assert len(BlipCaptioner.open(trained).caption([picture])) == 1


def rows_of_log(folder):
    rows = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("stage") == "towers"]


def test_training_lowers_the_losses_and_logs_them(trained):
    rows = rows_of_log(trained)
    assert [row["step"] for row in rows] == [5, 10, 15, 16]
    log = [json.loads(line) for line in (trained / "training_log.jsonl").read_text().splitlines()]
    recalls = [row["recall@10"] for row in log if "recall@10" in row]
    assert len(recalls) == 4 and recalls[0].keys() == {"0", "1", "2"}
    assert ["itm" in row for row in rows] == [False, False, True, True]  # joins at step 11.2
    for name in ("lm", "words", "patches"):
        assert rows[-1][name] < rows[0][name]


def test_a_run_killed_at_any_time_ends_with_the_weights_of_an_uninterrupted_one(
    trained, settings, monkeypatch
):
    resumed = replace(settings, output=settings.output.with_name("resumed"))
    resumed.output.mkdir()
    shutil.copy(trained / "vocab.txt", resumed.output)  # learning it breaks ties by chance, once a folder
    # Seed and step: before and after matching joins, and in the second stage.
    for seed, kill_at, file in ((0, 7, "towers"), (0, 13, "towers"), (1, 7, "heads")):

        def killed(*arguments, kill=(seed, kill_at)):
            if arguments[-2:] == kill:
                raise KeyboardInterrupt
            return make_batch(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(train_retrieval, "make_batch", killed)
            with pytest.raises(KeyboardInterrupt):
                train(resumed)
        assert torch.load(resumed.output / f"{file}.pt")["step"] == kill_at // 5 * 5
    train(resumed)
    whole, again = (load_file(folder / "model.safetensors") for folder in (trained, resumed.output))
    assert whole.keys() == again.keys()
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []
    assert (trained / "config.json").read_text() == (resumed.output / "config.json").read_text()


def test_patches_learn_regions_and_the_second_stage_can_leave_the_captioner_alone(
    trained, settings, tmp_path
):
    lines = [f"{number}.png,thing {number % 3},0,0,0.5,1" for number in range(COUNT)]
    regions = tmp_path / "regions.csv"
    regions.write_text("\n".join(["image_name,label,left,top,right,bottom", *lines]))
    output = tmp_path / "out"
    train(replace(settings, output=output, regions=regions, head_captioner=False, head_images=10))
    losses = [row["regions"] for row in rows_of_log(output)]
    assert 0 < losses[-1] < losses[0]
    assert len(np.load(output / "states.npy")) == 10 and len(np.load(trained / "states.npy")) == COUNT
    for folder, is_head in (
        (trained, "text_decoder|crossattention|itm_head"),
        (output, "crossattention|itm_head"),
    ):
        towers, heads = (torch.load(folder / f"{stage}.pt")["model"] for stage in ("towers", "heads"))
        moved = {name for name, tensor in heads.items() if not torch.equal(tensor, towers[name])}
        assert "towers.itm_head.weight" in moved
        assert ("text_decoder.cls.predictions.bias" in moved) == (folder == trained)
        assert not [name for name in moved if not re.search(is_head, name)]


def test_other_settings_in_the_same_folder_are_refused(trained, settings):
    before = (trained / "training_settings.json").read_bytes()
    weights = (trained / "model.safetensors").read_bytes()
    message = (
        "holds a run with other settings .width: 32 there, 64 now, seed: 0 there, 1 now.*another --output"
    )
    with pytest.raises(ValueError, match=message):
        train(replace(settings, seed=1, width=64))
    assert (trained / "training_settings.json").read_bytes() == before
    train(settings)  # a finished run is not trained on
    assert (trained / "model.safetensors").read_bytes() == weights


def test_fine_tuning_starts_from_a_checkpoint(settings, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    shutil.copy(FIXTURES / "itm.pth", start)
    shutil.copy(FIXTURES / "vocab.txt", start)
    heads = {"num_attention_heads": 2, "vision": {"heads": 3}}
    (start / "config.json").write_text(json.dumps(heads))
    tuned = replace(
        settings, start=start / "itm.pth", output=tmp_path / "tuned", image_size=48, steps=4, head_steps=2
    )
    train(tuned)
    before, after = BlipEncoder.open(start), BlipEncoder.open(tuned.output)
    texts = ["a red picture", "bright and wide"]
    closeness = (before.encode_texts(texts) * after.encode_texts(texts)).sum(axis=1)
    assert (closeness > 0.98).all() and (closeness < 1 - 1e-9).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 25}, "24 captioned images do not fill a batch of 25"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"image_size": 40}, "image_size 40 is no multiple of the patch size, 16"),
        ({"head_images": 7}, "head_images 7 do not fill a batch of 8"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(replace(settings, output=tmp_path / "out", **changes))


def test_a_broken_picture_is_refused_every_time(settings, root, tmp_path):
    shutil.copytree(root, tmp_path / "broken")
    (tmp_path / "broken" / "3.png").write_bytes(b"no picture")
    broken = replace(settings, root=tmp_path / "broken", output=tmp_path / "out")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1 pictures cannot be read, first 3\.png"):
            train(replace(broken, steps=1))


def test_batches_are_the_same_for_the_same_step_and_cover_an_epoch():
    captions = [[f"caption {number} {place}" for place in range(3)] for number in range(20)]
    batches = [make_batch(captions, WORDS, 6, seed=1, step=step) for step in range(6)]
    assert batches == [make_batch(captions, WORDS, 6, seed=1, step=step) for step in range(6)]
    for epoch in (batches[:3], batches[3:]):
        rows = [row for batch in epoch for row in batch.rows]
        assert len(rows) == len(set(rows)) == 18
    assert [batch.rows for batch in batches[:3]] != [batch.rows for batch in batches[3:]]
    assert batches != [make_batch(captions, WORDS, 6, seed=2, step=step) for step in range(6)]
    for batch in batches:
        for row, query, caption in zip(batch.rows, batch.queries, batch.captions, strict=True):
            assert f"caption {row} " in query.replace(",", " ") or f" {row} " in f" {query} "
            assert caption in captions[row]


def test_word_targets_weigh_rare_words_and_sum_to_one():
    captions = [["a dog", "the dog"], ["a cat"], ["a dog and a cat"], ["a horse"]]
    targets = WordTargets(captions, minimum=2)
    assert targets.words == ["a", "cat", "dog"]
    rows = targets.rows([2, 0, 3])
    assert rows[0].tolist() == pytest.approx([0, 0.5, 0.5])  # "a" is everywhere and weighs nothing
    assert rows[1].tolist() == pytest.approx([0, 0, 1])
    assert rows[2].tolist() == [0, 0, 0]


def test_hard_negatives_stay_on_the_device_of_the_model():
    texts, features = torch.empty(4, 16, device="meta"), torch.empty(9, 16, device="meta")
    ids = torch.empty(4, 12, dtype=torch.long, device="meta")
    # The meta device refuses tensors of the CPU, as a GPU does.
    drawn = hard_negatives(texts, features, torch.arange(4, device="meta"), ids)
    assert [(part.device.type, part.shape) for part in drawn] == [("meta", (4,))] * 2


# Which label a patch shows

HEADER = ",".join(COLUMNS)


def written(tmp_path, *lines, header=HEADER):
    path = tmp_path / "regions.csv"
    path.write_text("\n".join((header, *lines)) + "\n", encoding="utf-8")
    return path


def test_a_patch_takes_the_label_that_covers_most_of_it(tmp_path):
    path = written(
        tmp_path,
        "b.png,cat,0,0,0.5,0.5",
        "a.png,dog,0,0,0.5,1",
        "elsewhere.png,horse,0,0,1,1",
        "b.png,dog,0.5,0.5,1,1",
        f"barely.png,dog,0,0,{0.5 + MIN_SHARE / 2 - 0.01},1",
        f"enough.png,dog,0,0,{0.5 + MIN_SHARE / 2 + 0.01},1",
    )
    targets = PatchTargets(path, ["a.png", "b.png", "bare.png", "barely.png", "enough.png"])
    assert targets.labels == ("cat", "dog")
    assert targets.rows([0, 1, 2], side=2).tolist() == [[2, 0, 2, 0], [1, 0, 0, 2], [0, 0, 0, 0]]
    assert targets.rows([3, 4], side=2).tolist() == [[2, 0, 2, 0], [2, 2, 2, 2]]
    assert targets.rows([1], side=3)[0, 4] in (1, 2)  # the middle patch shows a quarter of each


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        (HEADER, "b.png,dog,0,0,1,1", "no box for the 1 images"),
        (HEADER, "a.png,dog,0,0,1,wide", "line 2: could not convert"),
        (HEADER, "a.png,dog,0,0", "line 2: "),
        ("image_name,label", "a.png,dog", "expected the columns image_name, label, left, top, right, bottom"),
    ],
)
def test_a_file_of_no_use_is_refused(tmp_path, header, line, message):
    with pytest.raises(ValueError, match=message):
        PatchTargets(written(tmp_path, line, header=header), ["a.png"])
