"""Tickets for media: a player cannot send the server's key, and an address with a ticket opens one medium for some hours."""

import hashlib
import hmac
import secrets
import time

HOURS = 12
"""A ticket is good for this long, and for less than twice as long."""


class Tickets:
    """Makes and checks tickets with a secret of this process."""

    def __init__(self) -> None:
        self.secret = secrets.token_bytes(32)

    def make(self, name: str, turns: int = 0) -> str:
        """Makes a ticket.

        Args:
            name: What it opens.
            turns: Stretches of ``HOURS`` by which it is older.
        """
        turn = int(time.time() // (3600 * HOURS)) - turns
        return hmac.new(self.secret, f"{turn}:{name}".encode(), hashlib.sha256).hexdigest()[:32]

    def opens(self, ticket: str, name: str) -> bool:
        """True for a ticket of this process that is not too old.

        Args:
            ticket: The ticket.
            name: What it shall open.
        """
        given = ticket.encode(errors="replace")
        return any(hmac.compare_digest(given, self.make(name, turns).encode()) for turns in (0, 1))
