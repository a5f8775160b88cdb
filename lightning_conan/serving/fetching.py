"""Media by http(s), from allowed hosts at public addresses only, without redirects."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpcore
import httpx
from typing_extensions import override

from lightning_conan.serving.errors import ApiError, invalid
from lightning_conan.web import without_secrets

PORTS = {"http": 80, "https": 443}
HEADERS: dict[bytes | str, bytes | str] = {"Accept-Encoding": "identity", "User-Agent": "lightning-conan"}


def is_public(address: str) -> bool:
    """True for an address of the public internet."""
    found = ipaddress.ip_address(address)
    return found.is_global and not found.is_multicast


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects to the very addresses that were checked: a second look-up could give others.

    Args:
        allows: Decides about an address.
    """

    def __init__(self, allows: Callable[[str], bool] = is_public) -> None:
        self.allows, self.network = allows, httpcore.AnyIOBackend()

    @override
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(place[0]) for *_, place in found]
        if not addresses or not all(map(self.allows, addresses)):
            raise httpcore.ConnectError(f"{host} has an address that is not public")
        return await self.network.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    @override
    async def sleep(self, seconds: float) -> None:
        await self.network.sleep(seconds)


class Fetcher:
    """Fetches media of allowed hosts.

    Args:
        hosts: Names as they stand in URLs, with a port unless it is the scheme's own; none by default.
        seconds: Time that a file may take.
        network: Makes connections.
    """

    def __init__(self, hosts: Sequence[str], seconds: float, network: httpcore.AsyncNetworkBackend | None = None) -> None:
        self.hosts, self.seconds = {host.lower() for host in hosts}, seconds
        self.pool = httpcore.AsyncConnectionPool(network_backend=network or PublicNetwork(), max_connections=32)

    def check(self, url: str, name: str) -> httpx.URL:
        """Parses an address.

        Args:
            url: The address.
            name: Its place in the request.

        Raises:
            ApiError: It has a user or password, or its host is not allowed.
        """
        try:
            found = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise invalid(f"{name} must be a URL, got one that cannot be parsed ({error}).", name) from error
        port = found.port or PORTS.get(found.scheme)
        allowed = {found.host, f"{found.host}:{port}"} if port == PORTS.get(found.scheme) else {f"{found.host}:{port}"}
        if found.userinfo or not found.host or not allowed & self.hosts:
            raise ApiError(
                400,
                f"{name} must be a data URI: this server fetches nothing from {without_secrets(url)[:80]!r}. "
                "Its operator can allow the host with --allowed_hosts.",
                name,
                "url_not_allowed",
            )
        return found

    async def fetch(self, url: str, name: str, most: int) -> bytes:
        """Fetches a file.

        Args:
            url: Its address.
            name: Its place in the request.
            most: Bytes that it may have.

        Raises:
            ApiError: It is not allowed, not there, moved, too large or too slow.
        """
        found = self.check(url, name)
        try:
            async with asyncio.timeout(self.seconds):
                return await self.read(found, name, most)
        except (TimeoutError, OSError, httpcore.ConnectError, httpcore.ProtocolError, httpcore.NetworkError) as error:
            reason = str(error) or type(error).__name__
            raise invalid(f"{name} must be a file that can be fetched, got {reason[:200]} from {found.host}.", name) from error

    async def read(self, url: httpx.URL, name: str, most: int) -> bytes:
        """Reads the body of an address.

        Args:
            url: The address.
            name: Its place in the request.
            most: Bytes that it may have.

        Raises:
            ApiError: Another status than 200, or too many bytes.
        """
        body = bytearray()
        async with self.pool.stream("GET", str(url), headers={"Host": url.netloc, **HEADERS}) as response:
            if response.status != 200:
                reason = f"{name} must be a file, got status {response.status} from {url.host}; no redirect is followed."
                raise invalid(reason, name)
            async for block in response.aiter_stream():
                body += block
                if len(body) > most:
                    raise invalid(f"{name} must have at most {most} bytes, got more from {url.host}.", name)
        return bytes(body)

    async def close(self) -> None:
        """Closes its connections."""
        await self.pool.aclose()
