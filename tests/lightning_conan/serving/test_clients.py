"""Vectors that clients get are those of `model.embed`."""

import base64
import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import openai
import pytest
import torch
from pages import two_pages
from served import link, make_service, serving, text, uri, user
from torch.nn import functional as F

from lightning_conan.embedder import OmniProcessor, Provenance, save_folder
from lightning_conan.items import Item, Media
from lightning_conan.reasoning import Decoding, Reasoner
from lightning_conan.retrieval.store import Origin, write_part
from lightning_conan.serving import EngineSettings
from samples import flac, mp4, png

WORDS = ["a small red circle", "page 3", "the quick brown fox, café 小米"]
PDF = two_pages()
IMAGE, VIDEO, SOUND = Media("image", png(), "a.png"), Media("video", mp4(), "a.mp4"), Media("audio", flac(), "a.flac")
RECORDED = {"type": "input_audio", "input_audio": {"data": base64.b64encode(flac()).decode(), "format": "flac"}}
CONTENTS = {
    "text": ([text("a red circle")], ("a red circle",)),
    "image": ([link("image", uri("image/png", png()))], (IMAGE,)),
    "an image by its bare url": ([{"type": "image_url", "image_url": uri("image/png", png())}], (IMAGE,)),
    "audio": ([RECORDED], (SOUND,)),
    "audio by url": ([link("audio", uri("audio/flac", flac()))], (SOUND,)),
    "video": ([link("video", uri("video/mp4", mp4()))], (VIDEO,)),
    "a page": ([link("image", uri("application/pdf", PDF, "#page=2"))], (Media("document", PDF, "a.pdf", page=2),)),
    "pages": (
        [link("image", uri("application/pdf", PDF, "#page=1-2"))],
        (Media("document", PDF, "a.pdf", page=1), Media("document", PDF, "a.pdf", page=2)),
    ),
    "an image with text": ([link("image", uri("image/png", png())), text("make it blue")], (IMAGE, "make it blue")),
    "a mixture": (
        [link("image", uri("image/png", png())), text("make it blue"), RECORDED, link("video", uri("video/mp4", mp4()))],
        (IMAGE, "make it blue", SOUND, VIDEO),
    ),
}


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """Trained for 128, 64 and 16 dimensions, says its notes."""
    place = tmp_path_factory.mktemp("served") / "matryoshka"
    return save_folder(place, *tiny, Provenance("rehearsed", notes={"matryoshka_dims": [128, 64, 16]}))


@pytest.fixture(scope="module")
def service(folder, tmp_path_factory):
    found = make_service(folder)
    index = tmp_path_factory.mktemp("served") / "index"
    index.mkdir()
    rows = F.normalize(torch.randn(50, 128, generator=torch.Generator().manual_seed(0)), dim=-1)
    origin = Origin(found.engine.fingerprint, "s", "float32", 128, 50, 1)
    write_part(index, 0, origin, [f"k{row}" for row in range(50)], ["text"] * 50, rows)
    found.open_index(index)
    found.rows = rows
    return found


@pytest.fixture(scope="module")
def url(service):
    with serving(service) as server:
        yield server.url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def expected(tiny, *items, side="query"):
    model, processor = tiny
    with torch.no_grad():
        return torch.cat([model.embed([processor(item, side)]) for item in items])


def post(url, path, body):
    answer = httpx.post(url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def same(found, wanted):
    torch.testing.assert_close(torch.as_tensor(found, dtype=torch.float32), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("form", ["float", "base64", None])
def test_openais_client_gets_the_models_vectors(client, tiny, form):
    """Floats, base64 that we decode, and its default: base64 that it decodes itself."""
    more = {"encoding_format": form} if form else {}
    answer = client.embeddings.create(model="tiny", input=WORDS, user="me", **more)
    rows = [one.embedding for one in answer.data]
    if form == "base64" and isinstance(rows[0], str):
        rows = [np.frombuffer(base64.b64decode(row), "<f4").tolist() for row in rows]
    same(rows, expected(tiny, *(Item((words,)) for words in WORDS)))
    assert [one.index for one in answer.data] == [0, 1, 2]
    lengths = [len(tiny[1](Item((words,)))) for words in WORDS]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(lengths)
    assert answer.model == "tiny"


def test_base64_is_little_endian_float32(url, tiny):
    (one,) = post(url, "/v1/embeddings", {"input": WORDS[0], "encoding_format": "base64"})["data"]
    same([np.frombuffer(base64.b64decode(one["embedding"]), "<f4").tolist()], expected(tiny, Item((WORDS[0],))))


def test_token_ids_are_those_of_their_text(client, tiny):
    ids = [tiny[1].tokenize(words) for words in WORDS]
    wanted = expected(tiny, *(Item((words,)) for words in WORDS))
    same([one.embedding for one in client.embeddings.create(model="tiny", input=ids).data], wanted)
    same([client.embeddings.create(model="tiny", input=ids[0]).data[0].embedding], wanted[:1])


@pytest.mark.parametrize("dim", [128, 64, 16])
def test_dimensions_are_the_first_ones_at_length_1(client, tiny, dim):
    answer = client.embeddings.create(model="tiny", input=WORDS, dimensions=dim)
    wanted = expected(tiny, *(Item((words,)) for words in WORDS))[:, :dim]
    same([one.embedding for one in answer.data], wanted / wanted.norm(dim=1, keepdim=True))


def test_many_inputs_come_back_in_their_order(client, tiny):
    texts = [f"{'long ' * (number % 40)} number {number}" for number in range(150)]
    rows = torch.tensor([one.embedding for one in client.embeddings.create(model="tiny", input=texts).data])
    for number in (0, 39, 77, 149):
        same(rows[number : number + 1], expected(tiny, Item((texts[number],))))


@pytest.mark.parametrize("name", CONTENTS)
def test_each_modality_is_embedded_as_by_the_model(url, tiny, name):
    parts, wanted = CONTENTS[name]
    (one,) = post(url, "/v1/embeddings", {"messages": user(*parts), "unknown": {"field": 1}})["data"]
    same([one["embedding"]], expected(tiny, Item(wanted)))


def test_batches_at_once_give_the_same_vectors(folder, tiny):
    """Twelve clients, all modalities, two batches at a time."""
    names, wanted = [*CONTENTS] * 2, {name: expected(tiny, Item(parts)) for name, (_, parts) in CONTENTS.items()}
    settings = EngineSettings(num_workers=0, batches_at_once=2)
    with serving(make_service(folder, settings=settings)) as server, ThreadPoolExecutor(12) as clients:
        bodies = [{"messages": user(*CONTENTS[name][0])} for name in names]
        found = list(clients.map(lambda body: post(server.url, "/v1/embeddings", body)["data"][0]["embedding"], bodies))
    for name, vector in zip(names, found, strict=True):
        same([vector], wanted[name])


@pytest.mark.parametrize(("threads", "at_once"), [(1, 1), (2, 2), (16, 2)])
def test_batches_share_the_threads(base, tiny, monkeypatch, threads, at_once):
    """Two at once where a CPU has threads for them; one that is alone has all threads."""
    given = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    engine = make_service(base, settings=EngineSettings(num_workers=0, verify=False)).engine
    assert engine.batcher.at_once == at_once
    for busy in range(1, at_once + 1):
        engine.batcher.busy = {*range(busy)}
        engine.compute([tiny[1](Item(("a",)))], False)
    assert given == ([threads, threads // 2] if at_once == 2 else [])


def test_conversations_make_a_batch(url, tiny):
    """All modalities in one request, each as if alone."""
    answer = post(url, "/v1/embeddings", {"messages": [user(*parts) for parts, _ in CONTENTS.values()]})
    same([one["embedding"] for one in answer["data"]], expected(tiny, *(Item(wanted) for _, wanted in CONTENTS.values())))


def test_the_systems_turn_is_the_instruction(url, tiny):
    messages = [{"role": "system", "content": "Find the picture."}, {"role": "user", "content": "a red circle"}]
    (one,) = post(url, "/v1/embeddings", {"messages": messages})["data"]
    same([one["embedding"]], expected(tiny, Item(("a red circle",), "Find the picture.")))


COHERE = {
    "texts": ({"texts": WORDS}, [(words,) for words in WORDS]),
    "images": ({"images": [uri("image/png", png())]}, [(IMAGE,)]),
    "inputs": (
        {"inputs": [{"content": [text("make it blue"), link("image", uri("image/png", png()))]}, {"content": [RECORDED]}]},
        [("make it blue", IMAGE), (SOUND,)],
    ),
}


@pytest.mark.parametrize("name", COHERE)
def test_coheres_shapes(url, tiny, name):
    body, wanted = COHERE[name]
    more = {"model": "tiny", "input_type": "search_document", "embedding_types": ["float", "base64"]}
    answer = post(url, "/v2/embed", body | more)
    same(answer["embeddings"]["float"], expected(tiny, *map(Item, wanted)))
    assert answer["response_type"] == "embeddings_by_type"
    assert answer["meta"]["billed_units"]["input_tokens"] > 0
    decoded = [np.frombuffer(base64.b64decode(row), "<f4").tolist() for row in answer["embeddings"]["base64"]]
    assert decoded == answer["embeddings"]["float"]


@pytest.fixture(scope="module")
def curl():
    """Posts by the real curl, the body from its standard input."""
    if (program := shutil.which("curl")) is None:
        pytest.skip("curl is not installed: apt install curl")

    def post(address, body):
        head = ["--header", "Content-Type: application/json"]
        words = [program, "--silent", "--show-error", "--max-time", "60", *head, "--data-binary", "@-", address]
        done = subprocess.run(words, input=json.dumps(body).encode(), capture_output=True, timeout=90, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    return post


@pytest.mark.parametrize("name", CONTENTS)
def test_curl_gets_the_models_vectors(url, tiny, curl, name):
    """Each modality and mixtures, in OpenAI's form with messages and in Cohere's with inputs."""
    parts, wanted = CONTENTS[name]
    (one,) = curl(f"{url}/v1/embeddings", {"model": "tiny", "messages": user(*parts)})["data"]
    same([one["embedding"]], expected(tiny, Item(wanted)))
    answer = curl(f"{url}/v2/embed", {"model": "tiny", "input_type": "search_query", "inputs": [{"content": parts}]})
    same(answer["embeddings"]["float"], expected(tiny, Item(wanted)))


@pytest.mark.parametrize("name", ["texts", "images"])
def test_curl_gets_coheres_texts_and_images(url, tiny, curl, name):
    body, wanted = COHERE[name]
    answer = curl(f"{url}/v2/embed", {**body, "input_type": "search_document"})
    same(answer["embeddings"]["float"], expected(tiny, *map(Item, wanted)))


def test_search_is_exact(url, service, tiny):
    answer = post(url, "/v1/search", {"input": WORDS[0], "top_k": 7})
    scores = (expected(tiny, Item((WORDS[0],))) @ service.rows.T)[0]
    best = scores.argsort(descending=True)[:7].tolist()
    assert [hit["key"] for hit in answer["data"]] == [f"k{row}" for row in best]
    assert [hit["score"] for hit in answer["data"]] == pytest.approx(scores[best].tolist(), abs=1e-6)
    (mixed,) = post(url, "/v1/search", {"messages": user(*CONTENTS["a mixture"][0]), "top_k": 1})["data"]
    assert mixed["score"] == pytest.approx(
        float((expected(tiny, Item(CONTENTS["a mixture"][1])) @ service.rows.T).max()), abs=1e-6
    )


def test_a_server_tells_what_it_is(url, client, service):
    (model,) = client.models.list().data
    assert model.id == "tiny"
    assert model.dimensions == [128, 64, 16]
    health = httpx.get(f"{url}/health").json()
    assert health["status"] == "ok"
    assert 0 <= health["golden_distance"] < 3e-4
    before = service.metrics.requests.labels("/v1/embeddings", "200")._value.get()
    client.embeddings.create(model="tiny", input="a")
    assert f'conan_requests_total{{path="/v1/embeddings",status="200"}} {before + 1}' in httpx.get(f"{url}/metrics").text
    document = httpx.get(f"{url}/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/embeddings", "/v2/embed", "/v1/search", "/v1/models", "/health", "/metrics", "/openapi.json",
    }  # fmt: skip


@pytest.fixture(scope="module")
def reasoning(tiny, tmp_path_factory):
    """A model that reasons about each query, and its address."""
    model, processor = tiny
    reasons = OmniProcessor(processor.tokenizer, replace(processor.config, ends=False, reasons=True))
    folder = save_folder(tmp_path_factory.mktemp("served") / "trace", model, reasons, Provenance("reasoning"))
    decoding = Decoding("always", max_new_tokens=5)
    service = make_service(folder, settings=EngineSettings(num_workers=0, decoding=decoding))
    with serving(service) as server:
        yield Reasoner(model, reasons, decoding), server.url


def test_reasoning_is_told_in_usage(reasoning):
    """Queries by `input_type` or by the model's name; documents never reason."""
    reasoner, url = reasoning
    written = reasoner.encode_queries([Item((words,)) for words in WORDS])
    for body in ({"input_type": "query"}, {"model": "tiny:query"}):
        answer = post(url, "/v1/embeddings", body | {"input": WORDS})
        same([one["embedding"] for one in answer["data"]], written.embeddings)
        counts = [len(tokens) for tokens in written.tokens]
        usage = answer["usage"]
        assert usage["completion_tokens_details"] == {"reasoning_tokens": sum(counts)}
        assert usage["total_tokens"] == usage["prompt_tokens"] + sum(counts)
        told = [(one["route"], one["tokens"], one["truncated"]) for one in usage["reasoning"]]
        assert told == [("reasoned", count, cut) for count, cut in zip(counts, written.truncated, strict=True)]
    for path, body in (
        ("/v1/embeddings", {"input": WORDS, "model": "tiny:document"}),
        ("/v2/embed", {"texts": WORDS, "input_type": "search_document"}),
    ):
        answer = post(url, path, body)
        rows = answer["embeddings"]["float"] if "embeddings" in answer else [one["embedding"] for one in answer["data"]]
        same(rows, reasoner.encode_candidates([Item((words,)) for words in WORDS]))
        assert "reasoning" not in json.dumps(answer)


def test_a_model_that_tells_sides_apart_asks_for_one(reasoning):
    answer = httpx.post(f"{reasoning[1]}/v1/embeddings", json={"input": "a"})
    assert answer.status_code == 400
    assert "tiny:query" in answer.json()["error"]["message"]
    names = [model["id"] for model in httpx.get(f"{reasoning[1]}/v1/models").json()["data"]]
    assert names == ["tiny", "tiny:query", "tiny:document"]
