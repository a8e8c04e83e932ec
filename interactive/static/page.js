// Makes the page's forms answer without a reload, adds keys, dropping and the large view.
// All content comes from the server as finished HTML, or is set as text.
"use strict";

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const main = () => $("#main");
const isBusy = () => main().hasAttribute("data-busy");
const openDetails = new Set();
let polling = 0;
let held = [];  // buttons that wait with us
let acting = "";  // the address that was last asked to do something
let stepping = false;  // whether the browser's Back or Forward, or the first address, led here

// Talking to the server

async function send(address, body, headers) {
  const alertLine = $("#alert");
  alertLine.hidden = true;
  try {
    const answer = await fetch(address, { method: "POST", body, headers });
    if (answer.ok) return answer;
    complain(await answer.text());
  } catch {
    complain("The server does not answer.");
  }
  return null;
}

function complain(text) {
  const line = $("#alert");
  line.textContent = text.slice(0, 300) || "That did not work.";
  line.hidden = false;
}

async function act(address, body, headers) {
  acting = address;
  waitFor("Working");
  const answer = await send(address, body, headers);
  if (answer) show(await answer.text(), address);
  else settle();
}

function waitFor(stage) {
  main().setAttribute("data-busy", "");
  const line = $("#working");
  if (line) line.hidden = false;
  const marked = $("#marked");
  if (marked) marked.hidden = true;
  held = $$("main button").filter((button) => !button.disabled);
  for (const button of held) button.disabled = true;
  if ($("#stage")) $("#stage").textContent = stage;
}

// Undoes waitFor after a refusal.
async function settle() {
  try {
    const answer = await fetch("/view");
    if (answer.ok) return show(await answer.text(), "");
  } catch { /* the complaint is on the page already */ }
  main().removeAttribute("data-busy");
  for (const button of held) button.disabled = false;
  if ($("#working")) $("#working").hidden = true;
  if ($("#marked")) $("#marked").hidden = false;
}

function show(html, address) {
  const focused = document.activeElement?.id;
  const old = $("#words");
  const cards = $$("#grid .card").length;
  const parsed = new DOMParser().parseFromString(html, "text/html");
  const fresh = parsed.getElementById("main");
  if (!fresh) return;
  $("#words", fresh)?.removeAttribute("autofocus");  // for whoever opens the page; here the focus is set below
  for (const each of $$("details", fresh)) if (openDetails.has(each.id)) each.open = true;
  main().replaceWith(document.adoptNode(fresh));
  // The field's default value is what was searched: words typed since stay, until they are searched too.
  const field = $("#words");
  if (field && old && old.value !== old.defaultValue && field.defaultValue === old.defaultValue) field.value = old.value;
  keepAddress();
  if (isBusy()) {
    for (const button of $$("main button")) button.disabled = true;
  } else if (address) {
    const moved = !["/append", "/options", "/propose"].includes(address);
    if (address === "/propose" || $("#edit")) $("#edit")?.focus();
    else if (address === "/append") $(".open", $$("#grid .card")[cards] ?? main())?.focus();
    else if (moved && focused !== "words") ($("#verdict-title") || focused && document.getElementById(focused) || $("#query") || $("#words"))?.focus({ preventScroll: true });
    else if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    if (moved) window.scrollTo({ top: 0 });
    const count = $$("#grid .card").length;
    if ($("#grid")) $("#status").textContent = `${count} pictures for: ${$("#query").textContent}`;
  }
  $(".trail [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  watch();
}

// Each round has an address, so that Back and Forward step through rounds and a link leads to a search.
const here = () => location.pathname + location.search;

function keepAddress() {
  if (isBusy()) return;
  const address = main().dataset.address;
  if (address !== here()) history[stepping ? "replaceState" : "pushState"](null, "", address);
  stepping = false;
}

function goToAddress() {
  stepping = true;
  if (!isBusy()) act("/at", new URLSearchParams(location.search));
}

// Says what is still being loaded.
async function prepare() {
  const line = $("#ready");
  while (line.textContent !== "Ready") {
    await new Promise((done) => setTimeout(done, 1000));
    try {
      const answer = await fetch("/ready");
      if (answer.ok) line.textContent = await answer.text() || "Ready";
    } catch { /* the server may come back */ }
  }
}

// Asks at /progress while something is worked on, or captions for the shown pictures are still to come.
async function watch() {
  const turn = ++polling;
  const waitsForCaptions = () => $(main().hasAttribute("data-describes") ? "[data-undescribed]" : ".like[data-undescribed]");
  let pause = 100, known = "";  // the pause, in milliseconds, grows while nothing is new
  while (isBusy() || waitsForCaptions()) {
    await new Promise((done) => setTimeout(done, pause));
    if (turn !== polling) return;
    let text = "";
    try {
      const answer = await fetch("/progress");
      if (answer.status === 409) return settle();  // we are not remembered any more
      if (answer.ok) text = await answer.text();
    } catch { /* the server may come back */ }
    if (turn !== polling) return;
    pause = text && text !== known ? 200 : Math.min(pause * 1.3, isBusy() ? 500 : 2000);
    if (!text) continue;
    known = text;
    const state = JSON.parse(text);
    describe(state.captions);
    if (isBusy() && !state.busy) {
      const answer = await fetch("/view");
      if (answer.ok && turn === polling) show(await answer.text(), acting);
      return;
    }
    if (state.busy && $("#stage")) {
      const others = state.ahead === 1 ? "1 person is ahead of you" : `${state.ahead} people are ahead of you`;
      $("#stage").textContent = state.ahead ? `Waiting: ${others}` : `${state.stage || "Working"}…`;
    }
  }
}

function describe(captions) {
  for (const [number, caption] of Object.entries(captions)) {
    const card = $(`.card[data-number="${Number(number)}"]`);
    if (!card) continue;
    card.removeAttribute("data-undescribed");
    $("img", card).alt = caption;
    if (card.classList.contains("like")) $(".caption", card).textContent = caption;
  }
}

// Marks

async function mark(card, kind) {
  if (isBusy()) return;
  const value = card.classList.contains(kind) ? "none" : kind;
  paint(card, value);
  const answer = await send("/mark", new URLSearchParams({ picture: card.dataset.number, mark: value }));
  if (!answer) return settle();
  const { liked, disliked } = await answer.json();
  const line = $("#marked");
  line.dataset.liked = liked;
  line.dataset.marks = liked + disliked;
  line.textContent = liked || disliked ? `${liked} liked${disliked ? `, ${disliked} disliked` : ""}` : "Like what comes close";
  $(".proposal")?.remove();
  if (value === "like") watch();
}

function paint(card, value) {
  card.classList.remove("like", "dislike");
  if (value !== "none") card.classList.add(value);
  for (const kind of ["like", "dislike"]) {
    const button = $(`.mark.${kind}`, card);
    button.setAttribute("aria-pressed", String(value === kind));
    button.value = value === kind ? "none" : kind;
  }
  const alt = $("img", card).alt;
  $(".caption", card).textContent = value === "like" && !card.hasAttribute("data-undescribed") ? alt : "";
}

function actOn(card, address) {
  if (card && !isBusy()) act(address, new URLSearchParams({ picture: card.dataset.number }));
}

// The large view

let enlarged = null;

function enlarge(card) {
  enlarged = card;
  const dialog = $("#large");
  $("img", dialog).src = $(".open", card).href;
  $("img", dialog).alt = $("img", card).alt;
  $(".caption", dialog).textContent = card.hasAttribute("data-undescribed") ? "" : $("img", card).alt;
  $(".name", dialog).textContent = card.dataset.name;
  if ($("#copied")) $("#copied").textContent = "";
  if (!dialog.open) dialog.showModal();
}

function largeAction(action) {
  const card = enlarged;
  $("#large").close();
  if (action === "found" || action === "similar") actOn(card, `/${action}`);
  else if (action !== "close") mark(card, action);
  $(".open", card)?.focus();
}

// Opens the file or its folder, or copies its path; offered on the person's own machine only.
async function useFile(wanted) {
  const answer = await send("/file", new URLSearchParams({ picture: enlarged.dataset.number, do: wanted }));
  if (!answer) return $("#large").close();  // the complaint stands behind it
  const path = await answer.text();
  if (wanted === "copy") await navigator.clipboard.writeText(path);
  $("#copied").textContent = wanted === "copy" ? "Copied" : path;
}

// Pictures and sessions from outside

function upload(file) {
  if (!file || isBusy() || $("main[data-study]")) return;
  const field = $("#words");  // words that were searched already do not go along with a picture
  const words = field.value === field.defaultValue ? "" : field.value;
  act("/by-picture", file, { "Content-Type": "application/octet-stream", "X-Words": encodeURIComponent(words) });
}

// Events; the main part is replaced often, so they are caught at the document

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method === "dialog") return;
  event.preventDefault();
  const card = form.closest(".card");
  if (card && form.matches(".marks")) return mark(card, event.submitter?.classList.contains("dislike") ? "dislike" : "like");
  if (isBusy()) return;
  const fields = new URLSearchParams(new FormData(form));
  if (event.submitter?.name) fields.set(event.submitter.name, event.submitter.value);
  act(new URL(form.action).pathname, fields);
});

document.addEventListener("click", (event) => {
  if (event.target.closest("#help")) return $("#keys").showModal();
  const button = event.target.closest("#large [data-do], #large [data-file]");
  if (button?.dataset.do) return largeAction(button.dataset.do);
  if (button) return useFile(button.dataset.file);
  const home = event.target.closest(".brand");
  if (home) {
    event.preventDefault();
    if (!isBusy()) act("/at");
  }
  if (event.target.nodeName === "DIALOG") return event.target.close();
  const link = event.target.closest(".card .open");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    enlarge(link.closest(".card"));
  }
});

document.addEventListener("change", (event) => {
  const field = event.target;
  if (field.id === "upload") upload(field.files[0]);
  else if (field.id === "open" && field.files[0]) act("/open", field.files[0], { "Content-Type": "application/octet-stream" });
  else if (field.form?.hasAttribute("data-on-change") && field.form.reportValidity()) field.form.requestSubmit();
});

document.addEventListener("toggle", (event) => {
  if (event.target.id) openDetails[event.target.open ? "add" : "delete"](event.target.id);
}, true);

document.addEventListener("dragover", (event) => {
  if (event.dataTransfer?.types.includes("Files")) {
    event.preventDefault();
    document.body.classList.add("dropping");
  }
});
for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, () => document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  if (!event.dataTransfer?.files.length) return;
  event.preventDefault();
  upload(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
  if (file) {
    event.preventDefault();
    upload(file);
  }
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if ($("#large").open) {
    const action = { l: "like", d: "dislike", f: "found", s: "similar" }[key];
    const distance = { ArrowRight: 1, ArrowLeft: -1 }[key];
    const next = distance && neighbour(enlarged, distance);
    if (action) largeAction(action);
    if (next) enlarge(next);
    return;
  }
  if (event.target.id === "edit" && key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    return event.target.form.requestSubmit();
  }
  if (event.target.id === "edit" && key === "Escape") return $(".trail [aria-current]").click();
  if ($("dialog[open]") || event.target.closest("input, textarea, select")) return;
  const card = event.target.closest?.(".card");
  const press = (selector) => { const button = $(selector); if (button && !button.disabled) button.click(); };
  const keys = {
    "/": () => { $("#words")?.focus(); $("#words")?.select(); },
    "?": () => $("#keys").showModal(),
    m: () => press($("#marked")?.dataset.marks === "0" ? "#append" : "#more"),
    e: () => press("#propose"),
    b: () => press("#back"),
    l: () => card && mark(card, "like"),
    d: () => card && mark(card, "dislike"),
    f: () => actOn(card, "/found"),
    s: () => actOn(card, "/similar"),
    ArrowRight: () => step(card, 1),
    ArrowLeft: () => step(card, -1),
    ArrowDown: () => step(card, columns()),
    ArrowUp: () => step(card, -columns()),
  };
  if (!(key in keys) || (key.startsWith("Arrow") && !card && key !== "ArrowRight")) return;
  event.preventDefault();
  keys[key]();
});

function columns() {
  const grid = $("#grid");
  return grid ? getComputedStyle(grid).gridTemplateColumns.split(" ").length : 1;
}

function neighbour(card, distance) {
  const cards = $$("#grid .card");
  return cards[card ? cards.indexOf(card) + distance : 0];
}

function step(card, distance) {
  const next = neighbour(card, distance);
  if (next) {
    $(".open", next).focus();
    next.scrollIntoView({ block: "nearest" });
  }
}

setInterval(() => {
  const clock = $("#clock");
  if (clock) clock.textContent = ++clock.dataset.seconds;
}, 1000);

window.addEventListener("popstate", goToAddress);
document.documentElement.classList.add("js");
watch();
prepare();
if (location.pathname === "/study") {
  stepping = true;  // begin() leads to the page itself
} else if (location.search && main().dataset.address !== here()) {
  goToAddress();
} else {
  stepping = true;
  keepAddress();
}
