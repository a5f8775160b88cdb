"""The search page in a real browser: each modality, by keyboard, on a phone, and never beyond this machine."""

import base64
import re
import shutil
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from page_world import FILES, KEYS, write_index, write_media
from served import make_service, serving

from lightning_conan.embedder import OmniProcessor, Provenance, save_folder
from lightning_conan.items import Item, Media
from lightning_conan.reasoning import Decoding, Reasoner
from lightning_conan.serving import Access, EngineSettings
from lightning_conan.serving.errors import busy
from lightning_conan.serving.page import PageSettings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'lightning-conan[dev]'")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH: install the system's package")

QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
).split()
READY = "body:not(.busy) .card:not(.ghost)"
TYPES = {"png": "image/png", "jpg": "image/jpeg", "mp4": "video/mp4", "flac": "audio/flac", "pdf": "application/pdf"}
WAIT = 60_000
"""Milliseconds: the machine may be busy."""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET, timeout=2 * WAIT)
        yield found
        found.close()


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return write_media(tmp_path_factory.mktemp("browser") / "media")


def open_page(folder, media, tiny, **options):
    """A service with a page; ``vectors`` are those of its index."""
    service = make_service(folder, settings=EngineSettings(num_workers=0, **options))
    index = media.parent / f"index-{folder.name}"
    service.vectors = write_index(index, media, *tiny, service.engine.fingerprint)
    service.open_index(index)
    service.open_page(PageSettings(media))
    return service


@pytest.fixture(scope="module")
def service(base, media, tiny):
    service = open_page(base, media, tiny)
    with serving(service) as server:
        service.url = server.url
        yield service


@pytest.fixture
def visit(browser):
    """Opens pages; afterwards nothing was asked of another host, and no script failed."""
    contexts, asked, failed = [], [], []

    def make(url, **options):
        context = browser.new_context(permissions=["microphone", "camera"], **options)
        context.set_default_timeout(WAIT)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.on("console", lambda said: failed.append(said.text) if "Content Security Policy" in said.text else None)
        page.goto(url)
        return page

    yield make
    for context in contexts:
        context.close()
    assert asked
    assert {re.match(r"http://127\.0\.0\.1:\d+/|blob:http://127\.0\.0\.1|data:", url) is not None for url in asked} == {True}
    assert not failed


@pytest.fixture
def page(visit, service):
    page = visit(service.url)
    page.wait_for_selector("#filters label")
    return page


def give(page, *names):
    """Chooses files."""
    page.set_input_files("#files", [payload(name) for name in names])
    page.wait_for_selector(f".chip >> nth={len(names) - 1}")


def payload(name):
    return {"name": name.rpartition("/")[2], "mimeType": TYPES[name.rpartition(".")[2]], "buffer": FILES[name]}


def hand_over(page, name, event, field):
    """Drops or pastes a file."""
    found = payload(name)
    code = """([data, name, type]) => {
        const held = new DataTransfer();
        held.items.add(new File([Uint8Array.from(atob(data), (one) => one.charCodeAt(0))], name, { type }));
        return held;
    }"""
    data = [base64.b64encode(found["buffer"]).decode(), found["name"], found["mimeType"]]
    held = page.evaluate_handle(code, data)
    options = f"{{ {field}: held, bubbles: true, cancelable: true }}"
    page.evaluate(f"held => document.body.dispatchEvent(new {event[0]}('{event[1]}', {options}))", held)
    page.wait_for_selector(".chip")


def search(page):
    page.click("#go")
    page.wait_for_selector(READY)


def shown(page):
    """Keys and scores of the results, in their order."""
    keys = page.locator(".card .key").all_text_contents()
    return keys, [float(score) for score in page.locator(".card .score").all_text_contents()]


def check(page, service, query, keys=KEYS):
    """The results are the exact ones of an embedded query, best first."""
    wanted = dict(zip(KEYS, (service.vectors @ query[0]).tolist(), strict=True))
    found, scores = shown(page)
    assert sorted(found) == sorted(keys)
    assert all(wanted[one] >= wanted[other] - 1e-5 for one, other in pairwise(found))
    assert scores == pytest.approx([wanted[key] for key in found], abs=0.000_51)


def embedded(tiny, *parts):
    model, processor = tiny
    with torch.inference_mode():
        return model.embed([processor(Item(parts))])


def medium(modality, name, **span):
    return Media(modality, FILES[name], name, **span)


def by_words(page):
    page.fill("#text", "a small red circle")


def by_dropping(page):
    hand_over(page, "photos/wide.jpg", ("DragEvent", "drop"), "dataTransfer")


def by_pasting(page):
    hand_over(page, "tone.flac", ("ClipboardEvent", "paste"), "clipboardData")


def by_page(page):
    give(page, "report.pdf")
    page.get_by_label("Page of report.pdf").fill("2")


def by_all(page):
    give(page, "red.png", "clip.mp4", "tone.flac")
    page.fill("#text", "make it blue")


QUERIES = {
    "text": (by_words, ["a small red circle"]),
    "image": (by_dropping, [medium("image", "photos/wide.jpg")]),
    "audio": (by_pasting, [medium("audio", "tone.flac")]),
    "video": (lambda page: give(page, "clip.mp4"), [medium("video", "clip.mp4")]),
    "document": (by_page, [medium("document", "report.pdf", page=2)]),
    "mixture": (
        by_all,
        [medium("image", "red.png"), medium("video", "clip.mp4"), medium("audio", "tone.flac"), "make it blue"],
    ),
}


@pytest.mark.parametrize("name", QUERIES)
def test_each_modality_is_searched_as_by_the_model(page, service, tiny, name):
    ask, parts = QUERIES[name]
    ask(page)
    search(page)
    check(page, service, embedded(tiny, *parts))
    assert page.get_by_role("status").inner_text().startswith(f"{len(KEYS)} results for ")


def test_results_have_pictures_players_and_words(page):
    by_words(page)
    search(page)
    page.set_viewport_size({"width": 1000, "height": 2000})
    page.wait_for_selector(".frame.waiting", state="detached")
    assert page.locator(".frame.missing").count() == 0
    widths = page.locator(".frame img").evaluate_all("all => all.map((one) => one.naturalWidth)")
    assert len(widths) == 6
    assert min(widths) > 0
    assert page.locator(".wave").evaluate_all("all => all.every((one) => one.style.maskImage.startsWith('url('))")
    badges = page.locator(".badge:not([hidden])").all_text_contents()
    assert sorted(badges) == ["at 0:00", "page 1", "page 2"]
    assert "a lighthouse in the storm ☂" in page.locator(".open .words").all_text_contents()
    page.get_by_role("button", name="Play tone.flac").click()
    page.get_by_role("button", name="Play clip.mp4").click()
    player = page.locator("video.inline")
    until(lambda: player.evaluate("one => one.readyState >= 2 && one.videoWidth === 48"))


def until(true):
    end = time.monotonic() + WAIT / 1000
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


FOCUSED = """() => {
    const one = document.activeElement, box = one.closest(".card, .filter, #search") ?? one;
    const seen = [one, box].some((each) => getComputedStyle(each).outlineStyle !== "none");
    const lit = getComputedStyle(box).borderColor === getComputedStyle(document.querySelector("#go")).backgroundColor;
    return (seen || lit) && (one.id || one.value || one.getAttribute("aria-label") || one.className);
}"""


def focused(page):
    """Name of what has the focus, which must be seen; colours take a moment to change."""
    return soon(page, FOCUSED)


def soon(page, code, given=None):
    """Result of a function of the page, once it is true; older playwright cannot wait where a page forbids eval."""
    end = time.monotonic() + WAIT / 1000
    while not (found := page.evaluate(code, given)):
        assert time.monotonic() < end, code
        page.wait_for_timeout(20)
    return found


def test_the_keyboard_is_enough(page, service, tiny):
    keys = page.keyboard
    assert focused(page) == "text"
    keys.type("a storm at sea")
    keys.press("Enter")
    page.wait_for_selector(READY)
    check(page, service, embedded(tiny, "a storm at sea"))
    order = []
    for _ in range(10):
        keys.press("Tab")
        order.append(focused(page))
    assert order[:4] == ["attach", "sound", "camera", "go"]
    assert set(order[4:9]) == {"image", "audio", "document", "text", "video"}
    found, _ = shown(page)
    assert order[9].startswith(found[0] + ", ")
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    assert focused(page).startswith(found[2] + ", ")
    keys.press("End")
    assert focused(page).startswith(found[-1] + ", ")
    keys.press("Home")
    keys.press("ArrowDown")
    columns = page.locator("#results").evaluate("one => getComputedStyle(one).gridTemplateColumns.split(' ').length")
    assert focused(page).startswith(found[columns] + ", ")
    keys.press("Enter")
    assert page.get_by_role("dialog").is_visible()
    keys.press("ArrowLeft")
    assert page.inner_text("#viewer-key") == found[columns - 1]
    keys.press("Escape")
    assert not page.locator("#viewer").is_visible()
    came_back = "label => document.activeElement.getAttribute('aria-label')?.startsWith(label)"
    soon(page, came_back, found[columns - 1] + ", ")  # once the dialog tells that it was closed
    keys.press("/")
    assert focused(page) == "text"
    assert page.input_value("#text") == "a storm at sea"


def test_filters_keep_to_a_modality(page, service, tiny):
    by_words(page)
    search(page)
    page.get_by_role("checkbox", name="image").focus()
    page.keyboard.press("Space")
    page.wait_for_selector(f".card:not(.ghost) >> nth={len(KEYS) - 1}", state="detached")
    page.wait_for_selector(READY)
    images = [key for key in KEYS if key.endswith(("png", "jpg", "webp"))]
    check(page, service, embedded(tiny, "a small red circle"), images)


def test_screen_readers_find_their_way(page):
    by_words(page)
    search(page)
    assert page.get_by_role("search").count() == page.get_by_role("main").count() == 1
    assert page.get_by_role("list", name="Results").get_by_role("listitem").count() == len(KEYS)
    assert page.get_by_role("textbox", name="Words to search for").count() == 1
    assert page.get_by_role("group", name="Show only results that are").get_by_role("checkbox").count() == 5
    unnamed = (
        "all => all.filter((one) => !(one.getAttribute('aria-label') ?? one.textContent).trim()).map((one) => one.outerHTML)"
    )
    assert page.locator("button").evaluate_all(unnamed) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(visit, service, scheme):
    page = visit(service.url, viewport={"width": 360, "height": 640}, is_mobile=True, has_touch=True, color_scheme=scheme)
    page.wait_for_selector("#filters label")
    give(page, "red.png", "report.pdf")
    page.fill("#text", "a word of no end: " + "x" * 80)
    search(page)
    check_width(page)
    for name in ("#go", "#attach", "#sound", "#camera", ".drop", ".play"):
        box = page.locator(name).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert min(box["width"], box["height"]) >= 28
    page.locator(".open").first.click()
    check_width(page)
    names = sorted({name for pair in PAIRS for name in pair})
    colors = page.evaluate(
        "names => names.map((name) => getComputedStyle(document.documentElement).getPropertyValue(name))", names
    )
    light = {name: luminance(color.strip()) for name, color in zip(names, colors, strict=True)}
    assert (light["--ground"] < 0.2) == (scheme == "dark")
    for pair in PAIRS:
        low, high = sorted(light[name] for name in pair)
        assert (high + 0.05) / (low + 0.05) >= 4.5, pair


PAIRS = [
    ("--ink", "--ground"),
    ("--ink", "--card"),
    ("--ink", "--shade"),
    ("--soft", "--card"),
    ("--soft", "--ground"),
    ("--soft", "--shade"),
    ("--accent", "--tint"),
    ("--on-accent", "--accent"),
    ("--bad", "--bad-ground"),
]
"""Text and what it stands on."""


def luminance(color: str) -> float:
    """Relative luminance of #rrggbb, as WCAG defines it."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def check_width(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_sounds_and_pictures_are_recorded(page):
    page.click("#sound")
    page.wait_for_selector("#sound.recording")
    time.sleep(1)
    page.click("#sound")
    page.wait_for_selector(".chip.audio")
    page.click("#camera")
    until(lambda: page.locator("#finder").evaluate("one => one.videoWidth > 0"))
    page.click("#shoot")
    page.wait_for_selector(".chip.image")
    search(page)
    assert "Sound 1.webm and Picture 2.png" in page.get_by_role("status").inner_text()
    page.click("#camera")
    until(lambda: page.locator("#finder").evaluate("one => one.videoWidth > 0"))
    page.click("#film")
    time.sleep(1)
    page.click("#film")
    page.wait_for_selector(".chip.video")


def test_a_result_is_searched_with(page, service, tiny):
    by_words(page)
    search(page)
    page.locator(".open[aria-label^='photos/small.webp']").click()
    page.get_by_role("button", name="Search with this").click()
    page.wait_for_selector(".chip.image")
    page.wait_for_selector(READY)
    check(page, service, embedded(tiny, medium("image", "photos/small.webp")))
    assert page.input_value("#text") == ""


def test_refusals_are_told_in_words(page, service, monkeypatch):
    alert = page.locator("#problem")
    page.click("#go")
    assert "Type some words, or add a file" in alert.inner_text()
    page.set_input_files("#files", [{"name": "odd.zip", "mimeType": "application/zip", "buffer": b"PK"}])
    until(lambda: "odd.zip is no picture, sound, video, PDF or plain text." in alert.inner_text())
    page.set_input_files("#files", [{"name": "broken.png", "mimeType": "image/png", "buffer": b"none"}])
    page.wait_for_selector(".chip")
    page.click("#go")
    until(lambda: "Image 'broken.png': cannot be decoded" in alert.inner_text())
    page.get_by_role("button", name="Remove broken.png").click()
    refusals = [busy("Too much.", 0.4)]

    def check_load():
        if refusals:
            raise refusals.pop()

    monkeypatch.setattr(service, "check_load", check_load)
    page.fill("#text", "a storm")
    page.click("#go")
    until(lambda: "The server is busy right now. The search is tried again in 1 s." in alert.inner_text())
    page.wait_for_selector(READY)
    assert alert.inner_text() == ""
    page.route("**/v1/search", lambda route: route.abort())
    page.click("#go")
    until(lambda: "The server does not answer." in alert.inner_text())
    page.unroute("**/v1/search")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(READY)


def test_a_key_is_asked_for_and_kept_in_memory_alone(visit, service, monkeypatch):
    monkeypatch.setattr(service, "access", Access("secret"))
    page = visit(service.url)
    page.wait_for_selector("#key-dialog[open]")
    page.keyboard.type("guess")
    page.keyboard.press("Enter")
    page.wait_for_selector("#key-wrong:not(:empty)")
    page.keyboard.type("secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#filters label")
    by_words(page)
    search(page)
    until(lambda: page.locator(".frame img").first.evaluate("one => one.naturalWidth > 0"))
    kept = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie, location.href]")
    assert kept == [0, 0, "", f"{service.url}/page"]
    page.reload()
    page.wait_for_selector("#key-dialog[open]")


def test_a_folder_that_reasons_tells_its_route_and_text(visit, media, tiny, tmp_path_factory):
    model, processor = tiny
    reasons = OmniProcessor(processor.tokenizer, replace(processor.config, ends=False, reasons=True))
    folder = save_folder(tmp_path_factory.mktemp("browser") / "trace", model, reasons, Provenance("reasoning"))
    decoding = Decoding("always", max_new_tokens=5)
    service = open_page(folder, media, (model, reasons), decoding=decoding)
    with serving(service) as server:
        page = visit(server.url)
        page.wait_for_selector("#filters label")
        page.fill("#text", "a storm at sea")
        search(page)
        reasoner = Reasoner(model, reasons, decoding)
        written = reasoner.encode_queries([Item(("a storm at sea",))])
        check(page, service, written.embeddings)
        assert page.inner_text("#route") == "Reasoned"
        assert page.inner_text("#cost") == "5 tokens before embedding, cut at the limit"
        assert page.text_content("#thought") == reasoner.texts(written)[0]
        assert page.locator("#thought").is_visible()
        page.context.close()
