"""Items, batches, recipes, searches and checkpoint folders as HTML: safe, bounded, and true to what they show."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from lightning_conan.cli.common.hits import MOST_QUERIES, SearchHits, items_by_key
from lightning_conan.embedder import Batch, Encoded, ItemBatch, MixedBatch, describe_folder, load_folder
from lightning_conan.embedder.batch_page import ROWS
from lightning_conan.fusion import Recipe, SearchResult, Trial
from lightning_conan.items import Item, Media, Pair
from lightning_conan.pages import Budget
from samples import flac, mp4, png

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """Collects tags with their attributes, and the text outside of style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.skipped = "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.skipped = tag if tag in ("style", "script") else self.skipped

    def handle_endtag(self, tag):
        self.skipped = "" if tag == self.skipped else self.skipped

    def handle_data(self, data):
        self.text += "" if self.skipped else data

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def medium(modality, data, suffix, name="medium"):
    return Media(modality, data, f"{name}.{suffix}")


def safe(html: str) -> Tags:
    """Its one script is the page's own; nothing is loaded from elsewhere, and no attribute runs anything."""
    found = Tags(html)
    assert len(found.named("script")) == 1
    assert "alert(" not in re.sub(r"(?s)<script>.*?</script>", "", html).replace(found.text, "") or "&lt;script&gt;" in html
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert (attributes.get("src") or "data:").startswith("data:"), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#"), (tag, attributes)
    return found


def test_an_item_shows_its_texts_and_media_in_order():
    item = Item(
        ("before", medium("image", png(), "png"), "between", medium("audio", flac(), "flac"), medium("video", mp4(), "mp4"))
    )
    found = safe(item._repr_html_())
    assert [tag for tag, _ in found.tags if tag in ("img", "audio", "video")] == ["img", "audio", "video"]
    assert found.text.index("before") < found.text.index("between")


@pytest.mark.parametrize("where", ["text", "name", "instruction", "key", "reasoning"])
def test_what_others_wrote_is_text_and_no_html(where):
    words = dict.fromkeys(("text", "name", "instruction", "key", "reasoning"), "plain") | {where: EVIL}
    item = Item((words["text"], medium("image", b"none", "png", words["name"])), words["instruction"])
    found = safe(Pair(words["key"], "task", "image", item, item, reasoning=words["reasoning"])._repr_html_() + "")
    assert not found.named("img")
    assert (EVIL in found.text) == (where != "instruction")  # which a pair does not show
    assert EVIL in safe(Item(("x",), EVIL)._repr_html_()).text


def test_invalid_media_are_words(tmp_path):
    """A cut file, an empty one, one that is missing: each is named, and nothing takes its place."""
    for source in (png()[:40], b"", tmp_path / "gone.png"):
        found = safe(Media("image", source, "broken.png")._repr_html_())
        assert "broken.png" in found.text
        assert "cannot be shown" in found.text
        assert not found.named("img")


def test_large_media_are_bounded():
    """An image of 2,000 pixels a side is a thumbnail, and 200 of them are fewer than the room holds."""
    one = medium("image", png(2000, 2000), "png")
    small = len(Item((one,))._repr_html_())
    assert small < 100_000
    budget = Budget(room=3 * 20_000)
    html = budget.show([one] * 200)
    assert len(html) < 5 * 20_000 + 200 * 200
    assert html.count("not shown") >= 190


def encoded_batch(processor, rows):
    pairs = [
        Pair(f"{EVIL}{row}", EVIL, "image", Item((medium("image", png(seed=row), "png"),)), Item((f"number {row}",)))
        for row in range(rows)
    ]
    queries, targets = ([processor(getattr(pair, side)) for pair in pairs] for side in ("query", "target"))
    hashes = [pair.key for pair in pairs]
    return Batch(
        EVIL, "image", hashes, queries, targets, [[targets[0]]] + [[] for _ in range(rows - 1)], hashes, hashes, [hashes[0]]
    )


def test_a_batch_shows_what_the_model_gets(tiny):
    batch = encoded_batch(tiny[1], ROWS + 3)
    found = safe(batch._repr_html_())
    assert len(found.named("img")) == ROWS
    assert f"{len(batch.queries[0])} tokens" in found.text
    height, width = batch.queries[0].inputs("vision")[0].shape[-2:]
    assert f"{width} x {height} pixels" in found.text
    assert f"Batch of {ROWS + 3} pairs" in found.text
    assert len(safe(MixedBatch((batch, batch))._repr_html_()).named("table")) == 2


def test_thumbnails_of_a_batch_are_its_pixels():
    """A red item is red in the picture, whatever the scale."""
    import base64
    import io

    from PIL import Image

    pixels = torch.zeros(4, 3, 8, 16, dtype=torch.uint8)
    pixels[:, 0] = 250
    media = {"vision": [pixels], "audio": [torch.randn(128, 20)]}
    item = Encoded(torch.arange(3), torch.arange(3).expand(3, 3), media)
    html = ItemBatch(0, "query", [7], ["k"], ["video+audio"], [item], [])._repr_html_()
    strip, mel = (Image.open(io.BytesIO(base64.b64decode(tag["src"].partition(",")[2]))) for tag in Tags(html).named("img"))
    assert strip.size == (64, 8)  # four frames, side by side
    assert strip.convert("RGB").getpixel((3, 3)) == (250, 0, 0)
    assert mel.size == (20, 128)


def test_a_recipe_names_folders_without_their_place(tmp_path):
    recipe = Recipe(
        tmp_path / "base",
        {"image": tmp_path / EVIL.replace("/", "|"), "audio": tmp_path / "audio"},
        alphas_by_module={"visual": {"image": 0.1, "audio": 0.9}},
    )
    found = safe(recipe._repr_html_())
    assert str(tmp_path) not in found.text
    cells = [attributes["data-value"] for attributes in found.named("td") if "data-value" in attributes]
    assert cells == ["0.3", "0.1", "0.5", "0.9"]


def test_a_search_of_coefficients_shows_the_best_first():
    trials = [Trial({"image": value}, {"image": 100 * value}, value) for value in (0.1, 0.7, 0.4)]
    found = safe(SearchResult({"image": 90.0}, trials)._repr_html_())
    values = [attributes["data-value"] for attributes in found.named("td")][::3]
    assert values == ["0.7", "0.4", "0.1"]


def test_a_folder_counts_its_parameters(base):
    """The sum over modules is the model's; a parent is named by its fingerprint, and no path is shown."""
    summary = describe_folder(base)
    assert summary.parameters == sum(parameter.numel() for parameter in load_folder(base)[0].parameters())
    assert {module.name for module in summary.modules} == {
        "audio_encoder",
        "audio_projector",
        "backbone.language_model",
        "backbone.visual",
    }
    found = safe(summary._repr_html_())
    for text in (found.text, str(summary)):
        assert f"{summary.parameters:,}" in text
        assert summary.provenance.fingerprint[:12] in text
        assert str(base.parent) not in text
    with pytest.raises(ValueError, match="is not a checkpoint folder"):
        describe_folder(base.parent)


def test_hits_are_plain_lists_that_show_their_media(tmp_path):
    """JSON as before; in a notebook the media of the keys that are known, the best first, and the key of one that has gone."""
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.txt").write_text(EVIL)
    rows = [{"key": key, "modality": "image", "score": 0.5} for key in ("b.txt", "a.png", f"{EVIL}.png")]
    told = [{"query": None, "hits": rows, "reasoning": EVIL} for _ in range(MOST_QUERIES + 2)]
    hits = SearchHits(told, [Item((f"question {number}",)) for number in range(len(told))], items_by_key(tmp_path))
    assert json.loads(json.dumps(hits)) == told
    found = safe(hits._repr_html_())
    assert len(found.named("img")) == MOST_QUERIES
    assert found.text.count(f"{EVIL}.png") == MOST_QUERIES
    assert "question 11" in found.text
    assert "question 12" not in found.text
    assert "and 2 more queries" in found.text
    assert found.text.index("question 0") < found.text.index("1. image 0.500") < found.text.index("a.png")
    assert not safe(SearchHits(told, hits.queries)._repr_html_()).named("img")
