"""Hard negatives that a mapping of plain shards names, and that samples do not have."""

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress

import numpy as np

from datamodules.shards.columns import Numbers
from datamodules.shards.template import AbsentError, PairTemplate, Part

log = logging.getLogger(__name__)
LOOKED_AT = 1000
"""Samples whose JSON is read to find one that has a negative."""


def named(side: tuple[Part, ...]) -> str:
    """Members of a negative as they were written."""
    return " and ".join(repr(";".join(map(str, part.sources))) for part in side)


def has_members(side: tuple[Part, ...], names: Collection[str]) -> bool:
    """True if samples with these members may have a negative.

    Args:
        side: Its parts.
        names: Of the members.
    """
    with suppress(AbsentError):
        return bool([part.find(names) for part in side])
    return False


def holds(side: tuple[Part, ...], members: Mapping[str, bytes]) -> bool:
    """True if a sample has a negative; one that is invalid counts, since its sample is listed when it is read.

    Args:
        side: Its parts.
        members: The sample's members.
    """
    try:
        found = [(part.find(members), part) for part in side]
        return all(source.texts(members[source.member]) for source, part in found if source.steps)
    except AbsentError:
        return False
    except ValueError:
        return True


def in_json(side: tuple[Part, ...]) -> bool:
    """True if members alone do not tell that a sample has a negative."""
    return any(source.steps for part in side for source in part.sources)


def looked_at(numbers: Numbers) -> list[int]:
    """Some of many samples, evenly spread.

    Args:
        numbers: Of the samples.
    """
    places = np.linspace(0, len(numbers) - 1, min(len(numbers), LOOKED_AT)).astype(int)
    return numbers[places].tolist()  # type: ignore[no-any-return]


def absent(sides: Collection[tuple[Part, ...]], samples: int, shown: str, names: Collection[str]) -> ValueError:
    """Makes the error for negatives that no sample has.

    Args:
        sides: The negatives.
        samples: Number of samples.
        shown: Name of the data set.
        names: Members that samples have.
    """
    return ValueError(
        f"negatives must name members that some sample has, got {', '.join(map(named, sides))}, which none of the {samples} "
        f"samples of {shown} has. Samples have {sorted(names)[:20]}: mend the name, or leave it out."
    )


class NegativesSeen:
    """Notes which negatives any sample of a stream has had.

    Args:
        template: Names them.
    """

    def __init__(self, template: PairTemplate) -> None:
        self.missing, self.samples = list(template.negatives), 0
        self.names: set[str] = set()

    def note(self, members: Mapping[str, bytes]) -> None:
        """Notes a sample."""
        self.samples += 1
        if self.missing:
            self.names.update(members)
            self.missing = [side for side in self.missing if not holds(side, members)]

    def check(self, shown: str) -> None:
        """Refuses negatives that no sample has had, at the end of all.

        Args:
            shown: Name of the data set.

        Raises:
            ValueError: There is one.
        """
        if self.missing and self.samples:
            raise absent(self.missing, self.samples, shown, self.names)

    def warn(self, shown: str) -> None:
        """Reports negatives that no sample has had so far, once.

        Args:
            shown: Name of what was read.
        """
        if self.missing and self.samples:
            line = "none of the first %d samples (%s) has the negative %s; samples have %s."
            log.warning(line, self.samples, shown, ", ".join(map(named, self.missing)), sorted(self.names)[:20])
            self.missing = []
