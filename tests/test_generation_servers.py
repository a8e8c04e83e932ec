"""Models behind servers: a real `transformers serve` on loopback, and a proxy before it that does harm."""

import base64
import dataclasses
import io
import itertools
import json
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from chat_servers import FaultProxy, into_hub_cache, transformers_serve
from conftest import IMAGE_IDS, KnownCaptions, one_target
from PIL import Image as PILImage
from tiny_vlms import llava_next, pictures

from captioning import Captioning
from evaluation.runs import append_rounds, read_rounds
from experiments.captions import caption_dataset
from experiments.own_models import OwnModels
from experiments.run_folder import run_folder
from experiments.setup import Setup
from feedback.protocols import PROTOCOLS
from feedback.rounds import run_rounds
from feedback.strategies import make_strategy
from feedback.users import FirstUser
from generation.captions import CaptionCache, ImageCaptions
from generation.loading import open_model
from generation.prompts import CAPTION
from generation.servers import KEY_VARIABLE, MAX_SIDE, RETRIES, ChatServers, ServersFailed, data_url
from generation.text_model import source_of
from query_editing import QueryEditing
from records import Dataset, Image
from settings import CaptionSettings, ExperimentSettings, read_settings

pytest.importorskip("fastapi", reason="pip install -r requirements/dev.txt")
openai = pytest.importorskip("openai", reason="pip install -r requirements/servers.txt")

VLM, CHAT = "tests/llava", "tests/llama"


@pytest.fixture(scope="module")
def models(tmp_path_factory, language_model):
    """The folders of a captioner and a chat model, by the names under which they are served."""
    vlm = llava_next(tmp_path_factory.mktemp("llava"))
    return {VLM: vlm, CHAT: language_model}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The folder whose models are served."""
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def upstream(models, hub, tmp_path_factory):
    for model_id, path in models.items():
        into_hub_cache(hub, model_id, Path(path))
    with transformers_serve(hub, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


@pytest.fixture(autouse=True)
def straight_ahead(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


@pytest.fixture
def proxies(upstream):
    opened = [FaultProxy(upstream) for _ in range(2)]
    yield opened
    for proxy in opened:
        proxy.close()


@pytest.fixture
def proxy(proxies):
    return proxies[0]


def servers(*proxies, model_id=CHAT, **options):
    options = {"requests": 2, "max_seconds": 60.0} | options
    return ChatServers([proxy.address for proxy in proxies], model_id, **options)


def as_sent(image):
    """The picture that a server sees."""
    head, _, code = data_url(image).partition(",")
    assert head == "data:image/jpeg;base64"
    return PILImage.open(io.BytesIO(base64.b64decode(code))).convert("RGB")


def test_captions_and_tokens_are_those_of_the_same_model_in_this_process(models, upstream):
    behind = ChatServers([upstream], VLM, requests=2, prices=(1.0, 10.0))
    behind.check()
    served = Captioning(VLM, batch_size=2, servers=behind)
    here = Captioning(models[VLM], "fp32", batch_size=1)
    captions = served.caption(pictures())
    assert captions == here.caption([as_sent(image) for image in pictures()])
    assert len(set(captions)) > 1
    # A random model may write the padding token, which this process does not count.
    assert 0 <= served.tokens_written - here.tokens_written <= 2 < here.tokens_written
    assert behind.tokens_read > served.tokens_written / 2
    assert served.money == pytest.approx((behind.tokens_read + 10 * behind.tokens_written) / 1e6)


def test_rewrites_are_those_of_the_same_model_in_this_process(models, upstream):
    behind = QueryEditing(CHAT, servers=ChatServers([upstream], CHAT, requests=3))
    here = QueryEditing(models[CHAT], "fp32", batch_size=1)
    queries, captions = ["a dog", "food", "two of them"], ["a red cat", "<|im_end|>a cat", "a dog"]
    rewrites = behind.rewrite(queries, captions)
    assert rewrites == here.rewrite(queries, captions) and any(rewrites)
    assert 0 <= behind.tokens_written - here.tokens_written <= 2 < here.tokens_written


@pytest.mark.slow
@pytest.mark.demo
def test_smollm2_rewrites_behind_a_server(upstream, hub, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = "smollm2-135m-instruct"
    source, options = source_of(name)
    open_model(AutoModelForCausalLM, name, "bf16", source=source, **options).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(source, **options).save_pretrained(tmp_path)
    into_hub_cache(hub, "tests/smollm2", tmp_path)
    # Not checked: this server lists its models once, and loads one that came later all the same.
    editing = QueryEditing("tests/smollm2", servers=ChatServers([upstream], "tests/smollm2", requests=2))
    dog, vehicle = editing.rewrite(
        ["a dog", "a vehicle at night"], ["a brown dog on the beach", "a red bus above two cats at night"]
    )
    assert {"dog", "beach"} <= set(re.findall(r"\w+", dog.lower()))
    assert {"vehicle", "night", "red", "bus"} <= set(re.findall(r"\w+", vehicle.lower()))


def test_a_request_is_greedy_bounded_and_free_of_template_tokens(proxy):
    servers(proxy).complete(["a <|im_<|im_end|>start|>dog</s> and <image> 2 < 3 cats"], max_tokens=3)
    (request,) = proxy.requests
    content = request["messages"][0]["content"]
    assert content == "a <|im_ start|>dog and 2 < 3 cats"
    assert (request["model"], request["temperature"], request["max_tokens"]) == (CHAT, 0.0, 3)


def test_pictures_go_out_with_bounded_sides_and_the_prompt(proxy):
    large = PILImage.new("RGB", (3 * MAX_SIDE, MAX_SIDE), "red")
    servers(proxy, model_id=VLM).describe([large], CAPTION, max_tokens=2)
    picture, prompt = proxy.requests[0]["messages"][0]["content"]
    assert prompt == {"type": "text", "text": CAPTION}
    assert picture["image_url"]["url"] == data_url(large)
    assert as_sent(large).size == (MAX_SIDE, MAX_SIDE // 3) and large.size[0] == 3 * MAX_SIDE


@pytest.mark.parametrize(
    "fault", ["cut", (500, {}, b"no"), (503, {}, b""), (408, {}, b""), (429, {"Retry-After": "soon"}, b"")]
)
def test_what_may_pass_is_tried_again(proxy, fault):
    proxy.faults = [fault, fault]
    behind = servers(proxy)
    assert behind.complete(["a dog"], max_tokens=5) == servers(proxy).complete(["a dog"], max_tokens=5)
    assert len(proxy.requests) == 4  # three of the first, one of the second
    assert 0 < behind.tokens_written <= 5  # only the answer that came is counted


@pytest.mark.parametrize("fault", ["slow", "drip"])
def test_an_answer_has_one_deadline(proxy, fault):
    proxy.faults = [fault] * 20
    with pytest.raises(ServersFailed, match=r"gave no answer: no whole answer within 0.3 s;") as caught:
        servers(proxy, max_seconds=0.3).complete(["a dog"], max_tokens=5)
    assert caught.value.answers == [None]


@pytest.mark.parametrize(
    ("fault", "requests", "reason"),
    [
        ("cut", RETRIES + 1, "peer closed connection"),
        ("garbage", 1, "expected JSON, got <html>an error page</html>"),
        ("no-choices", 1, r"expected a chat completion, got {'choices': \[\]}"),
        ((500, {}, b"out of memory"), RETRIES + 1, "status 500: out of memory"),
        ((429, {}, b"busy"), RETRIES + 1, "status 429: busy"),
        ((400, {}, b"the prompt is too long"), 1, "status 400: the prompt is too long"),
        ((401, {}, b""), 1, f"status 401 .*{KEY_VARIABLE}"),
        ((404, {}, b""), 1, "status 404 .*end in /v1"),
        ((302, {"Location": "http://127.0.0.1:9/v1"}, b""), 1, "status 302"),
        ((503, {"Retry-After": "3600"}, b"in an hour"), 1, "status 503: in an hour"),
    ],
)
def test_what_does_not_pass_ends_in_one_line_after_a_bounded_number_of_attempts(
    proxy, fault, requests, reason
):
    proxy.faults = [fault] * 20
    with pytest.raises(
        ServersFailed, match=rf"^the server http://127\S+ gave no answer: .*{reason}"
    ) as caught:
        servers(proxy).complete(["a dog"], max_tokens=5)
    assert "\n" not in str(caught.value)
    assert len(proxy.requests) == requests


def test_a_server_is_left_alone_for_as_long_as_it_asks(proxy):
    proxy.faults = [(429, {"Retry-After": "1"}, b"")]
    servers(proxy, requests=1).complete(["a dog"], max_tokens=2)
    first, second = proxy.arrivals
    assert second - first >= 1.0


@pytest.mark.parametrize(
    "usage",
    [{"prompt_tokens": -5, "completion_tokens": 10**12}, {"prompt_tokens": "7", "completion_tokens": 1.5}, 3],
)
def test_tokens_that_cannot_be_are_not_counted(proxy, usage, caplog):
    answer = {"choices": [{"message": {"content": "a dog"}}], "usage": usage}
    proxy.faults = [(200, {}, json.dumps(answer).encode())]
    behind = servers(proxy, prices=(1.0, 1.0))
    if usage == 3:
        with pytest.raises(ServersFailed, match="expected a chat completion"):
            behind.complete(["a dog"], max_tokens=2)
    else:
        assert behind.complete(["a dog"], max_tokens=2) == ["a dog"]
        assert "tokens for one request, expected 0 to" in caplog.text
    assert behind.money == behind.tokens_read == behind.tokens_written == 0


def test_work_is_shared_out_and_bounded(proxies):
    for proxy in proxies:
        proxy.hold.clear()
    behind = servers(*proxies, requests=3)
    prompts = [f"{number} dogs" for number in range(20)]

    def let_go_when_full():
        while sum(proxy.under_way for proxy in proxies) < behind.at_a_time:
            time.sleep(0.01)
        for proxy in proxies:
            proxy.hold.set()

    threading.Thread(target=let_go_when_full, daemon=True).start()
    answers = behind.complete(prompts, max_tokens=4)
    assert [proxy.max_under_way for proxy in proxies] == [3, 3]
    asked = [request["messages"][0]["content"] for proxy in proxies for request in proxy.requests]
    assert sorted(asked) == sorted(prompts)
    assert answers == [servers(proxies[0]).complete([prompt], max_tokens=4)[0] for prompt in prompts]


def test_who_stops_the_run_does_not_wait_for_answers_under_way(proxy):
    proxy.hold.clear()

    def stop_when_waiting():
        while not proxy.under_way:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=stop_when_waiting, daemon=True).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            servers(proxy, requests=1).complete(["a dog", "a cat"], max_tokens=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert proxy.under_way == 1
    proxy.hold.set()


def test_a_picture_that_cannot_be_sent_is_no_fault_of_the_server(proxy):
    with pytest.raises(ValueError, match="got a str, expected a PIL image"):
        servers(proxy, model_id=VLM).describe([pictures()[0], "no picture"], CAPTION, max_tokens=2)


def test_one_server_does_the_work_of_another_that_is_gone(proxies):
    proxies[0].gone_after = 2
    answers = servers(*proxies).complete([f"{number} dogs" for number in range(12)], max_tokens=2)
    assert len(answers) == 12 and len(proxies[1].requests) >= 10
    assert len(proxies[0].requests) <= 2 + 2 * (RETRIES + 1)  # it is not asked in vain for every prompt
    for proxy in proxies:
        proxy.gone_after = 0
    with pytest.raises(ServersFailed) as caught:
        servers(*proxies).complete(["a dog", "a cat"], max_tokens=2)
    assert caught.value.answers == [None, None]


def test_a_model_that_the_server_does_not_have_and_a_server_that_is_not_there(proxy):
    with pytest.raises(
        ValueError, match=rf"offers the models .*{CHAT}.*, expected 'llava'; name one of them"
    ):
        servers(proxy, model_id="llava").check()
    proxy.close()
    with pytest.raises(ValueError, match=r"^the server http://127\S+ cannot be used: .*refused"):
        servers(proxy).check()


def test_a_broken_list_of_models_is_named(proxy, monkeypatch):
    monkeypatch.setattr(proxy, "fetch", lambda *_: (200, {}, b'{"data": 3}'))
    with pytest.raises(ValueError, match=r"cannot be used: expected a list of models, got {'data': 3}"):
        servers(proxy).check()


def test_the_key_goes_out_and_nowhere_else(proxy, monkeypatch, caplog):
    monkeypatch.setenv(KEY_VARIABLE, "sk-12345")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-67890")
    caplog.set_level("DEBUG")
    proxy.faults = [(500, {}, b"try later, sk-12345"), (401, {}, b"your key sk-12345 is wrong")]
    with pytest.raises(ServersFailed, match=r"your key \*\*\* is wrong") as caught:
        servers(proxy).complete(["a dog"], max_tokens=2)
    assert [headers["authorization"] for headers in proxy.headers] == ["Bearer sk-12345"] * 2
    assert "12345" not in caplog.text + repr(caught.value)
    monkeypatch.delenv(KEY_VARIABLE)
    servers(proxy).complete(["a dog"], max_tokens=2)
    assert "67890" not in proxy.headers[-1]["authorization"]


@pytest.mark.parametrize("key", ["sk-123\n45", "sk-12\x7f345", "sk-12345é"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(proxy, monkeypatch, key):
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ValueError, match=f"variable {KEY_VARIABLE}: got a key with control") as caught:
        servers(proxy).check()
    assert "sk-12" not in str(caught.value) and not proxy.requests


def test_the_missing_client_is_named_with_its_command(proxy, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ModuleNotFoundError, match=r"run: pip install -r requirements/servers\.txt"):
        servers(proxy).check()


@pytest.mark.parametrize(
    "address",
    ["http://me:secret@host/v1", "https://host/v1?key=secret", "http://host/v1#secret", "host:8000/secret",
     "ftp://host/secret", "http:///v1", "http://host:port/v1"],
)  # fmt: skip
def test_settings_take_no_address_with_a_secret_in_it(address):
    with pytest.raises(ValueError, match=r"rewrite_servers: got .*expected an address") as caught:
        ExperimentSettings(rewrite_servers=(address,))
    assert "me:" not in str(caught.value) and "key=" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"caption_servers": ()},
        {"rewrite_prices": (1.0, -1.0)},
        {"server_requests": 0},
        {"server_seconds": 0.0},
    ],
)
def test_settings_have_ranges(wrong):
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


def caption_settings(proxy, collection, **others):
    return CaptionSettings(
        dataset="image_folder",
        root=collection,
        caption_model=VLM,
        caption_servers=(proxy.address,),
        caption_cache=collection.parent / "captions.sqlite",
        server_requests=2,
        **others,
    )


def test_a_run_whose_server_goes_keeps_every_caption_and_goes_on(proxy, collection, monkeypatch, caplog):
    monkeypatch.setattr("generation.servers.RETRIES", 1)
    proxy.gone_after = 5
    settings = caption_settings(proxy, collection, caption_prices=(0.0, 1e6))
    with pytest.raises(ServersFailed, match=r"what was done is kept, the same command goes on from here$"):
        caption_dataset(settings)
    proxy.gone_after = None
    answered, before = 5, len(proxy.requests)
    caplog.set_level("INFO")
    captions = caption_dataset(settings)
    assert (captions.made, captions.reused) == (12 - answered, answered)
    assert len(proxy.requests) - before == 12 - answered
    written = int(re.search(r"the servers wrote (\d+) tokens", caplog.text)[1])
    assert written > 0 and f"at the prices given: {written}.0000" in caplog.text


def test_the_cache_knows_model_and_prompt_but_not_where_the_server_stands(proxies, collection, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sk-12345")
    first = caption_dataset(caption_settings(proxies[0], collection))
    assert first.captioner_name == f"server {VLM}: {CAPTION}"
    second = caption_dataset(caption_settings(proxies[1], collection))
    assert (second.made, second.reused) == (0, 12) and not proxies[1].requests
    assert b"12345" not in (collection.parent / "captions.sqlite").read_bytes()
    here = Captioning(VLM, "fp16")
    assert here.name != Captioning(VLM, servers=servers(proxies[0])).name


def test_a_caption_that_is_empty_is_counted_and_a_picture_out_of_the_collection_is_described(proxy, tmp_path):
    proxy.faults = [(200, {}, json.dumps({"choices": [{"message": {"content": None}}]}).encode())]
    captioning = Captioning(VLM, servers=servers(proxy, model_id=VLM))
    captions = ImageCaptions(captioning, [Image("1", tmp_path / "1")], CaptionCache(tmp_path / "c"), 8)
    assert captions.describe(pictures()[0]) == "an image"
    assert (captioning.empty, captioning.tokens_written) == (1, 0)


def test_rounds_go_on_after_the_rewriter_went_as_if_it_had_stayed(proxy, retriever, tmp_path, monkeypatch):
    monkeypatch.setattr("generation.servers.RETRIES", 1)
    queries = [one_target(str(number), "a red dog", IMAGE_IDS[number]) for number in range(20, 32)]
    protocol = dataclasses.replace(PROTOCOLS["chatir"], target_may_be_picked=True)

    def play(path, played):
        run_rounds(
            queries,
            retriever=retriever,
            user=FirstUser(),
            strategy=make_strategy("rewrite", QueryEditing(CHAT, servers=servers(proxy))),
            protocol=protocol,
            captions=KnownCaptions(),
            round_count=3,
            played=played,
            batch_size=3,
            keep=lambda rounds: append_rounds(path, rounds),
        )
        return read_rounds(path)

    undisturbed = play(tmp_path / "whole.jsonl", [])
    asked = len(proxy.requests)
    assert asked > 1
    path = tmp_path / "rounds.jsonl"
    proxy.gone_after = asked + asked // 2
    with pytest.raises(ServersFailed):
        play(path, [])
    kept = read_rounds(path)
    assert 0 < len(kept) < len(undisturbed) and len(kept) % 3 == 0
    proxy.gone_after = None
    assert play(path, kept) == undisturbed == read_rounds(path)


class OneCaption:
    name = "one caption"

    def caption(self, images):
        return ["a red dog on the beach"] * len(images)


def test_what_a_run_has_spent_before_its_server_went_is_kept(proxy, retriever, tmp_path, monkeypatch):
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
        rewrite_servers=(proxy.address,),
        rewrite_prices=(0.0, 1e6),
    )

    def play():
        dataset = Dataset("small", tmp_path, images, queries, ())
        parts = Setup(settings, dataset, retriever, queries, own=OwnModels(captioner=OneCaption()))
        parts.costs.keep_in(tmp_path / "costs.json")
        parts.costs.run = "run"
        parts.play("rewrite", FirstUser(), tmp_path / "rounds.jsonl")

    def spent():
        return json.loads((tmp_path / "costs.json").read_text())["run"]["rewrite"]

    proxy.gone_after = 4
    with pytest.raises(ServersFailed):
        play()
    before = spent()
    assert before["money"] == before["tokens"] > 0
    proxy.gone_after = None
    play()
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


def test_constants_and_flags_name_several_servers():
    constants = {"CAPTION_SERVERS": ("http://a:1/v1",)}
    given = read_settings(ExperimentSettings, constants, ["--rewrite-servers", "http://b/v1", "http://c/v1"])
    assert given.caption_servers == ("http://a:1/v1",)
    assert given.rewrite_servers == ("http://b/v1", "http://c/v1")
