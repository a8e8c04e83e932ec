"""The page in a real browser, as people use it; screenshots stay in runs/screenshots."""

import shutil
import threading
import time
from pathlib import Path

import pytest
from interactive_world import PAINT, context, options, picture_folder, study  # noqa: F401
from PIL import Image

from evaluation.runs import read_rounds

pytestmark = pytest.mark.browser

try:
    import uvicorn
    from playwright.sync_api import expect, sync_playwright

    from interactive.guard import Guard
    from interactive.page import Page
except ModuleNotFoundError as error:
    pytest.skip(f"needs {error.name}: requirements/page.txt, requirements/dev.txt", allow_module_level=True)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs Debian's chromium: apt-get install chromium", allow_module_level=True)

SCREENSHOTS = Path(__file__).parent.parent / "runs" / "screenshots"
SECONDS = 15_000  # milliseconds that a step may take on a busy machine


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=SECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(context, options, study, monkeypatch):  # noqa: F811
    monkeypatch.setattr("interactive.page.REFINING", 1)  # one after the other, so that places can be seen
    return Page(context, options, study, names_shown=True)


@pytest.fixture
def address(page):
    config = uvicorn.Config(Guard(page.app(), ()), port=0, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    page.context.captions.is_open = True
    server.should_exit = True
    thread.join()


class Visitor:
    """Somebody at the page; what the browser complains of is kept."""

    def __init__(self, browser, address, **options):  # noqa: F811
        self.context = browser.new_context(viewport=options.pop("viewport", None), **options)
        self.context.set_default_timeout(SECONDS)
        self.tab = self.context.new_page()
        self.complaints = []
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        self.tab.goto(address)

    def search(self, words):
        self.tab.fill("#words", words)
        self.tab.keyboard.press("Enter")
        self.is_done()

    def is_done(self, rounds=1):
        expect(self.tab.locator(".trail li")).to_have_count(rounds)
        expect(self.tab.locator("main[data-busy]")).to_have_count(0)

    def cards(self):
        return self.tab.locator(".card").evaluate_all("cards => cards.map(card => card.dataset.name)")

    def card(self, place):
        return self.tab.locator(f".card:nth-child({place})")

    def shoot(self, name):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.tab.screenshot(path=SCREENSHOTS / f"{name}.png")


@pytest.fixture
def visit(browser, address):
    visitors = []

    def visit(**options):  # noqa: F811
        visitors.append(Visitor(browser, address, **({"viewport": {"width": 1280, "height": 860}} | options)))
        return visitors[-1]

    yield visit
    for visitor in visitors:
        visitor.context.close()
        assert visitor.complaints == []


def test_query_like_refine_edit_back(visit, context):  # noqa: F811
    ann = visit()
    expect(ann.tab.get_by_role("heading", name="Describe a picture")).to_be_visible()
    ann.shoot("empty-wide-light")
    ann.search("a dog")
    first = ann.cards()
    assert first == list(context.retriever.search(["a dog"], 10)[0].ids)
    expect(ann.tab.locator(".card img").first).to_have_attribute(  # captions come in while one looks
        "alt", f"a {first[0].replace('-', ' ', 1).replace('-', ' in the ')}"
    )
    expect(ann.tab.locator("#append")).to_have_text("Show more")
    expect(ann.tab.locator("#more")).to_be_hidden()
    ann.tab.click("#append")
    expect(ann.tab.locator(".card")).to_have_count(20)
    assert ann.cards()[:10] == first and ann.tab.locator(".trail li").count() == 1
    expect(ann.card(11).locator(".open")).to_be_focused()
    first = ann.cards()
    ann.card(2).locator(".like").click()
    ann.card(3).locator(".dislike").click()
    expect(ann.card(2)).to_have_class("card like")
    expect(ann.card(2).locator(".caption")).to_contain_text(" in the ")
    expect(ann.tab.locator("#marked")).to_have_text("1 liked, 1 disliked")
    expect(ann.tab.locator("#more")).to_have_text("More like these", use_inner_text=True)
    ann.tab.click("#more")
    ann.is_done(rounds=2)
    caption = ann.tab.locator("#liked .described span").inner_text()
    expect(ann.tab.locator("#liked img")).to_have_count(1)  # what was liked stays visible
    assert ann.tab.locator("#query ins").inner_text() == f", {caption}"
    assert not set(ann.cards()) & set(first)
    ann.shoot("refined-wide-light")
    ann.card(1).locator(".like").click()
    ann.tab.click("#propose")
    expect(ann.tab.locator("#edit")).to_be_focused()
    assert ann.tab.locator(".proposal ins").count() == 1
    ann.tab.fill("#edit", "a white cat in the room")
    ann.tab.get_by_role("button", name="Search with this").click()
    ann.is_done(rounds=3)
    assert ann.cards()[0] == "white-cat-room"
    expect(ann.tab.get_by_text("Edited by you")).to_be_visible()
    expect(ann.tab.locator("#liked img")).to_have_count(2)
    ann.tab.click("#back")
    expect(ann.tab.locator(".trail [aria-current]")).to_contain_text("2")
    ann.tab.click(".trail li:first-child button")
    expect(ann.tab.locator("#query")).to_have_text("a dog")
    assert ann.cards() == first
    expect(ann.card(2)).to_have_class("card like")
    ann.tab.reload()
    assert ann.cards() == first  # the session is the server's, a reload loses nothing


def test_save_open_export_and_options(visit, tmp_path):
    ann, bob = visit(), visit()
    ann.search("a dog")
    ann.card(1).locator(".like").click()
    ann.tab.click("#more")
    ann.is_done(rounds=2)
    ann.tab.click("#session summary")
    files = {}
    for name in ("Save", "Export rounds"):
        with ann.tab.expect_download() as download:
            ann.tab.get_by_role("link", name=name).click()
        files[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[name])
    assert [record.number for record in read_rounds(files["Export rounds"])] == [0, 1]
    bob.tab.click("#session summary")
    bob.tab.set_input_files("#open", files["Save"])
    bob.is_done(rounds=2)
    assert bob.cards() == ann.cards()
    bob.tab.click("#options summary")
    bob.tab.fill("#shown", "4")
    bob.tab.press("#shown", "Enter")
    expect(bob.tab.locator(".card")).to_have_count(4)
    assert bob.cards() == ann.cards()[:4]
    bob.tab.select_option("#threshold", "very close")
    expect(bob.tab.get_by_text("less than you asked for")).to_be_visible()
    assert bob.tab.locator("#options[open]").count() == 1  # what was open stays open


def test_a_visible_place_in_the_queue(visit, context):  # noqa: F811
    ann, bob = visit(), visit()
    for person, words in ((ann, "a dog"), (bob, "a cat")):
        person.search(words)
        expect(person.tab.locator("[data-undescribed]")).to_have_count(0)
        person.card(1).locator(".like").click()
        expect(person.card(1)).to_have_class("card like")
    context.captions.is_open = False
    ann.tab.click("#more")
    expect(ann.tab.locator("#stage")).to_contain_text("Describing the picture you liked")
    bob.tab.click("#more")
    expect(bob.tab.locator("#stage")).to_have_text("Waiting: 1 person is ahead of you")
    context.captions.is_open = True
    for person, word in ((ann, "dog"), (bob, "cat")):
        person.is_done(rounds=2)
        assert word in person.tab.locator("#query").inner_text()


def test_with_the_keyboard_alone(visit):
    ann = visit()
    keys = ann.tab.keyboard
    expect(ann.tab.locator("#words")).to_be_focused()
    keys.type("a dog")
    keys.press("Enter")
    ann.is_done()
    first = ann.cards()
    for _ in range(40):
        keys.press("Tab")
        if ann.tab.evaluate("document.activeElement.classList.contains('open')"):
            break
    keys.press("ArrowRight")
    keys.press("l")
    expect(ann.card(2)).to_have_class("card like")
    keys.press("ArrowDown")
    keys.press("d")
    expect(ann.card(7)).to_have_class("card dislike")
    keys.press("ArrowUp")
    keys.press("ArrowLeft")
    keys.press("Enter")
    expect(ann.tab.locator("#large")).to_be_visible()
    expect(ann.tab.locator("#large .name")).to_have_text(first[0])
    keys.press("ArrowLeft")  # there is none
    for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowLeft", 0)):
        keys.press(key)
        expect(ann.tab.locator("#large .name")).to_have_text(first[place])
    keys.press("l")
    expect(ann.tab.locator("#marked")).to_have_text("2 liked, 1 disliked")
    assert ann.tab.evaluate("document.activeElement.closest('.card').dataset.name") == first[0]
    keys.press("e")
    expect(ann.tab.locator("#edit")).to_be_focused()
    keys.press("Escape")
    expect(ann.tab.locator("#edit")).to_have_count(0)
    ann.card(1).locator(".open").focus()
    keys.press("e")
    expect(ann.tab.locator("#edit")).to_be_focused()
    keys.press("End")
    keys.type(" and a cat")
    keys.press("Enter")
    ann.is_done(rounds=2)
    expect(ann.tab.locator("#query")).to_contain_text("and a cat")
    keys.press("b")
    expect(ann.tab.locator("#query")).to_have_text("a dog")
    keys.press("m")
    ann.is_done(rounds=2)
    keys.press("?")
    expect(ann.tab.locator("#keys")).to_be_visible()
    keys.press("Escape")
    keys.press("/")
    expect(ann.tab.locator("#words")).to_be_focused()
    keys.type("mbl")  # letters in a field are letters
    assert ann.tab.locator("#words").input_value().endswith("mbl")
    ann.card(1).locator(".open").click()
    keys.press("f")
    expect(ann.tab.get_by_role("heading", name="Found in round 2")).to_be_visible()
    ann.card(3).locator(".open").focus()
    name = ann.cards()[2]
    keys.press("s")
    ann.is_done()
    assert ann.cards()[0] == name


def test_a_picture_of_ones_own_with_words_and_without(visit, tmp_path):
    Image.new("RGB", (300, 200), PAINT["green"]).save(tmp_path / "mine.jpg")
    ann = visit()
    ann.search("a horse")  # words that were searched already do not go along with a picture
    ann.tab.set_input_files("#upload", tmp_path / "mine.jpg")
    expect(ann.tab.get_by_text("The picture is part of this query")).to_be_visible()
    expect(ann.tab.locator("#query")).to_have_text("Pictures like this one")
    assert ann.tab.get_by_alt_text("Your picture").evaluate(
        "each => each.decode().then(() => each.naturalWidth)"
    )
    expect(ann.tab.locator("#words")).to_have_value("")
    ann.tab.fill("#words", "a dog")  # newly typed words do
    ann.tab.set_input_files("#upload", tmp_path / "mine.jpg")
    expect(ann.tab.locator("#query")).to_have_text("a dog")
    expect(ann.tab.locator("#words")).to_have_value("a dog")
    assert ann.cards()[0].startswith("green-dog")


def test_a_server_that_does_not_answer_is_said(visit):
    ann = visit()
    ann.search("a dog")
    ann.context.set_offline(True)
    ann.tab.click("#append")
    expect(ann.tab.get_by_role("alert")).to_have_text("The server does not answer.")
    ann.context.set_offline(False)
    ann.complaints.clear()
    ann.tab.click("#append")  # nothing is stuck
    expect(ann.tab.locator(".card")).to_have_count(20)


def test_back_and_forward_step_through_rounds_and_every_state_has_an_address(visit):
    ann, bob = visit(), visit()
    ann.search("a dog")
    states = [(ann.tab.url, ann.cards())]
    ann.card(2).locator(".like").click()
    expect(ann.card(2)).to_have_class("card like")
    ann.tab.click("#more")
    ann.is_done(rounds=2)
    states.append((ann.tab.url, ann.cards()))
    ann.search("a cat")
    states.append((ann.tab.url, ann.cards()))
    ann.card(4).hover()
    ann.card(4).locator(".similar button").click()
    expect(ann.tab.locator("#query")).to_have_text("Pictures like this one")
    ann.is_done()
    states.append((ann.tab.url, ann.cards()))
    assert len({address for address, _ in states}) == 4

    def is_at(number):
        expect(ann.tab.locator(".card").first).to_have_attribute("data-name", states[number][1][0])
        expect(ann.tab.locator("main[data-busy]")).to_have_count(0)
        assert (ann.tab.url, ann.cards()) == states[number]

    for number in (2, 1, 0):
        ann.tab.go_back()
        is_at(number)
    expect(ann.tab.locator("#words")).to_have_value("a dog")
    expect(ann.card(2)).to_have_class("card like")
    ann.tab.go_back()
    expect(ann.tab.locator(".samples")).to_be_visible()
    for number in (0, 1, 2, 3):
        ann.tab.go_forward()
        is_at(number)
    ann.tab.goto(states[1][0])
    is_at(1)
    ann.tab.reload()
    is_at(1)
    for number in (0, 3):  # for somebody else the search as it began
        bob.tab.goto(states[number][0])
        expect(bob.tab.locator(".card").first).to_have_attribute("data-name", states[number][1][0])
        assert bob.cards() == states[number][1]


def test_a_study_begins_at_its_link(visit, address, study):  # noqa: F811
    ann = visit()
    ann.tab.goto(f"{address}/study?participant=P02&condition=append")
    ann.shoot("study-start")
    ann.tab.get_by_role("button", name="Begin").click()
    expect(ann.tab.locator(".task .counts")).to_contain_text("practice")
    assert ann.tab.url == f"{address}/"
    ann.search("a dog")
    expect(ann.tab.locator("#append")).to_have_text("Show more")
    ann.tab.click("#append")  # as in the experiments, another round
    ann.is_done(rounds=2)
    ann.tab.reload()
    ann.tab.get_by_role("button", name="Give up").click()
    ann.tab.get_by_role("button", name="Next picture").click()
    expect(ann.tab.locator(".task .counts")).to_contain_text("picture 1 of 4")
    assert [(each.id, each.rounds) for each in study.searches()] == [("study-P02-0", 2), ("study-P02-1", 0)]


def test_the_pictures_of_the_start_page_can_be_clicked(visit, context):  # noqa: F811
    ann = visit()
    sample = ann.tab.locator(".samples button").nth(2)
    number = int(sample.get_attribute("value"))
    sample.click()
    ann.is_done()
    assert ann.cards()[0] == context.id_of(number)


def test_a_path_is_copied_and_columns_and_key_hints_follow_the_screen(visit, context):  # noqa: F811
    ann = visit(viewport={"width": 2000, "height": 900}, permissions=["clipboard-read", "clipboard-write"])
    bob = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    for person in (ann, bob):
        person.search("a dog")
        person.card(1).locator(".open").click()
        expect(person.tab.locator("#large")).to_be_visible()
    ann.tab.get_by_role("button", name="Copy path").click()
    expect(ann.tab.locator("#copied")).to_have_text("Copied")
    assert ann.tab.evaluate("navigator.clipboard.readText()") == str(context.paths[ann.cards()[0]])
    columns = "grid => getComputedStyle(grid).gridTemplateColumns.split(' ').length"
    assert [each.tab.locator("#grid").evaluate(columns) for each in (ann, bob)] == [8, 2]
    assert (
        ann.tab.locator("#large kbd:visible").count()
        and not bob.tab.locator("kbd:visible, #help:visible").count()
    )


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_it_fits_and_can_be_read_seen_or_not(visit, width, scheme):
    ann = visit(viewport={"width": width, "height": 844}, color_scheme=scheme, reduced_motion="reduce")
    ann.shoot(f"empty-{width}-{scheme}")
    hostile = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    words = f"{hostile} a dog that is really quite long to describe in so few words but goes on and on"
    ann.search(words)
    expect(ann.tab.locator("#query")).to_have_text(words)
    ann.card(1).locator(".like").click()
    ann.tab.click("#propose")
    expect(ann.tab.locator("#edit")).to_be_visible()
    ann.tab.click("#options summary")
    ann.shoot(f"proposal-{width}-{scheme}")
    assert ann.tab.title() == "Interactive image retrieval"
    assert ann.tab.locator("main script, main img[src=x]").count() == 0
    assert ann.tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for box in ann.tab.locator(".bar button:visible").evaluate_all(
        "buttons => buttons.map(button => button.getBoundingClientRect().toJSON())"
    ):
        assert box["left"] >= 0 and box["right"] <= width and box["height"] >= 40
    contrasts = ann.tab.evaluate(CONTRASTS)
    assert contrasts and min(contrasts.values()) >= 4.5, contrasts  # WCAG 2.2, 1.4.3, AA
    style = ann.tab.locator(".grid").evaluate("grid => getComputedStyle(grid).transitionDuration")
    assert set(style.split(", ")) == {"0s"}
    assert ann.tab.evaluate(NAMELESS) == []
    assert ann.tab.locator("#status").inner_text().startswith("10 pictures for")


# The contrast of text with what is behind it, WCAG 2.2 (relative luminance), for one element of each kind.
CONTRASTS = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = numbers(getComputedStyle(each).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = {};
  for (const name of ["#query", ".soft", "ins", ".primary", ".quiet", "summary", ".rank", ".mark.like",
                      "#marked", ".described span", ".options label", "textarea", ".trail button"]) {
    const element = document.querySelector(name);
    if (!element) continue;
    const pair = [light(numbers(getComputedStyle(element).color)), light(behind(element))].sort();
    found[name] = (pair[1] + 0.05) / (pair[0] + 0.05);
  }
  return found;
}"""

NAMELESS = """() => [...document.querySelectorAll("img, button, input, select, textarea, a")].filter((each) =>
  !each.closest("dialog:not([open])") && each.type !== "hidden" &&
  !(each.alt || each.ariaLabel || each.textContent.trim() || each.labels?.length || each.title)
  && !each.querySelector("img[alt]:not([alt=''])")).map((each) => each.outerHTML)"""
