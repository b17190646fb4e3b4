"""What a page is made of: sections of tiles, tables, plots and pictures; nothing of HTML."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal

MISSING = "\N{EN DASH}"  # where there is no value


Tone = Literal["plain", "good", "bad"]


@dataclass(frozen=True)
class Tile:
    """A number that stands out.

    Attributes:
        label: what it is.
        value: as shown.
        note: a second line.
        tone: colours the value.
    """

    label: str
    value: str
    note: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        head: a title per column.
        rows: as many texts each.
        kinds: of the columns: t(ext), n(umber), c(ode, such as a path), one letter a column.
        caption: above it.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    kinds: str
    caption: str = ""
    shape: ClassVar[str] = "table"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    items: Mapping[str, str]
    caption: str = ""
    shape: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Plot:
    """A drawing as PNG, on light and on dark ground.

    Attributes:
        name: of its file, without extension.
        alt: what it shows, for those who cannot see it.
    """

    name: str
    alt: str
    light: bytes
    dark: bytes
    shape: ClassVar[str] = "plot"


@dataclass(frozen=True)
class Sheet:
    """A picture that lies in the folder already.

    Attributes:
        alt: what it shows.
        picture: its file.
        type: of the picture, such as image/png.
    """

    alt: str
    picture: bytes
    type: str = "image/png"
    shape: ClassVar[str] = "sheet"


@dataclass(frozen=True)
class Comparison:
    """A part of a picture before and after, and what was taken away.

    Attributes:
        key: of the picture.
        label: why it is shown.
        facts: in a line below.
        before, after: of one size; empty where they could not be read.
        removed: after less before, magnified, around grey.
        whole: the whole picture, small, with the part outlined.
        missing: why there is nothing to see, or nothing.
    """

    key: str
    label: str
    facts: str
    before: bytes = b""
    after: bytes = b""
    removed: bytes = b""
    whole: bytes = b""
    missing: str = ""


@dataclass(frozen=True)
class Comparisons:
    """Pictures side by side."""

    items: Sequence[Comparison]
    shape: ClassVar[str] = "comparisons"


@dataclass(frozen=True)
class Note:
    """A sentence; `loud` for one that decides."""

    text: str
    loud: bool = False
    shape: ClassVar[str] = "note"


Block = Table | Facts | Plot | Sheet | Comparisons | Note


@dataclass(frozen=True)
class Section:
    """A part of the page with a title.

    Attributes:
        folded: shown when it is asked for.
    """

    title: str
    blocks: Sequence[Block]
    text: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """One report.

    Attributes:
        kind: of the folder, for people.
        title: of the page.
        status: how the run ended.
        facts: in a line under the title.
    """

    kind: str
    title: str
    status: str
    facts: Sequence[str]
    tiles: Sequence[Tile]
    sections: Sequence[Section] = field(default_factory=list)

    @property
    def plots(self) -> list[Plot]:
        """All plots of the page."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Plot)]


def data_uri(data: bytes, type: str) -> str:
    """Write a file as an address that holds it."""
    return f"data:{type};base64,{base64.b64encode(data).decode()}"


def number(value: float | None, digits: int = 0, *, sign: bool = False) -> str:
    """Write a number with thousands apart."""
    return MISSING if value is None else f"{value:{'+' if sign else ''},.{digits}f}"


def decibels(value: float | None, *, sign: bool = False) -> str:
    """Write a PSNR, or a difference of two."""
    return MISSING if value is None else f"{number(value, 2, sign=sign)}\N{NO-BREAK SPACE}dB"


def percent(part: float, whole: float) -> str:
    """Write a share; one that is neither none nor all never reads as such."""
    if not whole:
        return MISSING
    share = 100 * part / whole
    digits = 1 if 0.05 <= share < 99.95 or part in (0, whole) else 4
    return f"{share:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """Write a time span: 0.43 s, 12.3 s, 4 min 05 s, 3 h 20 min."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.{2 if seconds < 10 else 1}f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def readable(value: Any) -> str:
    """Write a value of a manifest for people."""
    if value is None or value in ({}, []):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {readable(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(readable(item) for item in value)
    return str(value)


def facts(values: Mapping[str, Any], *, caption: str = "") -> Facts:
    """Show a mapping of a manifest."""
    return Facts({name: readable(value) for name, value in values.items()}, caption)


def when(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Say when a run started and how long it took, as far as its manifest tells."""
    started, finished = (manifest.get(f"{name}_at") for name in ("started", "finished"))
    if isinstance(started, str):
        begun = datetime.fromisoformat(started)
        yield f"started {begun:%Y-%m-%d %H:%M} UTC"
        if isinstance(finished, str):
            yield f"took {duration((datetime.fromisoformat(finished) - begun).total_seconds())}"


def how_it_ran(parts: Mapping[str, Mapping[str, Any] | None]) -> Section:
    """Show what a manifest holds, under a caption each; what it lacks is left out."""
    return Section("How it ran", [facts(part, caption=name) for name, part in parts.items() if part], folded=True)
