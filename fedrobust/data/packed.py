"""Files that were left packed: how they are noticed, and the command that unpacks them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple


class Packer(NamedTuple):
    """A program that packs files."""

    head: bytes
    """The first bytes of its files."""
    name: str
    ending: str
    """Of its files' names."""
    command: str
    """Unpacks the file whose name follows."""


PACKERS = (
    Packer(b"\x1f\x8b", "gzip", ".gz", "gunzip"),
    Packer(b"BZh", "bzip2", ".bz2", "bunzip2"),
    Packer(b"\xfd7zXZ", "xz", ".xz", "unxz"),
    Packer(b"\x28\xb5\x2f\xfd", "zstd", ".zst", "unzstd"),
    Packer(b"7z\xbc\xaf", "7z", ".7z", "7z x"),
    Packer(b"Rar!", "rar", ".rar", "unrar x"),
    Packer(b"PK\x03\x04", "zip", ".zip", "unzip"),
)
"""The usual ones."""
_TAR = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2?|txz)$", re.IGNORECASE)
_TAR_HEAD, _TAR_AT = b"ustar", 257


def unpacking(name: str) -> str:
    """The command that unpacks a file with this name; empty if its ending is not that of a packed file."""
    command = "tar -xf" if _TAR.search(name) else ""
    for packer in PACKERS:
        if not command and name.lower().endswith(packer.ending):
            command = packer.command
    return f"{command} {shlex.quote(name)}" if command else ""


def packed(head: bytes, name: str) -> str:
    """What kind of packed file begins with these bytes, and how it is unpacked; empty if it is none.

    head: at least its first 300 bytes.
    name: of the file.
    """
    if head[_TAR_AT:].startswith(_TAR_HEAD):
        return f"packed with tar: unpack it first, with `tar -xf {shlex.quote(name)}`"
    for packer in PACKERS:
        if head.startswith(packer.head):
            ended = name if unpacking(name) else name + packer.ending
            renamed = "" if ended == name else f"rename it to {ended}, then "
            return f"packed with {packer.name}: unpack it first, with {renamed}`{unpacking(ended)}`"
    return ""


def packed_twin(file: Path) -> str:
    """What to do about a missing file that lies in its folder packed; empty if it does not."""
    for packer in PACKERS:
        twin = file.with_name(file.name + packer.ending)
        if twin.is_file():
            return f"is packed ({twin.name}): unpack it first, with `{unpacking(twin.name)}`"
    return ""


def packed_inside(folder: Path) -> str:
    """What to do about the packed files of a folder that does not hold the data; empty if it has none."""
    try:
        names = sorted(each.name for each in folder.iterdir() if unpacking(each.name) and each.name[0] != ".")
    except OSError:
        return ""
    if not names:
        return ""
    more = f" (and {len(names) - 1} more packed files)" if len(names) > 1 else ""
    return f"holds {names[0]}{more}, which is packed: unpack it first, with `{unpacking(names[0])}`"
