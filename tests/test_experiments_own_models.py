"""Encoder, captioner and rewriter from outside: the example of the documents, and what is refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as PILImage

from evaluation.runs import read_rounds
from experiments.caption_vectors import embed_dataset_captions
from experiments.captions import GivenCaptions
from experiments.compare import run_comparison
from experiments.costs import Costs
from experiments.models import open_encoder
from experiments.own_models import GivenEncoder, OwnModels
from experiments.run import run_experiment
from records import Image
from settings import ComparisonSettings, EmbeddingSettings, ExperimentSettings
from tests.small_runs import model_folder, write_captions

DOCUMENT = Path(__file__).parents[1] / "docs" / "own_models.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The document's example, run as it stands beside thirty pictures of one colour each; what it defines."""
    folder = tmp_path_factory.mktemp("example")
    (folder / "pictures").mkdir()
    random, said = np.random.default_rng(0), {}
    for number in range(30):
        colour = random.integers(0, 256, 3)
        name, word = f"{number}.png", ("red", "green", "blue")[int(colour.argmax())]
        picture = PILImage.new("RGB", (20, 16), tuple(int(value) for value in colour))
        picture.save(folder / "pictures" / name)
        said[name] = [f"something {word}", f"{word} number {number}"]
    write_captions(folder / "pictures", said)
    code, _ = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    names = {"__name__": "example"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(code, str(DOCUMENT), "exec"), names)  # noqa: S102
    return names | {"folder": folder}


@pytest.fixture
def mine(example, monkeypatch):
    """The example's models; the working directory is where its pictures are."""
    monkeypatch.chdir(example["folder"])
    return example["Colours"]()


@pytest.fixture
def pictures(example):
    return example["folder"] / "pictures"


def test_the_documents_example_plays_with_the_given_models_alone(mine, pictures):
    records = read_rounds(Path("run/rounds.jsonl"))
    assert {record.number for record in records} == {0, 1, 2}  # 30 images, ten a round
    said = {caption for record in records for caption in record.captions}
    assert said and said <= {"mostly red", "mostly green", "mostly blue"}
    moved = [record for record in records if record.number and not record.fallback]
    assert moved and all(", mostly " in record.text for record in moved)
    saved = json.loads(Path("run/settings.json").read_text())
    assert saved["captioner"] == saved["rewriter"] == "example.Colours"
    assert saved["encoder_fingerprint"].startswith("example.Colours ")
    # The index of another encoder is not written over.
    (folder,) = pictures.glob("index-all-*")
    assert not (pictures / "index-all").exists() and (folder / "manifest.json").is_file()
    costs = json.loads(Path("run/costs.json").read_text())["rewrite"]
    assert costs["caption"]["items"] == len({image_id for record in records for image_id in record.liked})
    assert costs["search"]["items"] == len(records) and costs["rewrite"]["items"] > 0


@pytest.mark.parametrize(("strategy", "named"), [("rewrite", True), ("append", False)])
def test_a_run_that_rewrites_names_the_strategy_that_found_more(strategy, named, mine, caplog, tmp_path):
    settings = ExperimentSettings(
        "image_folder", Path("pictures"), strategy=strategy, user="reference", rounds=2, queries=3,
        output=tmp_path / "run",
    )  # fmt: skip
    with caplog.at_level("INFO"):
        run_experiment(settings, OwnModels(mine, mine, mine))
    assert ("--strategy bayes-captions" in caplog.messages[-1]) == named


def test_a_comparison_takes_the_same_models_and_says_what_a_query_costs(mine, capsys):
    settings = ComparisonSettings(
        "image_folder", Path("pictures"), rounds=3, output=Path("compared"),
        strategies=("append", "rewrite"), users=("reference", "random", "first"), noises=(0.0, 0.5), seeds=2,
    )  # fmt: skip
    mine.tokens_written = 0

    def rewrite(queries, captions):
        mine.tokens_written += 7 * len(queries)
        return [f"{query}, {caption}" for query, caption in zip(queries, captions, strict=True)]

    mine.rewrite = rewrite
    folder = run_comparison(settings, OwnModels(mine, mine, mine))
    names = {path.name for path in folder.iterdir()}
    assert {"comparison.md", "comparison.csv", "comparison.json", "comparison.png"} <= names
    assert {"differences.png", "costs.json", "report.html"} <= names
    played = {path.name.removesuffix(".rounds.jsonl") for path in folder.glob("*.rounds.jsonl")}
    assert {path.name for path in (folder / "trec").iterdir()} == played and len(played) == 13
    hits = {}
    for line in (folder / "trec/append-reference/round2.run").read_text().splitlines():
        query, _, image, rank, *_ = line.split()
        hits[query, image] = int(rank) <= 10
    asked = (folder / "trec/append-reference/target.qrels").read_text().splitlines()
    found = sum(hits.get((line.split()[0], line.split()[2]), False) for line in asked)
    runs = json.loads((folder / "comparison.json").read_text())["runs"]
    assert list(runs) == [
        "scrolling",
        *(
            f"{strategy}, {who}"
            for who in ("reference user", "reference user, 50% wrong", "random user", "first user")
            for strategy in ("append", "rewrite")
        ),
    ]
    assert (folder / "append-random-seed0.rounds.jsonl").read_bytes() != (
        folder / "append-random-seed1.rounds.jsonl"
    ).read_bytes()
    picked = runs["append, reference user"]["minus_controls"]
    last = {name: run["means_per_round"]["Recall@10"][-1] for name, run in runs.items()}
    assert found / len(asked) == pytest.approx(last["append, reference user"])
    for user in ("random", "first"):
        expected = last["append, reference user"] - last[f"append, {user} user"]
        assert picked[user]["mean"] == pytest.approx(expected)
    assert runs["scrolling"]["minus_controls"] == {}
    costs = runs["rewrite, reference user"]["costs_per_query"]
    records = read_rounds(folder / "rewrite-reference.rounds.jsonl")
    assert costs["search"] == pytest.approx(len(records) / 60)
    assert costs["caption"] == pytest.approx(len({i for record in records for i in record.liked}) / 60)
    asked = sum(record.number > 0 for record in records)
    assert costs["rewrite"] == pytest.approx(asked / 60) and costs["tokens"] == pytest.approx(7 * asked / 60)
    assert costs["seconds"] > 0
    assert runs["append, reference user"]["costs_per_query"]["tokens"] == 0
    table = capsys.readouterr().out
    assert max(map(len, table.splitlines())) <= 100
    assert run_comparison(settings, OwnModels(mine, mine, mine)) == folder  # nothing is played again
    assert capsys.readouterr().out == table
    assert json.loads((folder / "comparison.json").read_text())["runs"] == runs
    with pytest.raises(ValueError, match="seeds: 2 there, 3 now"):
        run_comparison(replace(settings, seeds=3), OwnModels(mine, mine, mine))


def test_users_who_may_give_up_have_a_control_in_which_they_may_too(mine):
    settings = ComparisonSettings(
        "image_folder", Path("pictures"), rounds=3, output=Path("patient"), user_patience=1,
        strategies=("append",), users=("reference", "first"),
    )  # fmt: skip
    folder = run_comparison(settings, OwnModels(mine, mine))
    runs = json.loads((folder / "comparison.json").read_text())["runs"]
    assert list(runs) == [
        "scrolling, reference user", "append, reference user", "scrolling, first user", "append, first user",
    ]  # fmt: skip
    for name in ("original-reference", "append-reference"):
        assert any(record.stop == "abandoned" for record in read_rounds(folder / f"{name}.rounds.jsonl"))
    own = runs["scrolling, reference user"]["means_per_round"]["Recall@10"][-1]
    gained = runs["append, reference user"]["means_per_round"]["Recall@10"][-1] - own
    assert runs["append, reference user"]["minus_scrolling"]["mean"] == pytest.approx(gained)


def test_a_query_that_nobody_can_answer_is_on_record(mine, pictures, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder, ignore=shutil.ignore_patterns("index-*"))
    (folder / "3.png").write_bytes(b"broken")
    settings = ExperimentSettings(
        "image_folder", folder, user="reference", strategy="append", output=tmp_path / "run", rounds=1
    )
    run_experiment(settings, OwnModels(mine, mine))
    left_out = json.loads((tmp_path / "run" / "measures.json").read_text())["queries_left_out"]
    assert [skip["what"] for skip in left_out] == ["3.png#0", "3.png#1"]
    assert all("in the index" in skip["why"] for skip in left_out)


def test_the_reference_protocol_implies_rewriting_as_published(mine, pictures, tmp_path):
    mine.rewrite = lambda queries, captions: ["nothing that anybody said" for _ in queries]
    settings = ExperimentSettings(
        "image_folder", pictures, user="reference", strategy="rewrite", rounds=2, protocol="reference",
        output=tmp_path / "run",
    )  # fmt: skip
    moved = {}
    for rewriting in (None, "guarded"):
        run = replace(settings, rewriting=rewriting, restart=rewriting is not None)
        records = read_rounds(run_experiment(run, OwnModels(mine, mine, mine)) / "rounds.jsonl")
        moved[rewriting] = {(record.text, record.fallback[:6]) for record in records if record.number}
    assert moved[None] == {("nothing that anybody said", "")}
    assert {fallback for _, fallback in moved["guarded"]} == {"kept 0"}
    assert replace(settings, protocol="honest").resolved().rewriting == "guarded"
    blip = str(model_folder(tmp_path / "blip", "itm.pth"))  # of 208 positions: 300 are too many, 200 are not
    for rewriting, limit in ((None, 208), ("guarded", 200)):
        run = replace(settings, encoder=blip, rewriting=rewriting).resolved()
        assert open_encoder(run).text_limit == limit


def test_a_picture_without_a_caption_is_named_before_any_is_embedded(mine, pictures, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder, ignore=shutil.ignore_patterns("index-*"))
    shutil.copy(folder / "3.png", folder / "without.png")
    settings = ExperimentSettings("image_folder", folder, strategy="append", output=tmp_path / "run")
    with pytest.raises(ValueError, match=r"1 of 31 images have no caption, first without\.png.*--split"):
        run_experiment(settings, OwnModels(mine, mine))
    assert not list(folder.glob("index-*"))


class Words:
    """Encodes colours by name alone, and no picture."""

    def encode_texts(self, texts):
        return np.array([[1 + (word in text) for word in ("red", "green", "blue")] for text in texts])


def test_vectors_of_the_pictures_can_be_given(mine, pictures, tmp_path):
    names = [f"{number}.png" for number in range(30)]
    opened = [PILImage.open(pictures / name) for name in names]
    vectors = dict(zip(names, mine.encode_images(opened), strict=True))
    settings = ExperimentSettings(
        "image_folder", pictures, user="reference", strategy="append", output=tmp_path / "run", rounds=2
    )
    run_experiment(settings, OwnModels(Words(), mine, image_vectors=vectors))
    run_experiment(replace(settings, output=tmp_path / "embedded"), OwnModels(mine, captioner=mine))
    assert read_rounds(tmp_path / "run/rounds.jsonl") == read_rounds(tmp_path / "embedded/rounds.jsonl")
    with pytest.raises(ValueError, match=r"encoder_fingerprint: "):  # other vectors are another encoder
        run_experiment(settings, OwnModels(Words(), mine, image_vectors=vectors | {"3.png": [1, 2, 3]}))
    with pytest.raises(ValueError, match=r"without encode_images, which a picture needs"):
        OwnModels(Words(), image_vectors=vectors).given_encoder().encode_images(opened)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"3.png": [1, 2, 3]}, r"29 of the 30 images to embed .*first '0\.png'"),
        ({f"{n}.png": [1, 2] for n in range(30)}, r"got shape \(2,\) for '0\.png'"),
        ({f"{n}.png": [0, 0, 0] for n in range(30)}, "image_vectors: got a row of zeros"),
    ],
)
def test_vectors_that_do_not_fit_the_pictures_are_refused(given, message, pictures):
    settings = ExperimentSettings("image_folder", pictures, user="reference", strategy="original")
    with pytest.raises(ValueError, match=message):
        run_experiment(settings, OwnModels(Words(), image_vectors=given))
    with pytest.raises(ValueError, match="got vectors without an encoder"):
        run_experiment(settings, OwnModels(image_vectors=given))


def test_the_user_model_is_fitted_with_the_given_models(mine, pictures, tmp_path):
    class Letters:
        def encode_texts(self, texts):
            rows = np.array([[text.count(letter) + 1 for letter in "redgn"] for text in texts], np.float32)
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    settings = EmbeddingSettings("image_folder", pictures, caption_encoder="/no/such")
    own = OwnModels(mine, captioner=mine, caption_encoder=Letters())
    fitted = embed_dataset_captions(settings, own)
    assert fitted.captioner == "example.Colours" and fitted.sentence_encoder.endswith("Letters")
    run = ExperimentSettings(
        "image_folder", pictures, user="reference", strategy="bayes", output=tmp_path / "run", rounds=2
    )
    run_experiment(run, own)
    saved = json.loads((tmp_path / "run/settings.json").read_text())["calibration"]
    assert json.loads(saved) == fitted.calibration


def test_a_rewriter_that_is_not_there_is_found_out_before_anything_is_played(mine, tmp_path):
    settings = ExperimentSettings(
        "image_folder", Path("pictures"), user="reference", strategy="rewrite", output=Path("late"),
        rewrite_model=str(tmp_path / "nosuch"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="nosuch cannot be opened"):
        run_experiment(settings, OwnModels(mine, mine))
    no_language = tmp_path / "vision"
    no_language.mkdir()
    (no_language / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="it is a vit model, expected one that writes text"):
        run_experiment(replace(settings, rewrite_model=str(no_language)), OwnModels(mine, mine))
    assert not Path("late").exists()


def test_strategies_without_captions_and_rewrites_play_without_those_models(mine, tmp_path):
    nobody = ("http://127.0.0.1:9/v1",)
    absent = {
        "caption_model": str(tmp_path / "absent"), "rewrite_model": str(tmp_path / "absent too"), "rounds": 2,
    }  # fmt: skip
    for strategy, servers in (("original", None), ("rocchio", nobody), ("bayes", None)):
        settings = ExperimentSettings(
            "image_folder", Path("pictures"), user="reference", strategy=strategy,
            output=tmp_path / strategy, caption_servers=servers, rewrite_servers=servers, **absent,
        )  # fmt: skip
        folder = run_experiment(settings, OwnModels(mine))
        assert {record.number for record in read_rounds(folder / "rounds.jsonl")} == {0, 1}
        saved = json.loads((folder / "settings.json").read_text())
        assert saved["captioner"] is None and saved["rewriter"] is None


def test_the_independent_user_judges_with_a_sentence_encoder_of_ones_own(mine, tmp_path):
    class Words:
        name = "words"

        def encode_texts(self, texts):
            rows = mine.encode_texts(texts) - 0.9
            return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    settings = ExperimentSettings(
        "image_folder", Path("pictures"), user="independent", strategy="append", output=tmp_path / "run",
        rounds=2, user_model="/no/such",
    )  # fmt: skip
    run_experiment(settings, OwnModels(mine, mine, sentence_encoder=Words()))
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["sentence_encoder"] == "words"
    with pytest.raises(ValueError, match=r"sentence_encoder: 'words' there, '\S+Words' now"):
        Words.name = f"{__name__}.Words"
        run_experiment(settings, OwnModels(mine, mine, sentence_encoder=Words()))


def test_vectors_come_out_as_unit_rows_and_other_weights_have_another_name():
    class Numbers:
        def __init__(self, sign):
            self.sign = sign

        def encode_texts(self, texts):
            return [[self.sign * len(text), 2, -1] for text in texts]

        def encode_images(self, images):
            return np.full((len(images), 3), 5)

    one, other = GivenEncoder(Numbers(1)), GivenEncoder(Numbers(-1))
    rows = one.encode_texts(["abcd", "a"])
    assert rows.dtype == np.float32 and one.dimension == 3
    assert rows == pytest.approx(np.array([[4, 2, -1], [1, 2, -1]]) / np.sqrt([[21], [6]]), abs=1e-6)
    assert one.fingerprint == GivenEncoder(Numbers(1)).fingerprint != other.fingerprint
    Numbers.fingerprint = "version 2"
    assert GivenEncoder(Numbers(1)).fingerprint == "version 2"


@pytest.mark.parametrize(
    ("texts", "images", "message"),
    [
        (np.zeros((3, 3)), np.ones((1, 3)), "encode_texts: got a row of zeros"),
        (np.ones((3, 3)), np.ones((1, 4)), "texts of 3 and pictures of 4 dimensions"),
        (np.ones(3), np.ones((1, 4)), r"encode_texts: got shape \(3,\) for 3 inputs"),
        (np.ones((3, 3)), np.full((1, 3), np.nan), "encode_images: got a row of zeros, or"),
        (np.ones((4, 3)), np.ones((1, 3)), r"got shape \(4, 3\) for 3 inputs"),
    ],
)
def test_vectors_that_cannot_be_used_are_refused_at_once(texts, images, message):
    wrong = SimpleNamespace(encode_texts=lambda batch: texts, encode_images=lambda batch: images)
    with pytest.raises(ValueError, match=message):
        GivenEncoder(wrong)


def test_a_captioner_must_give_one_text_a_picture(pictures):
    class Silent:
        def caption(self, images):
            return ["only one"]

    images = [Image(f"{number}.png", pictures / f"{number}.png") for number in range(2)]
    captions = GivenCaptions(Silent(), images, Costs())
    assert captions.captions_of(["0.png", "0.png"]) == ["only one", "only one"] and captions.made == 1
    captions = GivenCaptions(Silent(), images, Costs())
    with pytest.raises(ValueError, match=r"captioner: got \['only one'\] for 2 pictures"):
        captions.captions_of(["0.png", "1.png"])
