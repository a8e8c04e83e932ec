"""Other people's dialogue files, against ChatIR's and PlugIR's measures written out by hand."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import IMAGE_IDS
from PIL import Image as PILImage

from BLIP.model import BlipEncoder
from evaluation.runs import read_rounds
from experiments.dialogues import (
    Dialogue,
    play_dialogues,
    read_dialogues,
    read_search_space,
    run_dialogues,
)
from experiments.own_models import OwnModels
from settings import DialogueSettings
from tests.small_runs import draw_noise, model_folder


def dialogue(number, image_id, turns):
    return Dialogue(f"{image_id}#{number}", image_id, tuple(turns))


def play(*arguments, **options):
    return list(itertools.chain.from_iterable(play_dialogues(*arguments, **options)))


def test_every_round_is_played_although_the_target_was_found(retriever):
    exact = IMAGE_IDS[4]
    words = exact.replace("-", " ")
    rounds = play([dialogue(0, exact, [words, "a dog", "a cat"])], retriever, 5)
    assert [record.text for record in rounds] == [
        words,
        f"{words}, a dog",
        *[f"{words}, a dog, a cat"] * 3,
    ]
    assert rounds[0].target_rank == 1 and not any(record.stop for record in rounds)
    assert all(record.shown == 10 and not record.liked for record in rounds)
    alone = play([dialogue(0, exact, [words, "a dog"])], retriever, 3, alone=True)
    assert [record.text for record in alone] == [words, "a dog", "a dog"]


def test_a_stopped_evaluation_goes_on(retriever):
    dialogues = [dialogue(n, image_id, ["a dog", "red", "beach"]) for n, image_id in enumerate(IMAGE_IDS[:7])]
    whole = play(dialogues, retriever, 3, batch_size=3)
    for cut in (0, 1, 8, len(whole)):
        again = whole[:cut] + play(dialogues, retriever, 3, batch_size=2, played=whole[:cut])
        assert sorted(again, key=lambda r: (r.query_id, r.number)) == sorted(
            whole, key=lambda r: (r.query_id, r.number)
        )


# Files


def test_files_are_read_as_they_are(tmp_path):
    path = tmp_path / "dialogues.json"
    entries = [
        {"img": "unlabeled2017/1.jpg", "dialog": ["a dog", "is it red? yes"], "other": 3},
        {"img": "unlabeled2017/1.jpg", "dialog": ["something else"]},
    ]
    path.write_text(json.dumps(entries))
    assert read_dialogues(path) == [
        Dialogue("unlabeled2017/1.jpg#0", "unlabeled2017/1.jpg", ("a dog", "is it red? yes")),
        Dialogue("unlabeled2017/1.jpg#1", "unlabeled2017/1.jpg", ("something else",)),
    ]
    space = tmp_path / "space.json"
    space.write_text('["unlabeled2017/2.jpg", "unlabeled2017/1.jpg"]')
    dataset = read_search_space(space, tmp_path)
    assert [image.id for image in dataset.images] == ["unlabeled2017/2.jpg", "unlabeled2017/1.jpg"]
    assert dataset.images[0].path == tmp_path / "unlabeled2017" / "2.jpg" and dataset.folder == tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "expected a JSON list of dialogues"),
        ("[]", "with at least one"),
        ("[1", "not JSON"),
        ('["a.jpg"]', "entry 0: expected"),
        ('[{"img": "a", "dialog": ["x"]}, {"img": "b"}]', "entry 1: expected"),
        ('[{"img": "a", "dialog": ["x", " "]}]', "entry 0: a turn of 'a' is blank"),
    ],
)
def test_broken_dialogue_files_name_the_entry(tmp_path, text, message):
    path = tmp_path / "dialogues.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_dialogues(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [('["a", "b", "a"]', "'a' is listed 2 times"), ('["a", 3]', "got 3"), ("3", "a JSON list")],
)
def test_a_broken_search_space_is_refused(tmp_path, text, message):
    path = tmp_path / "space.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_search_space(path, tmp_path)


# A whole evaluation, with the tiny BLIP of the fixtures


@pytest.fixture(scope="module")
def visdial(tmp_path_factory):
    """Pictures below unlabeled2017/, a search space of some of them, two dialogues, and a checkpoint."""
    folder = tmp_path_factory.mktemp("visdial")
    names = [f"unlabeled2017/{number}.jpg" for number in range(14)]
    draw_noise([folder / name for name in names])
    (folder / "space.json").write_text(json.dumps(names[::-1][:12]))
    turns = [["a dog", "is it red? yes", "where? outside"], ["two cats"]]
    entries = [{"img": name, "dialog": said} for name, said in zip(names[3:5], turns, strict=True)]
    (folder / "dialogues.json").write_text(json.dumps(entries))
    model_folder(folder / "blip", "itm.pth")
    return folder


def settings_of(folder, output, **changes):
    return DialogueSettings(
        root=folder, encoder=str(folder / "blip"), dialogues=folder / "dialogues.json",
        search_space=folder / "space.json", output=output, **changes,
    )  # fmt: skip


def test_a_whole_evaluation_its_repetition_and_its_refusal(visdial, tmp_path, capsys):
    folder = run_dialogues(settings_of(visdial, tmp_path / "run"))
    table = capsys.readouterr().out
    assert "Hits@10" in table and "BRI" in table and len(table.splitlines()) == 2 + 3
    names = json.loads((visdial / "space.json").read_text())
    encoder = BlipEncoder.open(visdial / "blip")
    vectors = encoder.encode_images([PILImage.open(visdial / name) for name in names]).astype(np.float64)
    ranks = np.empty((3, 2))
    for column, entry in enumerate(json.loads((visdial / "dialogues.json").read_text())):
        for number in range(3):
            text = ", ".join(entry["dialog"][: number + 1])
            scores = vectors @ encoder.encode_texts([text])[0].astype(np.float64)
            ranks[number, column] = 1 + sum(scores > scores[names.index(entry["img"])])
    measures = json.loads((folder / "measures.json").read_text())
    assert measures["means_per_round"]["Mean rank"] == pytest.approx(ranks.mean(axis=1))
    assert measures["images"] == 12 and measures["queries_left_out"] == []
    assert (folder / "report.html").is_file() and (folder / "trec" / "round2.run").is_file()
    assert (visdial / "index-space" / "manifest.json").is_file()
    before = (folder / "rounds.jsonl").read_bytes()
    run_dialogues(settings_of(visdial, tmp_path / "run"))
    assert (folder / "rounds.jsonl").read_bytes() == before  # nothing is searched again
    with pytest.raises(ValueError, match="turns: 'joined' there, 'alone' now"):
        run_dialogues(settings_of(visdial, tmp_path / "run", turns="alone"))


def test_dialogues_are_searched_with_a_given_encoder(visdial, tmp_path):
    class Lengths:
        def encode_texts(self, texts):
            return [[len(text), 10] for text in texts]

    names = json.loads((visdial / "space.json").read_text())
    own = OwnModels(Lengths(), image_vectors={name: [1 + n, 10] for n, name in enumerate(names)})
    folder = run_dialogues(replace(settings_of(visdial, tmp_path / "run"), encoder="/no/such"), own)
    first = read_rounds(folder / "rounds.jsonl")[0]
    assert first.text == "a dog" and first.image_ids[0] == names[4]  # five letters, and 1 + 4


def test_what_does_not_belong_together_is_refused(visdial, tmp_path):
    wrong = tmp_path / "dialogues.json"
    wrong.write_text('[{"img": "unlabeled2017/0.jpg", "dialog": ["a"]}]')
    with pytest.raises(
        ValueError, match="1 images are not in the search space of 12, first 'unlabeled2017/0"
    ):
        run_dialogues(replace(settings_of(visdial, tmp_path / "run"), dialogues=wrong))
    with pytest.raises(ValueError, match="dialogues: got none"):
        run_dialogues(replace(settings_of(visdial, tmp_path / "run"), dialogues=None))
    with pytest.raises(ValueError, match="root: got none"):
        run_dialogues(replace(settings_of(visdial, tmp_path / "run"), root=None))
