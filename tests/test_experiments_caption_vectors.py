"""Vectors of captions beside an index: made once, refused when stale, and never by the user's own encoder."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import IMAGE_IDS, KnownCaptions, WordEncoder, caption_of
from small_runs import draw_noise, model_folder, picture_folder

from evaluation.runs import stream_rounds
from experiments.caption_vectors import embed_captions, embed_dataset_captions
from experiments.open_index import embed_images
from experiments.own_models import OwnModels
from experiments.run import run_experiment
from experiments.setup import Setup
from feedback.calibration import Calibration
from files import own_sha256, write_json
from index.caption_vectors import open_caption_vectors
from index.folder import write_folder
from playground import open_dataset
from retriever import Retriever
from settings import EmbeddingSettings, ExperimentSettings


class Captions(KnownCaptions):
    captioner_name = "known"

    def counts(self):
        return f"{len(self.asked)} calls"


class Meaning(WordEncoder):
    """Another encoder than the retriever's, that counts what it reads."""

    def __init__(self):
        super().__init__()
        self.read = []

    def encode_texts(self, texts):
        self.read += texts
        return super().encode_texts(texts)[:, ::-1]


def index_in(folder, ids):
    encoder = WordEncoder()
    write_folder(
        folder, ids, [encoder.encode_texts(ids)], dimension=encoder.dimension, model_name="words",
        model_fingerprint=encoder.fingerprint, dataset="words", image_folder=Path(),
    )  # fmt: skip
    return Retriever.open(encoder, folder)


def test_captions_are_encoded_once_and_again_for_another_index_captioner_or_encoder(tmp_path):
    captions, encoder = Captions(), Meaning()
    made = embed_captions(index_in(tmp_path, IMAGE_IDS), tmp_path, captions, encoder, "meaning-1")
    assert made.vectors == pytest.approx(Meaning().encode_texts(list(map(caption_of, IMAGE_IDS))), abs=1e-6)
    asked, read = len(captions.asked), len(encoder.read)
    again = embed_captions(index_in(tmp_path, IMAGE_IDS), tmp_path, captions, encoder, "meaning-1")
    assert np.array_equal(again.vectors, made.vectors) and again.calibration == made.calibration
    assert (len(captions.asked), len(encoder.read)) == (asked, read)
    for captioner, sentence_encoder in (("another", "meaning-1"), ("known", "meaning-2")):
        with pytest.raises(ValueError, match="of another index or other models"):
            open_caption_vectors(tmp_path, captioner, sentence_encoder)
    retriever = index_in(tmp_path, IMAGE_IDS[1:])
    with pytest.raises(ValueError, match="of another index or other models: index_sha256"):
        open_caption_vectors(tmp_path)
    assert len(embed_captions(retriever, tmp_path, captions, encoder, "meaning-1").vectors) == 149


def test_a_kill_between_the_files_leaves_no_captions_and_damage_is_an_error(tmp_path):
    embed_captions(index_in(tmp_path, IMAGE_IDS), tmp_path, Captions(), Meaning(), "meaning-1")
    np.save(tmp_path / "caption_vectors.npy", np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"caption_vectors.npy: damaged; make them anew"):
        open_caption_vectors(tmp_path)
    (tmp_path / "captions.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no vectors of captions"):
        open_caption_vectors(tmp_path)


def test_an_image_without_a_caption_is_like_no_other(tmp_path):
    class Some(Captions):
        def captions_of(self, image_ids):
            return ["" if image_id == IMAGE_IDS[3] else caption_of(image_id) for image_id in image_ids]

    made = embed_captions(index_in(tmp_path, IMAGE_IDS), tmp_path, Some(), Meaning(), "meaning-1")
    assert not made.vectors[3].any() and np.linalg.norm(made.vectors[[2, 4]], axis=1) == pytest.approx([1, 1])


class Colours:
    """Encoder and captioner of the pictures of noise: three mean colours."""

    def encode_texts(self, texts):
        return np.float32([[len(text), text.count("a") + 1, 3] for text in texts])

    def encode_images(self, images):
        return np.float32([np.asarray(image).reshape(-1, 3).mean(axis=0) + 1 for image in images])

    def caption(self, images):
        return [" ".join(f"{value:.0f}" for value in row) for row in self.encode_images(images)]


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = picture_folder(tmp_path / "pictures")
    return ExperimentSettings(
        "image_folder", root, strategy="bayes-captions", rounds=2, output=tmp_path / "run", queries=10
    )


def test_a_run_with_models_of_ones_own_calibrates_records_it_and_keeps_judge_and_judged_apart(settings):
    model, reads, judges = Colours(), Meaning(), WordEncoder()
    with pytest.raises(ValueError, match="by which the system compares captions too"):
        run_experiment(settings, OwnModels(model, model, None, reads, reads))
    run_experiment(settings, OwnModels(model, model, None, reads, judges))
    (folder,) = settings.root.glob("index-all-*")
    saved = json.loads((settings.output / "settings.json").read_text())
    described = json.loads((folder / "captions.json").read_text())
    assert json.loads(saved["calibration"]) == described["calibration"]
    assert saved["captions_sha256"] == described["captions_sha256"]
    described["calibration"]["prior"] *= 2
    write_json(folder / "captions.json", described | {"own_sha256": own_sha256(described)})
    with pytest.raises(ValueError, match="holds a run with other settings or data"):
        run_experiment(settings, OwnModels(model, model, None, reads, judges))


def test_without_captions_the_command_is_named_and_bayes_takes_the_defaults(settings, tmp_path):
    blip = str(model_folder(tmp_path / "blip", "itm.pth"))
    named = {"encoder": blip, "caption_model": blip, "image_size": 32, "quantization": "fp32"}
    settings = dataclasses.replace(settings, **named, user="reference").resolved()
    embed_images(open_dataset("image_folder", settings.root, "all"), settings)
    setup = Setup.open(settings)
    with pytest.raises(ValueError, match=r"no vectors of captions.*embed_image_as_faiss.py .*--captions"):
        setup.identity()
    bayes = Setup.open(dataclasses.replace(settings, strategy="bayes"))
    assert bayes.calibration == Calibration() and bayes.identity()["captions_sha256"] is None


def test_one_encoder_for_user_and_system_is_refused_by_name(settings):
    same = dataclasses.replace(settings, user_model="all-minilm-l6-v2", caption_encoder="all-minilm-l6-v2")
    with pytest.raises(ValueError, match="user_model: got all-minilm-l6-v2, by which the system compares"):
        run_experiment(same, OwnModels(Colours(), Colours()))
    assert EmbeddingSettings("demo").caption_encoder != ExperimentSettings("demo").user_model


def test_pictures_and_captions_are_searched_together_in_every_round(settings):
    model = Colours()
    own = OwnModels(model, model, None, Meaning(), WordEncoder())
    plain = replace_output(settings, strategy="original", name="plain")
    fused = replace_output(settings, strategy="original", name="fused", search_captions=True)
    run_experiment(plain, own)
    run_experiment(fused, own)
    scores = [
        [record.scores for record in stream_rounds(one.output / "rounds.jsonl")] for one in (plain, fused)
    ]
    assert len(scores[0]) == len(scores[1]) > 0 and scores[0][0] != scores[1][0]
    setup = Setup.open(fused.resolved(), own=own)
    captions = setup.caption_vectors
    (query,) = setup.retriever.encode_texts(["a picture"])
    assert captions.calibration["share"] == 0.2
    assert len(query) == 3 + captions.vectors.shape[1] and np.linalg.norm(query[:3]) == pytest.approx(
        0.8**0.5, abs=1e-5
    )
    assert json.loads((fused.output / "settings.json").read_text())["captions_sha256"]
    assert fused.run_name() != plain.run_name()


def replace_output(settings, name, **changes):
    return dataclasses.replace(settings, output=settings.output.with_name(name), **changes)


def test_calibration_on_another_splits_people_is_kept_and_says_so(tmp_path):
    names = [f"{number}.jpg" for number in range(24)]
    draw_noise([tmp_path / "Images" / name for name in names])
    lines = [f"{name},a picture {number} of {word}\n" for number, name in enumerate(names) for word in "ab"]
    (tmp_path / "captions.txt").write_text("image,caption\n" + "".join(lines))
    for split, listed in (("test", names[:12]), ("dev", names[12:])):
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text("\n".join(listed))
    model = Colours()
    own = OwnModels(model, model, None, Meaning())
    test = EmbeddingSettings("flickr30k", tmp_path, split="test", captions=True)
    on_people = dataclasses.replace(test, calibration_split="dev")
    with pytest.raises(FileNotFoundError, match="--split dev"):
        embed_dataset_captions(on_people, own)
    embed_dataset_captions(dataclasses.replace(test, split="dev"), own)
    alone = embed_dataset_captions(test, own)
    assert alone.calibrated_on == "the system's captions" and alone.calibration["share"] == 0.2
    made = embed_dataset_captions(on_people, own)
    assert made.calibrated_on == "people's captions of split dev"
    assert np.array_equal(made.vectors, alone.vectors) and made.calibration != alone.calibration
    assert embed_dataset_captions(test, own).calibration == made.calibration  # not undone by the way
    with pytest.raises(ValueError, match="calibration_split: got 'test', the split itself"):
        embed_dataset_captions(dataclasses.replace(test, calibration_split="test"), own)
