"""Text from outside, such as names of files, made safe to print."""

import re

UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters (a terminal obeys them), line ends, what reverses the reading direction, and halves of characters."""


def printable(text: str) -> str:
    r"""Puts a text on one line, its control characters escaped: ``\x1b``, ``\n``, ``\u202e``.

    A file may be called anything: printed raw, its name could colour, hide or forge lines of a terminal. Letters of any
    script, emoji and their joiners stay.
    """
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def plural(number: int, noun: str) -> str:
    """Returns the noun that a number asks for.

    Args:
        number: The number.
        noun: The noun of one, whose plural ends in s.

    Example:
        >>> plural(1, "step"), plural(2, "step")
        ('step', 'steps')
    """
    return noun if number == 1 else f"{noun}s"
