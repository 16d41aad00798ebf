"""What a listed video may be called, and what names are compared by.

A list is written by strangers: an entry is a plain path below the root or it is refused, with its file and line.

video_id("Archery/v_Archery_g01_c01.avi", Path("trainlist01.txt"), 1)     # "Archery/v_Archery_g01_c01"
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from features.errors import UserError

# fmt: off
VIDEO_SUFFIXES = frozenset({
    "3g2", "3gp", "asf", "avi", "divx", "f4v", "flv", "gif", "ivf", "m2t", "m2ts", "m2v", "m4v", "mjpeg", "mjpg", "mkv",
    "mov", "mp4", "mpe", "mpeg", "mpg", "mts", "mxf", "nut", "ogv", "qt", "ts", "vob", "webm", "wmv", "y4m",
})
# fmt: on

SOUND_SUFFIXES = frozenset({"aac", "flac", "m4a", "mp3", "oga", "ogg", "opus", "wav"})

# Most names are plain, and there are 300,000: one match settles those.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]*(?:/[A-Za-z0-9_-][A-Za-z0-9_. -]*)*")

# In a protocol, the characters that FFmpeg takes for one: "12:30.mp4" is a protocol to it, "a b:c.mp4" is a file.
_HOSTILE = {
    "a control character": re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"),
    "a backslash": re.compile(r"\\"),
    "a home folder": re.compile(r"^~"),
    # a video's id may begin so (one in 64 of YouTube's do), and then it has a suffix
    "a leading -": re.compile(rf"^-(?!.*\.(?:{'|'.join(sorted(VIDEO_SUFFIXES))})$)", re.IGNORECASE),
    "a pipe": re.compile(r"^\|"),
    "a protocol": re.compile(r"^[A-Za-z0-9+.,-]+:"),
    "a way out of the root": re.compile(r"(?:^|/)\.\.(?:/|$)"),
    "a name that is not UTF-8": re.compile(r"[\ud800-\udfff]"),
    "an absolute path": re.compile(r"^/"),
    "no name": re.compile(r"^[./]*$"),
}


def nfc(text: str) -> str:
    """`text` with each accented letter in one form, so that names from different systems compare equal."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def nfd(text: str) -> str:
    """`text` with its accents apart, as Macs write names."""
    return text if text.isascii() else unicodedata.normalize("NFD", text)


def stem(name: str) -> str:
    """`name` without the suffix of a video container; a suffix that is none belongs to the name."""
    base, _, suffix = name.rpartition(".")
    return base if base.strip("./") and base[-1] != "/" and suffix.lower() in VIDEO_SUFFIXES else name


def refusal(entry: str) -> str:
    """Why `entry` cannot be a path below a root; empty when it can."""
    if _PLAIN.fullmatch(entry) and ".." not in entry:
        return ""
    return next((reason for reason, pattern in _HOSTILE.items() if pattern.search(entry)), "")


def unspeakable(name: str) -> str:
    """Why a file's own name cannot be written down; empty when it can."""
    reasons = ("a control character", "a name that is not UTF-8")
    return next((reason for reason in reasons if _HOSTILE[reason].search(name)), "")


def leaves(file: str) -> bool:
    """Whether the name of a file that was found under a root could be one of another place, or of none."""
    return file.startswith("/") or refusal(f"./{file}") != ""


def video_id(entry: str, path: Path, line: int = 0) -> str:
    """The id of the video that `entry` lists. Raises `UserError` where the entry is no plain path below the root."""
    entry = nfc(entry)
    if _PLAIN.fullmatch(entry) and ".." not in entry:
        return stem(entry)
    if reason := refusal(entry):
        got = f"{reason} in {entry[:80]!r}"
        raise UserError("entry refused", where=place(path, line), expected="a path below the root", got=got)
    return stem("/".join(part for part in entry.split("/") if part not in ("", ".")))


def place(path: Path, line: int) -> str:
    """``file:line``, as messages name it."""
    return f"{path}:{line}" if line else str(path)
