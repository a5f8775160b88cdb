"""Pages are whole, offline and safe; media in them are small and play; invalid ones become words."""

import base64
import io
import re
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from markupsafe import Markup
from pages import page as pdf_page
from PIL import Image

from lightning_conan.items import Frames, Media
from lightning_conan.pages import (
    Bounds,
    Column,
    Section,
    bullets,
    document,
    figure,
    fragment,
    grid,
    note,
    show_medium,
    show_parts,
    table,
)

VOID = {"meta", "img", "br"}
NASTY = "<script>alert('\"&')</script>"


class Tags(HTMLParser):
    """Collects tags and text, and fails where a tag is not closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if not {"style", "script"} & {*self.open} else ""

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.seen if name == tag]


def image(side: int = 40, form: str = "PNG", mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (side, side // 2), "red").save(buffer, form, **options)
    return buffer.getvalue()


def video(codec: str = "mpeg4", seconds: int = 3, side: int = 64, rate: int = 8) -> bytes:
    """Frames that are brighter second by second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for number in range(seconds * rate):
            shade = np.full((side, side, 3), 80 * (number // rate), np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def audio(seconds: float = 2.0, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="wav") as output:
        stream = output.add_stream("pcm_s16le", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, round(seconds * rate)), np.int16), layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        output.mux(stream.encode(frame))
    return buffer.getvalue()


def embedded(html: str) -> tuple[str, bytes]:
    """MIME type and bytes of the one ``data:`` URI."""
    ((kind, data),) = re.findall(r"src='data:([\w/+-]+);base64,([^']+)'", html)
    return kind, base64.b64decode(data)


def frames(data: bytes) -> list[float]:
    """The mean shade of each frame of a video."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="gray").mean() for frame in container.decode(video=0)]


def seconds(data: bytes) -> float:
    with av.open(io.BytesIO(data)) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


def everything() -> tuple[Markup, ...]:
    return (
        table(["name", Column("score", 1, 100.0)], [(NASTY, 3.14159), ("b", None)], NASTY),
        grid([NASTY, show_medium(Media("image", image(), f"{NASTY}.png"))]),
        figure(Markup("<svg viewBox='0 0 1 1'></svg>"), NASTY, NASTY),
        bullets([NASTY]),
        note(NASTY, "bad"),
        show_parts([NASTY, Media("audio", b"x", NASTY)]),
    )


def test_a_document_is_whole_offline_and_escaped():
    html = document(NASTY, *(Section(f"{NASTY} {number}", (NASTY, *everything())) for number in range(4)), summary=NASTY)
    page = Tags(html)
    assert NASTY not in html
    assert len(page.all("script")) == len(page.all("style")) == 1
    links = [value for _, attrs in page.seen for name, value in attrs.items() if name in ("src", "href")]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.findall(r"url\(|@import|https?:", html)
    assert {link["href"].removeprefix("#") for link in page.all("a")} == {part["id"] for part in page.all("section")}


def test_the_style_of_a_fragment_touches_nothing_else():
    """Each rule is about ``.conan``, or a page that holds a whole document."""
    html = fragment("text", *everything())
    Tags(html)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    selectors = re.findall(r"(?:^|[{}])\s*([^{}@]+?)\s*\{", re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL))
    assert len(selectors) > 40
    assert all(re.search(r"\.conan\b|\.conan-", part) for each in selectors for part in each.split(","))


def test_a_table_shows_numbers_and_keeps_them():
    columns = ["name", Column("share", 1, 50.0), "count", Column("media", sorts=False)]
    found = Tags(table(columns, [("a", 12.345, 1234567, "x"), ("b", float("nan"), 3, "y"), ("c", 70.0, None, None)], "Per cent."))
    heads, cells = found.all("th"), found.all("td")
    assert [head.get("aria-sort") for head in heads] == ["none", "none", "none", None]
    assert len(found.all("button")) == 3
    assert [head.get("class") for head in heads] == [None, "conan-number", "conan-number", None]
    assert [cell.get("data-value") for cell in cells] == [
        None,
        "12.345",
        "1234567",
        None,
        None,
        None,
        "3",
        None,
        None,
        "70.0",
        *[None] * 2,
    ]
    assert [cell.get("style") for cell in cells if "style" in cell] == ["--part:24.7%", "--part:100.0%"]
    assert "12.3" in found.text
    assert "1,234,567" in found.text
    assert "nan" not in found.text


def test_a_table_needs_whole_rows():
    assert Tags(table(["a"], [])).all("th")
    with pytest.raises(ValueError, match="A row must have 2 cells"):
        table(["a", "b"], [("only one",)])


def test_images_are_small_and_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    kind, data = embedded(show_medium(Media("image", image(3000, "JPEG", exif=exif), "a.jpg"), Bounds(side=200)))
    assert kind == "image/jpeg"
    assert Image.open(io.BytesIO(data)).size == (100, 200)
    clear = embedded(show_medium(Media("image", image(mode="LA", form="PNG"), "a.png")))
    assert clear[0] == "image/png"
    assert Image.open(io.BytesIO(clear[1])).size == (40, 20)


def test_a_page_of_a_pdf_is_drawn():
    box = b"0 0 0 rg 0 0 300 200 re f"
    kind, data = embedded(show_medium(Media("document", pdf_page(content=box), "a.pdf", page=1), Bounds(side=120)))
    found = Image.open(io.BytesIO(data))
    assert kind == "image/png"
    assert found.size == (120, 80)
    assert found.getpixel((60, 40)) == (0, 0, 0)
    assert "page 2 does not exist" in show_medium(Media("document", pdf_page(), "a.pdf", page=2))


def test_a_video_that_browsers_play_is_unchanged():
    data = video("libx264")
    assert embedded(show_medium(Media("video", data, "a.mp4"))) == ("video/mp4", data)


@pytest.mark.parametrize(("start", "end", "shades"), [(0.0, None, [0, 80, 160]), (1.0, None, [80, 160]), (1.0, 2.0, [80])])
def test_another_video_becomes_a_clip_of_its_part(start, end, shades):
    medium = Media("video", video(side=128), "a.mp4", start=start, end=end)
    kind, data = embedded(show_medium(medium, Bounds(side=64)))
    assert kind == "video/webm"
    assert frames(data) == pytest.approx([shade for shade in shades for _ in range(8)], abs=8)
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.video[0].width == 64


def test_a_long_video_and_a_slow_one_keep_their_time():
    assert len(frames(embedded(show_medium(Media("video", video(), "a.mp4"), Bounds(seconds=1.0)))[1])) == 8
    slow = frames(embedded(show_medium(Media("video", video(rate=2), "a.mp4")))[1])
    assert len(slow) == pytest.approx(3 * 8, abs=4)  # a frame that stands long is shown long


def test_audio_is_kept_or_cut():
    data = audio()
    assert embedded(show_medium(Media("audio", data, "a.wav"))) == ("audio/wav", data)
    kind, clip = embedded(show_medium(Media("audio", data, "a.wav"), Bounds(most=1000, seconds=1.0)))
    assert kind == "audio/ogg"
    assert len(clip) < len(data) / 2
    assert seconds(clip) == pytest.approx(1.0, abs=0.6)  # a WAV's blocks are long
    assert "no audio from second 5 to 6" in show_medium(Media("audio", data, "a.wav", start=5.0, end=6.0))


def test_frames_show_the_first(tmp_path):
    (tmp_path / "0.png").write_bytes(image())
    assert embedded(show_medium(Frames("video", tmp_path, "frames", files=(tmp_path / "0.png",))))[0] == "image/png"


@pytest.mark.parametrize("modality", ["image", "video", "document", "audio"])
@pytest.mark.parametrize("source", [b"junk", b"", Path("nowhere.bin"), bytes(2000)], ids=repr)
def test_invalid_media_become_words(modality, source):
    html = show_medium(Media(modality, source, "a.pdf" if modality == "document" else "a.bin"), Bounds(largest=1000))
    found = Tags(html)
    assert not {"img", "video", "audio"} & {tag for tag, _ in found.seen}
    assert found.text.startswith(f"{modality} a.")
    assert "0x" not in found.text


def test_texts_are_cut():
    assert Tags(show_parts(["a" * 30], Bounds(letters=10))).text == "a" * 10 + "… (30 letters)"


def test_figures_need_words_and_a_known_form():
    with pytest.raises(ValueError, match="needs words"):
        figure(image(), " ")
    with pytest.raises(ValueError, match="a PNG or an SVG"):
        figure(b"GIF89a", "a plot")
    with pytest.raises(ValueError, match="good, bad or nothing"):
        note("x", "odd")
    assert embedded(figure(image(), "a plot"))[0] == "image/png"
    assert embedded(figure(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a plot"))[0] == "image/svg+xml"


def test_tables_sort_by_click_and_key(tmp_path):
    """In a browser: numbers from the largest, text from A, empty cells last, and the heading says so."""
    api = pytest.importorskip("playwright.sync_api")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip("no browser")
    rows = [("b", 9.5), ("a", None), ("C", 100.0), ("d", -1.0)]
    (tmp_path / "page.html").write_text(document("t", Section("s", (table(["name", "score"], rows),))))
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(chromium), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        names = lambda: "".join(page.locator("tbody td:first-child").all_inner_texts())  # noqa: E731
        page.get_by_role("button", name="score").click()
        assert (names(), page.locator("th").nth(1).get_attribute("aria-sort")) == ("Cbda", "descending")
        page.keyboard.press("Enter")
        assert (names(), page.locator("th").nth(1).get_attribute("aria-sort")) == ("dbCa", "ascending")
        page.get_by_role("button", name="name").press("Space")
        assert (names(), page.locator("th").nth(1).get_attribute("aria-sort")) == ("abCd", "none")
        browser.close()
