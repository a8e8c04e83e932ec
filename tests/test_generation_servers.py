"""Models behind servers: a real `transformers serve` on loopback, and a server that does harm."""

import base64
import io
import itertools
import json
import re
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from chat_servers import FaultServer, into_hub_cache, transformers_serve
from conftest import IMAGE_IDS, one_target
from PIL import Image as PILImage
from tiny_vlms import llava_next, pictures

from captioning import Captioning
from evaluation.runs import read_rounds
from experiments.captions import caption_dataset
from experiments.own_models import OwnModels
from experiments.run_folder import run_folder
from experiments.setup import Setup
from feedback.users import FirstUser
from generation.captions import CaptionCache, ImageCaptions
from generation.prompts import CAPTION
from generation.servers import KEY_VARIABLE, MAX_SIDE, RETRIES, ChatServers, ServersFailed, data_url
from query_editing import QueryEditing
from records import Dataset, Image
from settings import CaptionSettings, ExperimentSettings, read_settings

pytest.importorskip("fastapi", reason="pip install -r requirements/dev.txt")
openai = pytest.importorskip("openai", reason="pip install -r requirements/servers.txt")

VLM, CHAT = "tests/llava", "tests/llama"


@pytest.fixture(autouse=True)
def straight_ahead(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


@pytest.fixture
def harmful():
    """Two servers of both models."""
    opened = [FaultServer(VLM, CHAT) for _ in range(2)]
    yield opened
    for server in opened:
        server.close()


@pytest.fixture
def server(harmful):
    return harmful[0]


def servers(*behind, model_id=CHAT, **options):
    options = {"requests": 2, "max_seconds": 60.0} | options
    return ChatServers([server.address for server in behind], model_id, **options)


def as_sent(image):
    """The picture that a server sees."""
    head, _, code = data_url(image).partition(",")
    assert head == "data:image/jpeg;base64"
    return PILImage.open(io.BytesIO(base64.b64decode(code))).convert("RGB")


def test_captions_and_rewrites_are_those_of_the_same_models_in_this_process(tmp_path, language_model):
    (tmp_path / "llava").mkdir()
    vlm = llava_next(tmp_path / "llava")
    for model_id, path in ((VLM, vlm), (CHAT, language_model)):
        into_hub_cache(tmp_path / "hub", model_id, Path(path))
    with transformers_serve(tmp_path / "hub", tmp_path / "log") as upstream:
        behind = ChatServers([upstream], VLM, requests=2, prices=(1.0, 10.0))
        behind.check()
        served = Captioning(VLM, batch_size=2, servers=behind)
        captions = served.caption(pictures())
        rewriting = QueryEditing(CHAT, servers=ChatServers([upstream], CHAT, requests=3))
        asked = ["a dog", "food", "two of them"], ["a red cat", "<|im_end|>a cat", "a dog"]
        rewrites = rewriting.rewrite(*asked)
    here = Captioning(vlm, "fp32", batch_size=1)
    assert captions == here.caption([as_sent(image) for image in pictures()]) and len(set(captions)) > 1
    # A random model may write the padding token, which this process does not count.
    assert 0 <= served.tokens_written - here.tokens_written <= 2 < here.tokens_written
    assert behind.tokens_read > served.tokens_written / 2
    assert served.money == pytest.approx((behind.tokens_read + 10 * behind.tokens_written) / 1e6)
    here = QueryEditing(language_model, "fp32", batch_size=1)
    assert rewrites == here.rewrite(*asked) and any(rewrites)
    assert 0 <= rewriting.tokens_written - here.tokens_written <= 2 < here.tokens_written


def test_a_request_is_greedy_bounded_and_free_of_template_tokens(server):
    servers(server).complete(["a <|im_<|im_end|>start|>dog</s> and <image> 2 < 3 cats"], max_tokens=3)
    large = PILImage.new("RGB", (3 * MAX_SIDE, MAX_SIDE), "red")
    servers(server, model_id=VLM).describe([large], CAPTION, max_tokens=2)
    words, picture = server.requests
    assert words["messages"][0]["content"] == "a <|im_ start|>dog and 2 < 3 cats"
    assert (words["model"], words["temperature"], words["max_tokens"]) == (CHAT, 0.0, 3)
    sent, prompt = picture["messages"][0]["content"]
    assert prompt == {"type": "text", "text": CAPTION}
    assert sent["image_url"]["url"] == data_url(large)
    assert "seed" not in words
    servers(server).complete(["a dog"], max_tokens=3, temperature=0.1, seed=7)
    assert (server.requests[-1]["temperature"], server.requests[-1]["seed"]) == (0.1, 7)
    assert as_sent(large).size == (MAX_SIDE, MAX_SIDE // 3) and large.size[0] == 3 * MAX_SIDE


@pytest.mark.parametrize("fault", ["cut", (500, {}, b"no"), (408, {}, b""), (429, {}, b"")])
def test_what_may_pass_is_tried_again(server, fault):
    server.faults = [fault, fault]
    behind = servers(server)
    assert behind.complete(["a dog"], max_tokens=5) == servers(server).complete(["a dog"], max_tokens=5)
    assert len(server.requests) == 4  # three of the first, one of the second
    assert behind.tokens_written == 5  # only the answer that came is counted


@pytest.mark.parametrize("fault", ["slow", "drip"])
def test_an_answer_has_one_deadline(server, fault):
    server.faults = [fault] * 20
    with pytest.raises(ServersFailed, match=r"gave no answer: no whole answer within 0.3 s;") as caught:
        servers(server, max_seconds=0.3).complete(["a dog"], max_tokens=5)
    assert caught.value.answers == [None]


@contextmanager
def raw_server(begin, again, pause):
    """A server that begins an answer, and then sends something again and again."""

    def answer(connection):
        with suppress(OSError), connection:
            connection.recv(1 << 16)
            connection.sendall(begin)
            while True:
                connection.sendall(again)
                time.sleep(pause)

    def accept():
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=listening.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        listening.shutdown(socket.SHUT_RDWR)


CHUNKED = b" x\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "status": (b"", b"H", 0.05),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-a: b\r\n", 0.05),
    "interim": (b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 100, 0.01),
    "trailers": (b"HTTP/1.1 200" + CHUNKED + b"2\r\n{}\r\n0\r\n", b"X-a: b\r\n", 0.05),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_the_deadline_is_that_of_the_whole_answer(kind):
    with raw_server(*ENDLESS[kind]) as address:
        begun = time.monotonic()
        with pytest.raises(ServersFailed, match=r"no whole answer within 0.5 s;"):
            ChatServers([address], CHAT, requests=1, max_seconds=0.5).complete(["a dog"], max_tokens=5)
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("status", [b"200", b"400"])
def test_an_answer_without_an_end_is_not_kept_in_memory(status, monkeypatch):
    monkeypatch.setattr("generation.servers.RETRIES", 0)
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with (
        raw_server(b"HTTP/1.1 " + status + CHUNKED, chunk, 0) as address,
        pytest.raises(ServersFailed, match=r"more than 4 MB, expected a short answer"),
    ):
        ChatServers([address], CHAT, requests=1).complete(["a dog"], max_tokens=5)


def test_a_number_of_thousands_of_digits_costs_no_answer(server):
    server.faults = [(200, {}, b'{"choices": [{"message": {"content": "a dog"}}], "usage": '
                      b'{"prompt_tokens": ' + b"9" * 5000 + b"}}")]  # fmt: skip
    assert servers(server).complete(["a cat"], max_tokens=5) == ["a dog"]


@pytest.mark.parametrize(
    ("fault", "requests", "reason"),
    [
        ("cut", RETRIES + 1, "peer closed connection"),
        ((200, {}, b"<html>an error page</html>"), 1, "expected JSON, got <html>an error page</html>"),
        ((200, {}, b'{"choices": []}'), 1, r"expected a chat completion, got {'choices': \[\]}"),
        ((400, {}, b"the prompt is too long"), 1, "status 400: the prompt is too long"),
        ((401, {}, b""), 1, f"status 401 .*{KEY_VARIABLE}"),
        ((404, {}, b""), 1, "status 404 .*end in /v1"),
        ((302, {"Location": "http://127.0.0.1:9/v1"}, b""), 1, "status 302"),
        ((503, {"Retry-After": "3600"}, b"in an hour"), 1, "status 503: in an hour"),
    ],
)
def test_what_does_not_pass_ends_in_one_line_after_a_bounded_number_of_attempts(
    server, fault, requests, reason
):
    server.faults = [fault] * 20
    with pytest.raises(
        ServersFailed, match=rf"^the server http://127\S+ gave no answer: .*{reason}"
    ) as caught:
        servers(server).complete(["a dog"], max_tokens=5)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == requests


def test_a_server_is_left_alone_for_as_long_as_it_asks(server):
    server.faults = [(429, {"Retry-After": "1"}, b"")]
    servers(server, requests=1).complete(["a dog"], max_tokens=2)
    first, second = server.arrivals
    assert second - first >= 1.0


@pytest.mark.parametrize("counts", [(-5, 10**12), ("7", 1.5)])
def test_tokens_that_cannot_be_are_not_counted(server, counts, caplog):
    usage = dict(zip(("prompt_tokens", "completion_tokens"), counts, strict=True))
    answer = {"choices": [{"message": {"content": "a dog"}}], "usage": usage}
    server.faults = [(200, {}, json.dumps(answer).encode())]
    behind = servers(server, prices=(1.0, 1.0))
    assert behind.complete(["a dog"], max_tokens=2) == ["a dog"]
    assert "tokens for one request, expected 0 to" in caplog.text
    assert behind.money == behind.tokens_read == behind.tokens_written == 0


def when_under_way(behind, count, act):
    """Acts, in another thread, as soon as so many requests are under way together."""

    def wait():
        while sum(server.under_way for server in behind) < count:
            time.sleep(0.01)
        act()

    for server in behind:
        server.hold.clear()
    threading.Thread(target=wait, daemon=True).start()


def test_work_is_shared_out_and_bounded(harmful):
    behind = servers(*harmful, requests=3)
    prompts = [f"{number} dogs" for number in range(20)]
    when_under_way(harmful, behind.at_a_time, lambda: [server.hold.set() for server in harmful])
    answers = behind.complete(prompts, max_tokens=4)
    assert [server.max_under_way for server in harmful] == [3, 3]
    asked = [request["messages"][0]["content"] for server in harmful for request in server.requests]
    assert sorted(asked) == sorted(prompts)
    assert answers == [servers(harmful[0]).complete([prompt], max_tokens=4)[0] for prompt in prompts]


def test_who_stops_the_run_does_not_wait_for_answers_under_way(server):
    main = threading.main_thread().ident
    when_under_way([server], 1, lambda: signal.pthread_kill(main, signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            servers(server, requests=1).complete(["a dog", "a cat"], max_tokens=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert server.under_way == 1
    server.hold.set()


def test_one_server_does_the_work_of_another_that_is_gone(harmful):
    harmful[0].gone_after = 2
    answers = servers(*harmful).complete([f"{number} dogs" for number in range(12)], max_tokens=2)
    assert all(answers) and len(harmful[1].requests) >= 10
    assert len(harmful[0].requests) <= 2 + 2 * (RETRIES + 1)  # it is not asked in vain for every prompt
    for server in harmful:
        server.gone_after = 0
    with pytest.raises(ServersFailed) as caught:
        servers(*harmful).complete(["a dog", "a cat"], max_tokens=2)
    assert caught.value.answers == [None, None]


def test_servers_without_the_model_without_a_list_and_not_there_are_named(server):
    with pytest.raises(ValueError, match=rf"offers the models .*{CHAT}, expected 'llava'; name one of them"):
        servers(server, model_id="llava").check()
    server.models = (200, {}, b'{"data": 3}')
    with pytest.raises(ValueError, match=r"cannot be used: expected a list of models, got {'data': 3}"):
        servers(server).check()
    server.close()
    with pytest.raises(ValueError, match=r"^the server http://127\S+ cannot be used: .*(refused|failed)"):
        servers(server).check()


def test_the_key_goes_out_and_nowhere_else(server, monkeypatch, caplog):
    monkeypatch.setenv(KEY_VARIABLE, "sk-12345")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-67890")
    caplog.set_level("DEBUG")
    server.faults = [(500, {}, b"try later, sk-12345"), (401, {}, b"your key sk-12345 is wrong")]
    with pytest.raises(ServersFailed, match=r"your key \*\*\* is wrong") as caught:
        servers(server).complete(["a dog"], max_tokens=2)
    assert [headers["authorization"] for headers in server.headers] == ["Bearer sk-12345"] * 2
    assert "12345" not in caplog.text + repr(caught.value)
    server.faults = [(200, {}, b'{"choices": [{"message": {"content": "a dog, sk-12345"}}]}')]
    assert servers(server).complete(["a dog"], max_tokens=2) == ["a dog, ***"]
    server.models = (200, {}, b'{"data": [{"id": "sk-12345"}]}')
    with pytest.raises(ValueError, match=r"offers the models \*\*\*, expected"):
        servers(server).check()
    monkeypatch.delenv(KEY_VARIABLE)
    servers(server).complete(["a dog"], max_tokens=2)
    assert "67890" not in server.headers[-1]["authorization"]


@pytest.mark.parametrize("key", ["sk-12\n345", "sk-12345é"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(server, monkeypatch, key):
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ValueError, match=f"variable {KEY_VARIABLE}: got a key with control") as caught:
        servers(server).check()
    assert "sk-12" not in str(caught.value) and not server.requests


def test_the_missing_client_is_named_with_its_command(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ModuleNotFoundError, match=r"run: pip install -r requirements/servers\.txt"):
        servers(server).check()


@pytest.mark.parametrize(
    "address",
    ["http://me:secret@host/v1", "https://host/v1?key=secret", "host:8000/secret", "http://host:port/v1"],
)
def test_settings_take_no_address_with_a_secret_in_it(address):
    with pytest.raises(ValueError, match=r"rewrite_servers: got .*expected an address") as caught:
        ExperimentSettings(rewrite_servers=(address,))
    assert "me:" not in str(caught.value) and "key=" not in str(caught.value)


def test_constants_and_flags_name_several_servers():
    constants = {"CAPTION_SERVERS": ("http://a:1/v1",)}
    given = read_settings(ExperimentSettings, constants, ["--rewrite-servers", "http://b/v1", "http://c/v1"])
    assert given.caption_servers == ("http://a:1/v1",)
    assert given.rewrite_servers == ("http://b/v1", "http://c/v1")
    for wrong in ({"caption_servers": ()}, {"rewrite_prices": (1.0, -1.0)}, {"server_requests": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ExperimentSettings(**wrong)


@pytest.fixture
def collection(tmp_path):
    """A folder of twelve different pictures with a caption each."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = ["image_name,comment_number,comment"]
    for number, image in enumerate(itertools.islice(itertools.cycle(pictures()), 12)):
        image.putpixel((0, 0), (20 * number, 0, 0))
        image.save(folder / f"{number}.png")
        rows.append(f"{number}.png,0,picture {number}")
    (folder / "images_captions.csv").write_text("\n".join(rows))
    return folder


def test_a_run_whose_server_goes_keeps_every_caption_and_goes_on_with_another(
    harmful, collection, monkeypatch, caplog
):
    monkeypatch.setenv(KEY_VARIABLE, "sk-12345")
    monkeypatch.setattr("generation.servers.RETRIES", 1)

    def caption(server):
        return caption_dataset(
            CaptionSettings(
                dataset="image_folder",
                root=collection,
                caption_model=VLM,
                caption_servers=(server.address,),
                caption_cache=collection.parent / "captions.sqlite",
                caption_prices=(0.0, 1e6),
                server_requests=2,
            )
        )

    first, second = harmful
    first.gone_after = 5
    with pytest.raises(ServersFailed, match=r"what was done is kept, the same command goes on from here$"):
        caption(first)
    caplog.set_level("INFO")
    captions = caption(second)
    assert (captions.made, captions.reused) == (7, 5) and len(second.requests) == 7
    assert captions.captioner_name == f"server {VLM}: {CAPTION}"
    written = int(re.search(r"the servers wrote (\d+) tokens", caplog.text)[1])
    assert written == 7 * 5 and f"at the prices given: {written}.0000" in caplog.text
    assert b"12345" not in (collection.parent / "captions.sqlite").read_bytes()


def test_a_caption_that_is_empty_is_counted_and_a_picture_out_of_the_collection_is_described(
    server, tmp_path
):
    server.faults = [(200, {}, json.dumps({"choices": [{"message": {"content": None}}]}).encode())]
    captioning = Captioning(VLM, servers=servers(server, model_id=VLM))
    captions = ImageCaptions(captioning, [Image("1", tmp_path / "1")], CaptionCache(tmp_path / "c"), 8)
    assert captions.describe(pictures()[0]) == "an image"
    assert (captioning.empty, captioning.tokens_written) == (1, 0)


class OneCaption:
    name = "one caption"

    def caption(self, images):
        return ["a red dog on the beach"] * len(images)


def test_rounds_go_on_after_the_rewriter_went_as_if_it_had_stayed(server, retriever, tmp_path, monkeypatch):
    monkeypatch.setattr("generation.servers.RETRIES", 1)
    picture = tmp_path / "picture.png"
    pictures()[0].save(picture)
    queries = tuple(one_target(str(n), f"{n} red dogs", IMAGE_IDS[n]) for n in range(20, 29))
    images = tuple(Image(image_id, picture) for image_id in IMAGE_IDS)
    settings = ExperimentSettings(
        rounds=2,
        query_batch=3,
        protocol="chatir",
        rewrite_model=CHAT,
        rewrite_servers=(server.address,),
        rewrite_prices=(0.0, 1e6),
    )

    def play(name):
        dataset = Dataset("small", tmp_path, images, queries, ())
        parts = Setup(settings, dataset, retriever, queries, own=OwnModels(captioner=OneCaption()))
        parts.costs.keep_in(tmp_path / f"{name}.json")
        parts.costs.run = "run"
        parts.play("rewrite", FirstUser(), tmp_path / f"{name}.jsonl")

    def spent():
        return json.loads((tmp_path / "stopped.json").read_text())["run"]["rewrite"]

    play("whole")
    server.gone_after = len(server.requests) + 4
    with pytest.raises(ServersFailed):
        play("stopped")
    before, kept = spent(), read_rounds(tmp_path / "stopped.jsonl")
    assert before["money"] == before["tokens"] > 0
    whole = read_rounds(tmp_path / "whole.jsonl")
    assert 0 < len(kept) < len(whole) and len(kept) % 3 == 0
    server.gone_after = None
    play("stopped")
    assert read_rounds(tmp_path / "stopped.jsonl") == whole
    assert spent()["money"] == spent()["tokens"] > before["tokens"]


def test_a_run_may_change_servers_but_not_between_servers_and_here(tmp_path):
    def claim(model, **settings):
        given = ExperimentSettings(dataset="demo", output=tmp_path, rewrite_model="a", **settings)
        with run_folder(given, {"rewriter": model}) as folder:
            return folder

    folder = claim("server a", rewrite_servers=("http://one:8000/v1",))
    (folder / "rounds.jsonl").write_text("")
    claim("server a", rewrite_servers=("http://two:8000/v1",), server_requests=3)
    with pytest.raises(ValueError, match=r"other settings or data .rewriter: 'server a' there, None now"):
        claim(None)
