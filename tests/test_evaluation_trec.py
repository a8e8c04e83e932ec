from urllib.parse import unquote

import ir_measures
import pytest
from hypothesis import given, settings
from ir_measures import RR, P, R, Success, nDCG

from evaluation.measures import measure_sessions
from evaluation.sessions import build_sessions
from evaluation.trec import encode_id, write_trec
from tests.test_evaluation_measures import make_round, runs

ODD = ("a b.jpg", "100%.jpg", "été/海 1.jpg", "tab\there", "nbsp\u00a0x", "line\u2028x", "%20", "plain")


@settings(max_examples=25, deadline=None)
@given(runs(collection=(*ODD, *(f"folder {number}/x.jpg" for number in range(12)))))
def test_outside_tool_reads_the_files_and_gets_the_same_numbers(tmp_path_factory, run):
    rounds, queries, round_count = run
    folder = tmp_path_factory.mktemp("trec")
    sessions = build_sessions(rounds, round_count, queries)
    write_trec(folder, rounds, sessions, round_count)
    assert len(list(folder.iterdir())) == 1 + 2 * round_count
    means = measure_sessions(sessions, round_count, image_count=20).summary()
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


def test_ids_survive_and_hold_no_white_space():
    for name in (*ODD, "\ud800", "\x00"):
        encoded = encode_id(name)
        assert encoded.split() == [encoded]
        assert unquote(encoded, errors="surrogatepass") == name


def test_a_stopped_query_keeps_its_whole_last_list_in_later_rounds(tmp_path):
    images = [*ODD, *(f"{number}.jpg" for number in range(12))]  # more than a session keeps
    relevant = ["100%.jpg", "plain"]
    rounds = [make_round("q 1", 0, images, "100%.jpg", relevant, shown=2, stop="found")]
    write_trec(tmp_path, rounds, build_sessions(rounds, 2), 2)
    for number in (0, 1):
        lines = [line.split() for line in (tmp_path / f"round{number}.run").read_text().splitlines()]
        assert [unquote(line[2]) for line in lines] == images
        assert [line[3:5] for line in lines] == [[str(1 + n), str(20 - n)] for n in range(20)]
        judged = (tmp_path / f"round{number}.relevant.qrels").read_text()
        assert judged == "q%201 0 100%25.jpg 1\nq%201 0 plain 1\n"
    assert (tmp_path / "target.qrels").read_text() == "q%201 0 100%25.jpg 1\n"


def test_an_empty_id_is_refused_and_leaves_no_file(tmp_path):
    rounds = [make_round("q", 0, ["a", ""], "a", ["a"])]
    with pytest.raises(ValueError, match="id is empty"):
        write_trec(tmp_path, rounds, build_sessions(rounds, 1), 1)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".qrels"] == []
