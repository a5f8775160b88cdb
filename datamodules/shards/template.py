"""Pairs of the members of a plain WebDataset sample: which member is what."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import msgspec

from datamodules.shards.scan import FAULT
from lightning_conan.items import MEDIA, MODALITIES, MODALITY_OF, Item, Media, Modality, Pair

Members = str | Mapping[str, str]
"""One side: a member, or members by modality in the order of the parts; alternatives are parted by semicolons."""
STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]|(\[\*\])")
TEXTS = ("text", "caption", "transcript", "cls")
"""Suffixes of text, beside ``txt``."""
Step = str | int | None
"""A key of a mapping, a place in a list, or (None) each entry of a list."""


class AbsentError(ValueError):
    """A sample does not have a member, or its JSON not a place in it."""


@dataclass(frozen=True)
class Source:
    """A member, or a place in the JSON that it holds.

    Args:
        member: Suffix of the file in lower case, such as ``jpg`` or ``query.jpg``.
        steps: Way to a text in its JSON; empty for the whole member.
    """

    member: str
    steps: tuple[Step, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Parses ``jpg``, ``json:caption`` or ``json:meta.captions[*]``.

        Raises:
            ValueError: It is neither.
        """
        member, mark, way = (part.strip() for part in text.partition(":"))
        steps = [cast("Step", name or (int(place) if place else None)) for name, place, _ in STEP.findall(way)]
        rest = STEP.sub("", way).replace(".", "")
        if not member or "/" in member or rest or bool(mark) != bool(steps) or None in steps[:-1]:
            raise ValueError(
                f"A member must be a suffix (jpg), or one and a place in its JSON (json:caption, json:captions[*]), got {text!r}."
            )
        return cls(member.lower(), tuple(steps))

    @property
    def several(self) -> bool:
        """True for each entry of a list."""
        return self.steps[-1:] == (None,)

    @property
    def modality(self) -> Modality | None:
        """The modality that the suffix tells; None for one that is unknown."""
        suffix = self.member.rpartition(".")[2]
        return "text" if self.steps or suffix in TEXTS else MODALITY_OF.get(suffix)

    def texts(self, data: bytes) -> list[str]:
        """The texts of a member.

        Args:
            data: Its bytes.

        Raises:
            AbsentError: Its JSON has no such place.
            ValueError: It is not UTF-8, no JSON, or no text.
        """
        if not self.steps:
            return [data.decode("utf-8-sig").strip()]
        try:
            value = msgspec.json.decode(data)
        except msgspec.DecodeError as error:
            raise ValueError(f"member {self.member!r} must be JSON, as {self} asks for ({error})") from error
        for step in self.steps:
            if step is None:
                if not isinstance(value, list):
                    raise ValueError(f"{self} must be a list, got {value!r:.80}; without [*] it is one text")
                break
            fits = isinstance(value, dict) if isinstance(step, str) else isinstance(value, list)
            if not fits or (step not in value if isinstance(step, str) else step >= len(value)):
                raise AbsentError(f"member {self.member!r} must hold {self}, and has no {step!r}")
            value = value[step]
        texts = value if self.several else [value]
        if odd := [text for text in texts if not isinstance(text, str)]:
            raise ValueError(f"{self} must be text, got {odd[0]!r:.80}")
        return [text.strip() for text in texts]

    def __str__(self) -> str:
        way = "".join(f".{step}" if isinstance(step, str) else f"[{'*' if step is None else step}]" for step in self.steps)
        return self.member + (":" + way.removeprefix(".") if way else "")


@dataclass(frozen=True)
class Part:
    """One part of an item: its modality and where it may be, the first that there is.

    Args:
        modality: Kind of content.
        sources: Alternatives.
    """

    modality: Modality
    sources: tuple[Source, ...]

    @classmethod
    def parse(cls, text: str, modality: str | None) -> "Part":
        """Parses alternatives, such as ``jpg;jpeg;png;webp``.

        Args:
            text: Members, parted by semicolons.
            modality: Kind of content; None to take it from the suffixes.

        Raises:
            ValueError: A suffix is unknown, or alternatives are of several modalities.
        """
        sources = tuple(Source.parse(each) for each in text.split(";"))
        kinds = {source.modality for source in sources} if modality is None else {modality}
        if None in kinds:
            unknown = next(source for source in sources if source.modality is None)
            some = " (json:caption for a text in it)" if unknown.member.endswith("json") else ""
            raise ValueError(
                f"A member's suffix must tell its modality, got {str(unknown)!r}{some}. Write {{image: {text}}}, or so."
            )
        if len(kinds) > 1:
            raise ValueError(f"Alternatives must be of one modality, got {text!r}. Write {{image: {text}}}, or so.")
        (kind,) = kinds
        if kind not in MODALITIES:
            raise ValueError(f"A member's modality must be among {list(MODALITIES)}, got {kind!r} for {text!r}.")
        if kind != "text" and any(source.steps for source in sources):
            raise ValueError(f"A place in JSON must be a text, got {text!r} for {kind!r}. Keep media in members of their own.")
        return cls(kind, sources)

    def find(self, names: Collection[str]) -> Source:
        """The source that a sample has.

        Raises:
            AbsentError: It has none of them.
        """
        if (found := next((source for source in self.sources if source.member in names), None)) is None:
            wanted = " or ".join(dict.fromkeys(repr(source.member) for source in self.sources))
            raise AbsentError(f"member {wanted} is missing, the sample has {sorted(names)}")
        return found


def parse_side(members: Members) -> tuple[Part, ...]:
    """Parses one side of a pair.

    Raises:
        ValueError: It is empty, or a member is none.
    """
    entries = {None: members} if isinstance(members, str) else members
    if not entries:
        raise ValueError("A side must have a member, such as jpg or {image: jpg, text: txt}, got none.")
    return tuple(Part.parse(text, name) for name, text in entries.items())


class PairTemplate:
    """Makes pairs of members. What depends on a sample's names alone is found once for all samples of the same names.

    Args:
        query: Members of the query.
        target: Members of the target.
        negatives: Members of each hard negative; one that a sample does not have is left out of its pair.
        instruction: The queries' instruction.
    """

    def __init__(
        self, query: Members, target: Members, negatives: Sequence[Members] = (), instruction: str | None = None
    ) -> None:
        self.sides = [parse_side(query), parse_side(target)]
        self.negatives = [parse_side(members) for members in negatives]
        self.instruction = instruction
        several = [part for side in self.sides for part in side if any(source.several for source in part.sources)]
        if len(several) > 1:
            raise ValueError(f"One part of a pair may be several ([*]), got {[str(part.sources[0]) for part in several]}.")
        self.several = several[0] if several else None

    @property
    def modality(self) -> Modality:
        """The modality of the pairs: that of their media, or text."""
        found = {part.modality for side in self.sides for part in side}
        return next((name for name in MEDIA if name in found), "text")

    def recipe(self, names: Sequence[str]) -> "Recipe":
        """Finds the members of samples that have these names.

        Raises:
            ValueError: One is missing, or the sample is invalid.
        """
        if names and names[0].startswith(FAULT):
            raise ValueError(names[0].removeprefix(FAULT))
        sides = [[(part, part.find(names)) for part in side] for side in self.sides]
        negatives = []
        for side in self.negatives:
            with suppress(AbsentError):
                negatives.append([(part, part.find(names)) for part in side])
        return Recipe(sides, negatives, self.instruction)


Found = list[tuple[Part, Source]]
"""The parts of a side, and where each is."""


class Recipe:
    """Way from samples with certain names to pairs.

    Args:
        sides: Query and target.
        negatives: The hard negatives that there are.
        instruction: The queries' instruction.
    """

    def __init__(self, sides: list[Found], negatives: list[Found], instruction: str | None) -> None:
        self.sides, self.negatives, self.instruction = sides, negatives, instruction
        self.members = {source.member for side in (*sides, *negatives) for _, source in side}

    def count(self, members: Mapping[str, bytes]) -> int:
        """Pairs that a sample makes: its captions, where a part is several.

        Args:
            members: The sample's members.

        Raises:
            ValueError: A member is not what the recipe needs.
        """
        found = [len(source.texts(members[source.member])) for side in self.sides for _, source in side if source.several]
        return max(found, default=1)

    def item(self, side: Found, key: str, members: Mapping[str, bytes], which: int, instruction: str | None = None) -> Item:
        """Makes an item.

        Args:
            side: Its parts.
            key: Of the pair, for the names of media.
            members: The sample's members.
            which: Number of the text where a part is several.
            instruction: The item's instruction.
        """
        parts: list[str | Media] = []
        for part, source in side:
            data = members[source.member]
            if part.modality == "text":
                texts = source.texts(data)
                if which >= len(texts):
                    raise ValueError(f"{source} must hold a text for each pair, got {len(texts)}")
                parts.append(texts[which if source.several else 0])
            else:
                parts.append(Media(part.modality, data, f"{key}.{source.member}"))
        return Item(tuple(parts), instruction)

    def wrong(self, key: str, members: Mapping[str, bytes]) -> Iterator[Item]:
        """Makes the negatives that there are.

        Args:
            key: Of the pair.
            members: The sample's members.
        """
        for side in self.negatives:
            with suppress(AbsentError):
                counts = [len(source.texts(members[source.member])) for _, source in side if source.several]
                yield from [self.item(side, key, members, which) for which in range(max(counts, default=1))]

    def pair(self, key: str, task: str, modality: Modality, members: Mapping[str, bytes], which: int = 0) -> Pair:
        """Makes a pair.

        Args:
            key: Of the pair.
            task: Of the pair.
            modality: Of the pair.
            members: The sample's members.
            which: Number of the text where a part is several.

        Raises:
            ValueError: A member is not what the pair needs.
        """
        query, target = self.sides
        first = self.item(query, key, members, which, self.instruction)
        negatives = tuple(self.wrong(key, members)) if self.negatives else ()
        return Pair(key, task, modality, first, self.item(target, key, members, which), negatives)
