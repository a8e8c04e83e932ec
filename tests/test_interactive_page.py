"""The page without a browser: what it answers, what it refuses, and that everybody has their own session."""

import io
import logging
import re
import struct
import threading
import time
import zlib
from dataclasses import dataclass, replace
from html import unescape
from urllib.parse import parse_qsl

import pytest
from conftest import IMAGE_IDS, KnownCaptions
from interactive_world import PAINT, context, options, picture_folder, study, with_failing  # noqa: F401
from PIL import Image

pytest.importorskip("starlette", reason="needs pip install -r requirements/page.txt")

from starlette.testclient import TestClient

from evaluation.runs import read_rounds
from evaluation.study import read_study
from interactive.guard import MAX_FORM_BYTES, Guard
from interactive.page import COOKIE, Page
from interactive.pictures import MAX_UPLOADED_BYTES, MAX_UPLOADED_PIXELS, jpeg
from interactive.session import Session
from interactive.together import Together, shared
from interactive.visitors import MAX_EARLIER, MAX_VISITORS, MAX_WAITING, TooBusy, Visitors, Worker

ORIGIN = "http://localhost"
OURS = {"Origin": ORIGIN}


@pytest.fixture
def page(context, options, study, monkeypatch):  # noqa: F811
    monkeypatch.setattr("interactive.page.REFINING", 1)  # one after the other, so that places can be seen
    page = Page(context, options, study, describe=False)
    yield page
    context.captions.is_open = True
    page.searching.close()
    page.writing.close()


@pytest.fixture
def person(page):
    """Makes browsers; all of one page."""
    clients = []

    def person(**options):  # noqa: F811
        guarded = Guard(page.app(), options.pop("names", ()), options.pop("token", ""))
        client = TestClient(guarded, base_url=ORIGIN, raise_server_exceptions=False, follow_redirects=False)
        clients.append(client)
        return client

    return person


@dataclass
class Answering:
    captions_of: object


def act(client, path, **fields):
    return client.post(path, data=fields, headers=OURS)


def finished(client):
    """The main part once nothing is worked on any more."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        text = client.get("/view").text
        if "data-busy" not in text:
            return text
        time.sleep(0.01)
    raise AssertionError("never finished")


def numbers(html):
    return [int(number) for number in re.findall(r'<li class="card[^"]*" data-number="(\d+)"', html)]


def png(picture):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def declared_png(width, height):
    """A PNG of a few bytes that says it is large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    lines = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


# The loop


def test_like_more_edit_back_and_over(person, page):
    client = person()
    answer = act(client, "/search", text="a dog").text
    expected = page.context.retriever.search(["a dog"], 10)[0]
    assert [page.context.id_of(number) for number in numbers(answer)] == list(expected.ids)
    assert 'alt="Result 1, not described yet"' in answer
    first, second, third = numbers(answer)[:3]
    marked = act(client, "/mark", picture=second, mark="like")
    assert marked.json() == {"liked": 1, "disliked": 0}
    act(client, "/mark", picture=third, mark="dislike")
    act(client, "/propose")
    proposed = finished(client)
    caption = re.search(r"<span>(a \w+ \w+ in the \w+)</span>", proposed)[1]
    assert f"<ins>, {caption}</ins>" in proposed and f">a dog, {caption}</textarea>" in proposed
    act(client, "/edited", text="a dog and a cat")
    edited = finished(client)
    assert "Edited by you" in edited and "<ins>and a cat</ins>" in edited
    assert not {first, second, third} & set(numbers(edited))
    back = act(client, "/round", number=0).text
    assert numbers(back)[:3] == [first, second, third]
    assert f'class="card like" data-number="{second}"' in back
    assert f'alt="{caption}"' in back  # captions made are alt texts from then on
    assert "Describe a picture. Mark" in act(client, "/over").text


def test_options_and_threshold(person):
    client = person()
    act(client, "/search", text="a dog")
    changed = act(client, "/options", strategy="rewrite", shown=3, threshold="", shows_again="on").text
    assert len(numbers(changed)) == 3 and 'value="rewrite" selected' in changed
    hidden = act(client, "/options", strategy="rewrite", shown=3, threshold=99).text
    assert numbers(hidden) == [] and "3 pictures match less than you asked for" in hidden
    for wrong in ({"shown": 0}, {"shown": "x"}, {"shown": 101}, {"threshold": "nan"}, {"strategy": "nosuch"}):
        fields = {"strategy": "append", "shown": 3, "threshold": 0} | wrong
        assert 'role="alert"' in act(client, "/options", **fields).text


def test_found_is_ranked_and_exported_with_its_target(person, tmp_path):
    client = person()
    shown = numbers(act(client, "/search", text="a dog").text)
    act(client, "/more")
    finished(client)
    assert "not shown" in act(client, "/found", picture=shown[0]).text
    target = numbers(client.get("/view").text)[2]
    assert "Found in round 2" in act(client, "/found", picture=target).text
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(client.get("/rounds.jsonl").content)
    records = read_rounds(path)
    assert [record.stop for record in records] == ["", "found"] and records[1].target_rank == 3
    act(client, "/more")
    assert "Found" not in finished(client)
    path.write_bytes(client.get("/rounds.jsonl").content)
    assert [record.target for record in read_rounds(path)] == [None] * 3


def test_a_session_is_saved_and_opened_by_somebody_else(person):
    client, other = person(), person()
    act(client, "/search", text="a dog")
    act(client, "/more")
    mine = numbers(finished(client))
    saved = client.get("/session.json")
    assert "attachment" in saved.headers["content-disposition"]
    opened = other.post("/open", content=saved.content, headers=OURS)
    assert numbers(opened.text) == mine
    refused = other.post("/open", content=b'{"format": 1}', headers=OURS)
    assert "not a saved session" in refused.text and numbers(refused.text) == mine


def test_a_picture_is_searched_for_and_the_words_with_it(person, page):
    green = png(Image.new("RGB", (40, 30), PAINT["green"]))
    answer = person().post("/by-picture", content=green, headers=OURS)
    assert all(page.context.id_of(number).startswith("green") for number in numbers(answer.text))
    assert "Pictures like this one" in answer.text and 'alt="Your picture"' in answer.text
    answer = person().post("/by-picture", content=green, headers=OURS | {"X-Words": "a%20horse"})
    assert page.context.id_of(numbers(answer.text)[0]).startswith("green-horse")


def test_the_study_shows_a_picture_and_writes_what_came_of_it(person, page, study):  # noqa: F811
    client = person()
    study.consent = "I am asked <b>nothing</b> else."
    study.conditions = ("append", "rocchio")
    page.context = replace(page.context, strategies=("append", "rocchio"))
    start = client.get("/study?participant=P03&condition=").text
    assert "nothing&lt;/b&gt; else" in start and "I agree, begin" in start and 'value="P03"' in start
    assert client.get("/study?participant=../x").status_code == 409
    begun = act(client, "/study", participant="P03", condition="").text
    assert "practice" in begun
    assert "Given up, for practice" in act(client, "/give-up").text
    begun = act(client, "/study").text
    assert "picture 1 of 8" in begun
    target = int(re.search(r'<section class="task".*?/thumbnail/(\d+)', begun, re.DOTALL)[1])
    colour, animal, place = page.context.id_of(target).split("-")
    assert page.context.id_of(target) not in begun and "By picture" not in begun
    shown = numbers(act(client, "/search", text=f"a {animal}").text)
    for path in ("/round", "/over", "/study", "/search"):
        assert 'role="alert"' in act(client, path, number=0, text="x").text
    wrong = next(number for number in shown if number != target)
    assert "a different picture" in act(client, "/found", picture=wrong).text
    act(client, "/edited", text=f"a {colour} {animal} in the {place}")
    view = finished(client)
    if target not in shown:
        assert target in numbers(view)
        assert "Found" in act(client, "/found", picture=target).text
    else:
        act(client, "/give-up")
    searches = read_study(study.folder / "study.csv")
    assert [each.condition for each in searches] == ["rocchio"] * 2  # the square's second row
    line = searches[-1]
    assert line.rounds == 2 and line.wrong_pictures == 1 and line.waiting_seconds <= line.seconds


def test_every_round_has_an_address_that_leads_back_to_it(person):
    client = person()

    def at(html):
        return dict(parse_qsl(unescape(re.search(r'data-address="/\??([^"]*)"', html)[1])))

    first = act(client, "/search", text="a dog -beach").text
    act(client, "/mark", picture=numbers(first)[0], mark="like")
    act(client, "/more")
    second = finished(client)
    cat = act(client, "/search", text="a cat").text
    similar = act(client, "/similar", picture=7).text
    assert numbers(similar)[0] == 7 and at(similar)["similar"] == "7"
    for html in (second, first, cat, similar, second):
        back = act(client, "/at", **at(html)).text
        assert numbers(back) == numbers(html) and at(back) == at(html)
    act(client, "/round", number=0)
    forked = act(client, "/append").text
    assert at(forked)["search"] != at(second)["search"]
    assert numbers(act(client, "/at", **at(second)).text) == numbers(second)  # no round was lost
    assert "Describe a picture. Mark" in act(client, "/at").text
    for html in (first, cat, similar):  # for others, the search as it began
        assert numbers(act(person(), "/at", **at(html)).text) == numbers(html)
    for _ in range(MAX_EARLIER + 1):
        act(client, "/search", text="a fish")
    assert at(act(client, "/at", **at(cat)).text)["search"] != at(cat)["search"]  # forgotten


def test_a_file_is_opened_and_its_path_told_on_the_own_machine_alone(person, page, tmp_path, monkeypatch):
    opened = tmp_path / "opened"
    desktop = tmp_path / "xdg-open"
    desktop.write_text(f'#!/bin/sh\necho "$1" >> {opened}\n')
    desktop.chmod(0o755)
    client, path = person(), page.context.paths[IMAGE_IDS[7]]
    assert act(client, "/file", picture=7, do="open").status_code == 404
    page._names_shown = True
    assert act(client, "/file", picture=7, do="copy").text == str(path) and not opened.exists()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert "copy the path instead" in act(client, "/file", picture=7, do="open").text
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for do in ("open", "folder"):
        assert act(client, "/file", picture=7, do=do).status_code == 200
    until = time.monotonic() + 10
    while time.monotonic() < until and not (opened.exists() and len(opened.read_text().split()) == 2):
        time.sleep(0.01)
    assert set(opened.read_text().split()) == {str(path), str(path.parent)}
    page.context.paths[IMAGE_IDS[8]] = desktop
    assert act(client, "/file", picture=8, do="open").status_code == 404  # a program is no picture


# Others


def test_two_people_do_not_see_each_other_by_a_cookie_for_this_page_alone(person):
    ann, bob = person(), person()
    assert "set-cookie" not in ann.get("/").headers  # looking takes no place
    answer = act(ann, "/search", text="a dog")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and len(ann.cookies[COOKIE]) >= 32
    dogs, cats = numbers(answer.text), numbers(act(bob, "/search", text="a cat").text)
    act(ann, "/mark", picture=dogs[0], mark="like")
    assert numbers(ann.get("/view").text) == dogs and "1 liked" in ann.get("/view").text
    assert numbers(bob.get("/view").text) == cats and "1 liked" not in bob.get("/view").text
    assert ann.cookies[COOKIE] != bob.cookies[COOKIE]


def test_a_busy_model_queues_with_a_visible_place_and_searching_goes_on(person, page):
    people = [person() for _ in range(3)]
    for client in people:
        shown = numbers(act(client, "/search", text="a dog").text)
        act(client, "/mark", picture=shown[0], mark="like")
    page.context.captions.is_open = False
    for client in people:
        assert "data-busy" in act(client, "/more").text
    assert numbers(people[2].get("/view").text) == shown  # as it was
    assert len(people[2].get("/session.json").json()["turns"]) == 1
    states = [client.get("/progress").json() for client in people]
    assert all(state["busy"] for state in states)
    assert [state["ahead"] for state in states] == [0, 1, 2]
    assert states[0]["stage"] == "Describing the picture you liked" and states[2]["stage"] == ""
    assert act(people[2], "/search", text="a cat").status_code == 409  # one thing at a time for each
    assert act(people[2], "/mark", picture=shown[0], mark="like").status_code == 409
    assert len(numbers(act(person(), "/search", text="a fish").text)) == 10  # others search meanwhile
    page.context.captions.is_open = True
    for client in people:
        assert "a dog, a " in finished(client)


def test_progress_brings_captions_that_nobody_waited_for(person, page):
    page._describe = True
    client = person()
    assert client.get("/progress").status_code == 409  # not remembered
    shown = numbers(act(client, "/search", text="a dog").text)
    until, captions = time.monotonic() + 20, {}
    while len(captions) < 10 and time.monotonic() < until:
        captions = client.get("/progress").json()["captions"]
    ids = [page.context.id_of(number) for number in shown]
    assert captions == dict(zip(map(str, shown), page.context.captions.known.captions_of(ids), strict=True))


def test_a_full_queue_is_said_and_not_joined(person, page):
    page.context.captions.is_open = False
    begun = threading.Event()
    page.writing.submit(lambda say: begun.set() or page.context.captions_of(IMAGE_IDS[:1]))
    begun.wait(10)
    for _ in range(MAX_WAITING):
        page.writing.submit(lambda say: None)
    client = person()
    shown = numbers(act(client, "/search", text="a dog").text)
    assert "Your picture" in client.post("/by-picture", content=UPLOAD, headers=OURS).text
    act(client, "/search", text="a dog")
    act(client, "/mark", picture=shown[0], mark="like")
    answer = act(client, "/more")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
    page.context.captions.is_open = True


def test_visitors_are_bounded_and_newcomers_make_room_among_themselves(context, options, monkeypatch):  # noqa: F811
    monkeypatch.setattr("interactive.visitors.MAX_VISITORS", 2)
    visitors = Visitors(lambda: Session(context, options))
    ann, bob = visitors.welcome(), visitors.welcome()
    assert visitors.find(ann.token) is ann and visitors.find(bob.token) is bob  # they came again
    strangers = [visitors.welcome() for _ in range(5)]
    assert [visitors.find(one.token) is one for one in (ann, bob)] == [True, True] and len(visitors) == 4
    assert visitors.find(strangers[0].token) is None
    assert visitors.find(strangers[4].token) is strangers[4]  # in the place of who was unseen for longest
    assert visitors.find(ann.token) is None and visitors.find(bob.token) is bob
    worker, gate = Worker("test"), threading.Event()
    for visitor in (visitors.welcome(), visitors.welcome()):
        visitor.job = worker.submit(lambda say: gate.wait(10) and None)
    with pytest.raises(TooBusy):
        visitors.welcome()
    gate.set()
    worker.close()


def test_strangers_without_a_cookie_end_nobodys_session(person, page):
    client = person()
    shown = numbers(act(client, "/search", text="a dog").text)
    client.get("/progress")
    for _ in range(2 * MAX_VISITORS):
        assert "empty" in act(person(), "/search", text=" ").text
    assert numbers(client.get("/view").text) == shown


def test_many_who_refine_are_served_together(context, options, study):  # noqa: F811
    asked, begun, gate = [], threading.Event(), threading.Event()

    def captions_of(image_ids):
        asked.append(len(image_ids))
        begun.set()
        gate.wait(10)
        return KnownCaptions().captions_of(image_ids)

    page = Page(shared(replace(context, captions=Answering(captions_of))), options, study, describe=False)
    people = [TestClient(Guard(page.app(), ()), base_url=ORIGIN) for _ in range(8)]
    for client in people:
        shown = numbers(act(client, "/search", text="a dog").text)
        act(client, "/mark", picture=shown[0], mark="like")
    sending = [threading.Thread(target=act, args=(client, "/more")) for client in people]
    for thread in sending:
        thread.start()
    begun.wait(10)
    until = time.monotonic() + 10
    while not all(client.get("/progress").json()["busy"] for client in people) and time.monotonic() < until:
        time.sleep(0.01)
    assert all(client.get("/progress").json()["ahead"] == 0 for client in people)
    gate.set()
    for thread in sending:
        thread.join(10)
    assert all("a dog, a " in finished(client) for client in people)
    assert len(asked) < 5
    page.searching.close()
    page.writing.close()


def test_what_needs_no_model_does_not_wait_for_those_who_do(context):  # noqa: F811
    turns = shared(context)
    assert turns.captions.captions_of(IMAGE_IDS[:2]) == KnownCaptions().captions_of(IMAGE_IDS[:2])
    context.captions.is_open = False
    busy = threading.Thread(target=turns.captions.captions_of, args=(IMAGE_IDS[5:6],))
    busy.start()
    begun = time.monotonic()
    assert turns.captions.captions_of(IMAGE_IDS[:2]) == KnownCaptions().captions_of(IMAGE_IDS[:2])
    assert time.monotonic() - begun < 5
    context.captions.is_open = True
    busy.join(10)


def test_a_call_that_is_shared_gives_each_their_own_results_or_its_error():
    calls, lock = [], threading.Lock()

    def doubled(items):
        calls.append(len(items))
        if "x" in items:
            raise ValueError("no such item")
        return [2 * item for item in items]

    together, results = Together(doubled, lock), {}
    with lock:
        threads = [
            threading.Thread(target=lambda n=n: results.__setitem__(n, together([n] * n))) for n in range(9)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join(10)
    assert results == {n: [2 * n] * n for n in range(9)} and len(calls) < 9
    with pytest.raises(ValueError, match="no such item"):
        together(["x"])
    assert together(["y"]) == ["yy"]


def test_loading_the_models_is_called_by_its_name_and_counts_as_nobody(person, page, options):  # noqa: F811
    gate, page.context = page.context.captions, shared(page.context)
    page.visitors.new_session = lambda: Session(page.context, options)
    gate.is_open = False
    page.warm_up()
    people = [person(), person()]
    for client in people:
        shown = numbers(act(client, "/search", text="a dog").text)
        act(client, "/mark", picture=shown[0], mark="like")
        act(client, "/more")
    first, second = (client.get("/progress").json() for client in people)
    loading = "Loading the captioner (1 of 2)"
    assert (first["stage"], first["ahead"]) == (loading, 0) and people[0].get("/ready").text == loading
    assert second["ahead"] == 1
    other = person()  # what needs no model does not wait
    act(other, "/search", text="a dog")
    assert len(numbers(act(other, "/append").text)) == 20 and "data-busy" not in act(other, "/more").text
    gate.is_open = True
    for client in people:
        assert "a dog, a " in finished(client)
    assert people[0].get("/ready").text == "" and "Ready" in people[0].get("/").text


def test_closing_waits_for_the_stage_at_work_and_begins_no_other(monkeypatch):
    monkeypatch.setattr("interactive.visitors.QUIET_SECONDS", 0.0)
    worker, begun, gate, stages = Worker("test"), threading.Event(), threading.Event(), []

    def work(say):
        for stage in ("loading", "writing"):
            say(stage)
            stages.append(stage)
            begun.set()
            gate.wait(10)

    job = worker.submit(work)
    begun.wait(10)
    closing = threading.Thread(target=worker.close)
    closing.start()
    while not worker.is_closed:
        time.sleep(0.005)
    gate.set()
    closing.join(10)
    assert job.future.done() and stages == ["loading"]


# Refused


KNOWN_HOSTS = ("localhost", "localhost:7860", "127.0.0.1:7860", "[::1]:7860", "My-Machine.example:7860")
OTHER_HOSTS = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "e@localhost", "[", "")


@pytest.mark.parametrize("host", KNOWN_HOSTS + OTHER_HOSTS)
def test_only_our_own_names_are_answered(person, host):
    client = person(names=("my-machine.example",))
    status = 200 if host in KNOWN_HOSTS else 421
    assert client.get("/", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://localhost:1", "https://x"])
def test_other_pages_cannot_send_forms(person, page, origin):
    client = person()
    for path in ("/search", "/mark", "/by-picture", "/open", "/study", "/over", "/at", "/file", "/append"):
        headers = {"Origin": origin} if origin else {}
        assert client.post(path, data={"text": "a dog"}, headers=headers).status_code == 403
        # nor does a link do anything: a study's only leads to its button
        assert client.get(path).status_code == (200 if path == "/study" else 405)
    assert len(page.visitors) == 0


def test_with_a_token_only_its_address_opens_the_page(person, page):
    client = person(token="secret")
    for path in ("/", "/thumbnail/1", "/static/page.js", "/?token=wrong", "/progress"):
        answer = client.get(path)
        assert answer.status_code == 403 and "address that was printed" in answer.text
    assert act(client, "/search", text="a dog").status_code == 403 and len(page.visitors) == 0
    answer = client.get("/?token=secret&q=dog")
    assert (answer.status_code, answer.headers["location"]) == (303, "/?q=dog")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie
    assert (
        client.get("/").status_code == 200 and len(numbers(act(client, "/search", text="a dog").text)) == 10
    )


def test_headers_stand_on_every_answer_and_no_script_or_style_inline(person):
    client = person()
    for path in ("/", "/nosuch", "/static/page.js", "/thumbnail/0", "/progress"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert (
            "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        )
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert client.get("/", headers={"Host": "evil.example"}).headers["x-content-type-options"] == "nosniff"
    assert client.get("/").headers["cache-control"] == "no-store"
    for text in (client.get("/").text, act(client, "/search", text="a dog").text, act(client, "/study").text):
        assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son\w+=|javascript:", text)


UPLOAD = png(Image.new("RGB", (40, 30), PAINT["green"]))
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}\x00\x1b"


def test_hostile_words_and_captions_are_text_wherever_they_come_back(person, page):
    page.context.captions.known.captions_of = lambda ids: [HOSTILE for _ in ids]
    client = person()
    for path, fields in (("/search", {"text": HOSTILE}), ("/edited", {"text": HOSTILE + " again"})):
        act(client, path, **fields)
        text = finished(client)
        assert "<script>alert" not in text and "<img src=x" not in text and "\x1b" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "{{7*7}}" in text
    act(client, "/mark", picture=numbers(text)[0], mark="like")
    act(client, "/propose")
    assert "<img src=x" not in finished(client)
    assert "at most 500" in act(client, "/search", text="x" * 501).text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty"),
        (b"<!doctype html><script>alert(1)</script>", "not a picture"),
        (b"\x89PNG\r\n\x1a\n<html>", "not a picture"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (declared_png(30_000, 30_000), "too large"),
        (declared_png(8_000, MAX_UPLOADED_PIXELS // 8_000 + 1), "too large"),
        (declared_png(200, 200), "cannot be decoded"),
    ],
)
def test_hostile_uploads_are_refused_in_a_sentence(person, data, said, caplog):
    client = person()
    act(client, "/search", text="a dog")
    answer = client.post("/by-picture", content=data, headers=OURS)
    assert answer.status_code == 200 and said in answer.text
    assert "a dog" in answer.text and "/tmp" not in answer.text  # the session is as it was
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_uploads_and_forms_are_bounded_in_bytes(person):
    client = person()
    for path, most in (("/by-picture", MAX_UPLOADED_BYTES), ("/search", MAX_FORM_BYTES)):
        assert client.post(path, content=b"x" * (most + 1), headers=OURS).status_code == 413

        def parts(most=most):  # chunks: no length is announced
            for _ in range(most // 4096 + 2):
                yield b"x" * 4096

        assert client.post(path, content=parts(), headers=OURS).status_code == 413


def test_only_the_index_s_pictures_are_served_by_number(person, page, picture_folder, tmp_path):  # noqa: F811
    client = person()
    answer = client.get("/thumbnail/7")
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (96, 96)
    (picture_folder / "other.png").write_bytes(png(Image.new("RGB", (9, 9))))
    for path in (
        "/thumbnail/150", "/thumbnail/-1", "/thumbnail/99999999999999999999", "/thumbnail/other.png",
        "/picture/..%2f..%2fetc%2fpasswd", "/static/../page.py", "/static/%2e%2e/page.py",
        "/static/..%5cpage.py", "/templates/page.html.j2",
    ):  # fmt: skip
        assert client.get(path).status_code == 404, path
    page.context.paths[IMAGE_IDS[3]] = tmp_path / "gone.png"
    answer = client.get("/picture/3")
    assert answer.status_code == 404 and "gone" not in answer.text


def test_names_are_not_shown_unless_told(person, page):
    client = person()
    text = act(client, "/search", text="a red dog").text
    assert "red-dog-beach" not in text and "secret-folder-name" not in text
    page._names_shown = True
    assert "red-dog-beach" in client.get("/view").text
    assert "secret-folder-name" not in client.get("/view").text


def test_a_failure_is_an_id_outside_and_a_traceback_in_the_log(person, page, options, caplog):  # noqa: F811
    page.context = with_failing(page.context, RuntimeError("token hf_secret in /secret/path"))
    client = person()
    page.visitors.new_session = lambda: Session(page.context, options)
    shown = numbers(act(client, "/search", text="a dog").text)
    act(client, "/mark", picture=shown[0], mark="like")
    text = act(client, "/more").text
    (number,) = re.findall(r"log under (\w{8})", text)
    assert "secret" not in text and "Traceback" not in text and "RuntimeError" not in text
    (record,) = [record for record in caplog.records if record.name == "interactive.page"]
    assert number in record.getMessage() and "hf_secret" in str(record.exc_info[1])
    assert numbers(text) == shown  # the round is still there, and so is the worker
    assert len(numbers(act(client, "/search", text="a cat").text)) == 10
    page.visitors.stranger = lambda: 1 / 0  # nor does a bug in a handler tell more
    answer = person().get("/")
    assert answer.status_code == 500 and "ZeroDivision" not in answer.text and "log under" in answer.text


# Pictures


def test_thumbnails_are_made_once_upright_and_without_camera_data(tmp_path):
    picture = Image.new("RGB", (600, 300), "red")
    picture.paste("blue", (0, 0, 300, 300))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to see it upright
    exif[0x010F] = "a camera"
    picture.save(tmp_path / "turned.jpg", exif=exif)
    made = Image.open(io.BytesIO(jpeg(tmp_path / "turned.jpg", 200)))
    assert made.size == (100, 200) and made.getpixel((50, 20))[2] > 200 > 50 > made.getpixel((50, 20))[0]
    assert not made.getexif()
    (tmp_path / "turned.jpg").unlink()
    assert len(jpeg(tmp_path / "turned.jpg", 200)) and jpeg.cache_info().maxsize  # made once, kept
    with pytest.raises(ValueError, match="no such file"):
        jpeg(tmp_path / "turned.jpg", 99)
