"""Packs a folder of results on a job's node, and prints it as text. It is sent there as a file of its own, and uses
Python's standard library alone: so it does not matter which FedRobust is installed there.

`python collect.py FOLDER PARENT MOST ALL` prints a line of JSON after `MARK`, the zip file in base64, and a last line.
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import stat
import sys
import zipfile
from pathlib import Path

MARK = "fedrobust results: "
"""The beginning of the first and of the last line."""
END = "end"
KINDS = {".csv", ".html", ".json", ".jsonl", ".md", ".parquet", ".pdf", ".png", ".svg", ".txt", ".yaml", ".yml"}
"""Suffixes of tables, pages, pictures and records. Checkpoints and models have others."""
UNASKED = {"model"}
"""Folders that are packed only with ALL."""
SECRET = re.compile(
    r"(.*[-_. ])?(credentials?|secrets?|passw(or)?ds?|tokens?|((api|private|signing|ssh)[-_]?)keys?)([-_. ].*)?|keys"
    r"|id_(rsa|dsa|ecdsa|ed25519).*|.*\.(pem|key|p12|pfx|p8|jks|keystore|ppk|kdbx?|asc|gpg|age|env)(\.\w+|~)?",
    re.IGNORECASE,
)
"""Names of files and folders that are never packed."""
PRIVATE = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY|PuTTY-User-Key-File-\d: \w|AGE-SECRET-KEY-1[0-9A-Z]{50}")
"""What is in a file that is never packed."""
PARENT = "parent.txt"
"""The file with the id of a study's run in MLflow."""
WIDTH = 4096
"""Characters of a line."""


def main(folder: Path, parent: str, most: int, everything: bool) -> None:
    """Print the results in `folder`; see `collected`. Only the owner can read what is printed, if it goes to a file."""
    with contextlib.suppress(OSError):
        os.fchmod(sys.stdout.fileno(), 0o600)  # a job's log lies in a folder that others may enter
    try:
        about, content = collected(folder, parent, most, everything)
    except OSError as error:
        about, content = {"error": f"{error.filename or folder}: {error.strerror or error}"}, b""
    text = base64.b64encode(content).decode()
    lines = [text[start : start + WIDTH] for start in range(0, len(text), WIDTH)]
    print(MARK + json.dumps(about), *lines, MARK + END, sep="\n", flush=True)


def collected(folder: Path, parent: str, most: int, everything: bool) -> tuple[dict[str, object], bytes]:
    """Return what is to be said, and a zip file.

    folder: the absolute path of the results. If they have been put aside since, they are found beside it.
    parent: the content of `PARENT` there; an empty text for a run, whose folder has no such file.
    most: maximum number of bytes of all files.
    everything: also pack files of other kinds, such as checkpoints and models.

    Raises `OSError` if a file cannot be read.
    """
    found = place_of(folder, parent)
    if found is None:
        return {"error": f"{folder}: the results of this job are not there any more"}, b""
    left: list[str] = []
    names = sorted(listed(found, everything, left))
    sizes = {name: (found / name).lstat().st_size for name in names}
    if (total := sum(sizes.values())) > most:
        biggest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        shown = ", ".join(f"{name} ({sizes[name] / 1e6:.1f} MB)" for name in biggest)
        much = f"{total / 1e6:.1f} MB, more than {most / 1e6:g} MB, which is what a jobs server can send"
        return {"error": f"{found}: {much}; the biggest: {shown}; copy them by other means"}, b""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            content = read(found / name, most)
            if PRIVATE.search(content):
                left.append(name)
            else:
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    content = packed.getvalue()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "left": sorted(left)[:1000]}, content


def place_of(folder: Path, parent: str) -> Path | None:
    """Return the folder whose `PARENT` is `parent`: `folder`, or one beside it with a number at the end; else None."""
    if not parent:
        return folder if folder.is_dir() else None
    numbered = re.compile(re.escape(folder.name) + r"\.\d+")
    above = folder.parent
    beside = [each for each in above.iterdir() if numbered.fullmatch(each.name)] if above.is_dir() else []
    for each in (folder, *sorted(beside)):
        with contextlib.suppress(OSError, ValueError):
            if (each / PARENT).read_text(encoding="utf-8").strip() == parent:
                return each
    return None


def listed(folder: Path, everything: bool, left: list[str]) -> list[str]:
    """Return the paths below `folder` of the files to be packed; those that are not are added to `left`."""
    found: list[str] = []
    for above, folders, files in os.walk(folder):
        place = Path(above)
        for name in list(folders):
            link = (place / name).is_symlink()
            if link or hidden(name) or (name in UNASKED and not everything):
                folders.remove(name)
                left.append(f"{(place / name).relative_to(folder).as_posix()}/")
        for name in files:
            path = place / name
            wanted = stat.S_ISREG(path.lstat().st_mode) and (everything or path.suffix.lower() in KINDS)
            (found if wanted and not hidden(name) else left).append(path.relative_to(folder).as_posix())
    return found


def hidden(name: str) -> bool:
    """Return whether a file or folder is never packed, by its name."""
    return name.startswith(".") or SECRET.fullmatch(name) is not None


def read(path: Path, most: int) -> bytes:
    """Return the content of a file, which is no link, and has at most `most` bytes. Raises `OSError`."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(None, "grows while it is read", str(path))
    return content


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "all")
