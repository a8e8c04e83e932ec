import re
from dataclasses import replace

import pytest
from PIL import Image

from evaluation.measures import evaluate
from evaluation.plots import plot_recall_f1
from evaluation.report import CASES, LISTED_QUERIES, choose_cases, mark_changes, write_report
from evaluation.runs import append_rounds, stream_rounds
from evaluation.sessions import build_sessions
from files import write_json
from tests.test_evaluation_measures import make_round

HOSTILE = '<script>alert("x")</script>'
IMAGES = [f"{number} é.png" for number in range(12)]


def make_run(folder, rounds, round_count, settings=None, **extra):
    append_rounds(folder / "rounds.jsonl", rounds)
    measures = evaluate(rounds, round_count)
    write_json(folder / "measures.json", measures.to_json() | extra)
    write_json(folder / "settings.json", settings or {"rounds": round_count})
    summary = measures.summary()
    measure = "Recall@10" if "Recall@10" in summary else "Session recall"
    plot_recall_f1({"run": summary}, folder / "recall_f1.png", measure)


def report_of(folder, images=None):
    sessions = build_sessions(stream_rounds(folder / "rounds.jsonl"), 2)
    return write_report(folder, images or folder / "images", sessions).read_text()


@pytest.fixture
def run(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for place, name in enumerate(IMAGES[:-1]):
        Image.new("RGBA", (300, 200), (place * 20, 90, 40, 200)).save(images / name)
    first = make_round(HOSTILE, 0, IMAGES, IMAGES[10], [IMAGES[10]])
    second = replace(first, number=1, text=f"words {HOSTILE}", liked=(IMAGES[0],), captions=(HOSTILE,))
    closer = (*IMAGES[:3], IMAGES[10], *IMAGES[3:10], IMAGES[11])
    second = replace(second, image_ids=closer, target_rank=4, fallback=HOSTILE, stop=HOSTILE)
    gone = make_round("gone", 0, IMAGES, IMAGES[-1], [IMAGES[-1]], stop="exhausted")
    make_run(tmp_path, [first, second, gone], 2, {"prompt": HOSTILE, "model": {HOSTILE: 1}})
    return tmp_path


def test_report_escapes_what_others_wrote_and_needs_nothing_outside_itself(run):
    html = report_of(run)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 6
    assert not re.search(r"https?:|file:|//[a-z]|<link|<iframe|@import", re.sub(r"base64,[\w+/=]+", "", html))
    sources = re.findall(r"(?:src=\"|href=\"|url\()([^\")]*)", html)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert html.count("data:image/jpeg") == 11, "each thumbnail once"


def test_report_marks_the_picked_the_target_and_the_missing_and_names_every_picture(run):
    html = report_of(run)
    assert "1 picture could not be read" in html and ">not found<" in html
    assert re.search(r'class="thumb  target" role="img" aria-label="The target: 11 é.png"', html)
    assert 'aria-label="Place 1 (picked): 0 é.png"' in html
    assert 'aria-label="Place 4 (target): 10 é.png"' in html
    assert html.count('role="img"') == html.count("aria-label=")
    assert "Rank 11 → 4" in html


def test_report_without_targets_shows_relevant_images(tmp_path):
    make_run(tmp_path, [make_round("q", 0, IMAGES, None, IMAGES[-1:], stop="exhausted")], 2)
    html = report_of(tmp_path, tmp_path)
    assert "A relevant image: 11 é.png" in html
    assert "Session recall" in html


def test_cases_are_the_largest_gains_and_losses_against_scrolling_and_what_was_never_found():
    def run(ranks):
        rounds = []
        for name, in_rounds in ranks.items():
            for number, rank in enumerate(in_rounds):
                others = [f"other {place}" for place in range(30) if place != rank - 1]
                images = [*others[: rank - 1], *(["t"] if rank <= 30 else []), *others[rank - 1 :]]
                rounds.append(make_round(name, number, images, "t", ["t"], rank=rank))
        return rounds

    strategy = {
        "same": (30, 30), "gain": (100, 8), "small": (30, 30), "loss": (20, 30), "worse": (12, 12),
        "far": (900, 900), "still": (4, 4),
    }  # fmt: skip
    scrolling = {
        "same": (30, 30), "gain": (100, 90), "small": (30, 40), "loss": (20, 10), "worse": (12, 11),
        "far": (900, 900), "still": (4, 4),
    }  # fmt: skip

    def chosen(count, given=strategy):
        sessions, control = build_sessions(run(given), 2), build_sessions(run(scrolling), 2)
        cases = choose_cases(sessions, control, "scrolling", count)
        return [[session.query_id for session in group] for group in cases.values()]

    headings = ["Most gained over scrolling", "Most lost against scrolling", "Never found"]
    assert list(choose_cases((), (), "scrolling", 1)) == headings
    assert chosen(1) == [["gain"], ["loss"], ["far"]]
    assert chosen(9) == [["gain", "small"], ["loss", "worse"], ["far", "same"]]
    assert chosen(9, dict(reversed(strategy.items()))) == chosen(9)


def test_a_long_run_has_a_bounded_report_that_says_how_many_queries_there_are(tmp_path):
    rounds = [
        make_round(f"query {number:04}", 0, IMAGES, IMAGES[11], [IMAGES[11]], stop="found")
        for number in range(3000)
    ]
    make_run(tmp_path, rounds, 2)
    html = report_of(tmp_path, tmp_path)
    assert '<p class="soft">3,000 queries, 2 rounds.' in html
    assert f"The first {LISTED_QUERIES} of 3,000 queries" in html and "The others are in rounds.jsonl" in html
    assert len(set(re.findall(r"query \d{4}", html))) == LISTED_QUERIES
    assert len(re.findall("<article", html)) == CASES


def test_the_report_names_what_was_run_and_shows_the_control(tmp_path):
    settings = {
        "dataset": "demo", "split": "test", "strategy": "append", "user": "independent", "seed": 7,
        "protocol": "honest", "rounds": 2,
    }  # fmt: skip
    rounds = [make_round("q", 0, IMAGES, IMAGES[0], [IMAGES[0]], stop="found")]
    control = {name: [0.25, 0.75] for name in evaluate(rounds, 2).values}
    make_run(tmp_path, rounds, 2, settings, scrolling=control)
    html = report_of(tmp_path, tmp_path)
    facts = "dataset demo · split test · strategy append · simulated user independent · protocol honest · "
    assert re.search(rf"<p>{facts}seed 7 · played \d{{4}}-\d\d-\d\d( · commit [0-9a-f]+)?</p>", html)
    assert "scrolling, the control" in html and "<td>75.0</td>" in html


def test_changes_are_marked_by_word_whatever_the_punctuation():
    marked = mark_changes("a red dog at night", "a brown dog, a cat at night")
    assert marked == [
        ("same", "a"), ("removed", "red"), ("added", "brown"), ("same", "dog"), ("added", ", a cat"),
        ("same", "at night"),
    ]  # fmt: skip
