import ir_measures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, P, R, Success, nDCG

from evaluation.measures import evaluate
from evaluation.trec import decode_id, encode_id, read_qrels, read_run, write_trec
from files import read_json, write_json
from records import Query
from tests.test_evaluation_measures import make_round, runs

ODD = ("a b.jpg", "100%.jpg", "été/海 1.jpg", "tab\there", "nbsp\u00a0x", "line\u2028x", "%20", "plain")


@settings(max_examples=25, deadline=None)
@given(runs(collection=(*ODD, *(f"folder {number}/x.jpg" for number in range(12)))))
def test_outside_tool_reads_the_files_and_gets_the_same_numbers(tmp_path_factory, run):
    rounds, queries, round_count = run
    folder = tmp_path_factory.mktemp("trec")
    written = write_trec(folder, rounds, round_count, queries)
    assert len(written) == 1 + 2 * round_count
    write_json(folder / "measures.json", evaluate(rounds, round_count, queries, image_count=20).to_json())
    means = read_json(folder / "measures.json")["means_per_round"]
    for number in range(round_count):
        ranking = list(ir_measures.read_trec_run(str(folder / f"round{number}.run")))
        relevant = list(ir_measures.read_trec_qrels(str(folder / f"round{number}.relevant.qrels")))
        target = list(ir_measures.read_trec_qrels(str(folder / "target.qrels")))
        if relevant:
            outside = ir_measures.calc_aggregate([P @ 10, R @ 10, RR @ 10, nDCG @ 10], relevant, ranking)
            for measure, value in outside.items():
                assert means[str(measure)][number] == pytest.approx(value), measure
        if target:
            for k in (1, 5, 10):
                value = ir_measures.calc_aggregate([Success @ k], target, ranking)[Success @ k]
                assert means[f"Recall@{k}"][number] == pytest.approx(value)
        assert ("R@10" in means, "Recall@10" in means) == (bool(relevant), bool(target))


@given(st.text(min_size=1))
def test_ids_survive_and_hold_no_white_space(name):
    encoded = encode_id(name)
    assert encoded.split() == [encoded]
    assert decode_id(encoded) == name


def test_round_trip(tmp_path):
    rounds = [make_round("q 1", 0, ODD, "100%.jpg", ["100%.jpg", "plain"], stop="found")]
    write_trec(tmp_path, rounds, 2, [Query("q 1", "words", "100%.jpg", frozenset(["100%.jpg", "plain"]))])
    for number in (0, 1):  # the second round repeats the last list
        assert [image for image, _ in read_run(tmp_path / f"round{number}.run")["q 1"]] == list(ODD)
        assert read_qrels(tmp_path / f"round{number}.relevant.qrels") == {"q 1": {"100%.jpg": 1, "plain": 1}}
    assert read_qrels(tmp_path / "target.qrels") == {"q 1": {"100%.jpg": 1}}


def test_run_is_sorted_by_score_then_rank(tmp_path):
    path = tmp_path / "x.run"
    path.write_text("q Q0 c 2 0.5 t\nq Q0 a 3 0.5 t\nq Q0 b 1 0.9 t\n")
    assert read_run(path) == {"q": [("b", 0.9), ("c", 0.5), ("a", 0.5)]}


@pytest.mark.parametrize(
    ("reader", "line", "message"),
    [
        (read_run, "q Q0 b 1 0.5", "5 columns; expected 6"),
        (read_run, "q Q0 b one 0.5 t", "rank 'one'"),
        (read_run, "q Q0 a 2 0.5 t", "image 'a' is listed twice"),
        (read_qrels, "q 0 b", "3 columns; expected 4"),
        (read_qrels, "q 0 b yes", "grade 'yes'"),
        (read_qrels, "q 0 a 1", "judged twice"),
    ],
)
def test_broken_lines_are_named(tmp_path, reader, line, message):
    path = tmp_path / "file"
    good = "q Q0 a 1 0.9 t" if reader is read_run else "q 0 a 1"
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=f"line 2: .*{message}"):
        reader(path)


def test_empty_id_is_refused():
    with pytest.raises(ValueError, match="id is empty"):
        encode_id("")
