"""URLs: nothing is fetched but from allowed hosts, at public addresses, without redirects."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpcore
import httpx
import pytest
from served import link, make_service, serving, uri, user

from lightning_conan.serving.errors import ApiError
from lightning_conan.serving.fetching import Fetcher, PublicNetwork, is_public
from samples import png


class Site(BaseHTTPRequestHandler):
    def do_GET(self):
        seen.append(self.path)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        body = png() if self.path == "/a.png" else bytes(10_000)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


seen: list[str] = []


@pytest.fixture(scope="module")
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def fetch(url, hosts, network=None, most=20_000):
    async def main():
        fetcher = Fetcher(hosts, 5.0, network)
        try:
            return await fetcher.fetch(url, "input", most)
        finally:
            await fetcher.close()

    return asyncio.run(main())


def anywhere() -> httpcore.AsyncNetworkBackend:
    return PublicNetwork(lambda address: True)


@pytest.mark.parametrize("address", [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "::1",
    "fe80::1", "fc00::1", "::ffff:127.0.0.1", "::",
])  # fmt: skip
def test_private_addresses_are_not_public(address):
    assert not is_public(address)
    assert is_public("93.184.216.34")
    assert is_public("2606:2800:220:1::1")


def test_an_allowed_host_at_a_private_address_is_refused(site):
    before = len(seen)
    with pytest.raises(ApiError, match="an address that is not public"):
        fetch(f"http://{site}/a.png", [site])
    assert len(seen) == before


@pytest.mark.parametrize(("url", "hosts"), [
    ("http://SITE/a.png", []),
    ("http://SITE/a.png", ["example.com"]),
    ("http://SITE/a.png", ["127.0.0.1"]),  # another port than the scheme's own must be named
    ("http://user:password@SITE/a.png", ["SITE"]),
    ("http://example.com@SITE/a.png", ["example.com"]),
    ("http://SITE\\@example.com/", ["example.com"]),
    ("http://", ["SITE"]),
])  # fmt: skip
def test_other_hosts_are_refused(site, url, hosts):
    before = len(seen)
    with pytest.raises(ApiError) as refused:
        fetch(url.replace("SITE", site), [host.replace("SITE", site) for host in hosts], anywhere())
    assert "password" not in refused.value.message
    assert len(seen) == before


def test_a_redirect_is_not_followed(site):
    with pytest.raises(ApiError, match="status 302"):
        fetch(f"http://{site}/moved", [site], anywhere())
    assert seen[-1] == "/moved"


def test_a_large_file_is_not_read_to_its_end(site):
    assert len(fetch(f"http://{site}/zeros", [site], anywhere())) == 10_000
    with pytest.raises(ApiError, match="at most 9999 bytes"):
        fetch(f"http://{site}/zeros", [site], anywhere(), most=9999)


def test_a_host_that_is_not_there_is_told():
    with pytest.raises(ApiError, match="can be fetched"):
        fetch("http://127.0.0.1:9/a.png", ["127.0.0.1:9"], anywhere())


def test_a_fetched_image_is_that_image(base, site):
    service = make_service(base)
    service.fetcher = Fetcher([site], 5.0, anywhere())
    with serving(service) as server:
        rows = []
        for url in (f"http://{site}/a.png", uri("image/png", png())):
            answer = httpx.post(f"{server.url}/v1/embeddings", json={"messages": user(link("image", url))}, timeout=60)
            assert answer.status_code == 200, answer.text
            rows.append(answer.json()["data"][0]["embedding"])
        assert rows[0] == rows[1]
