"""Where rows come from: the grammar of a location, and the files that stand behind it.

    path, file://, s3://, gs://, https://              one file, or a folder of files of one format
    hub://owner/name[@revision][:config]               a dataset of the Hugging Face hub (hub:///folder: a local copy)
    demo://reviews[?rows=N&seed=S]                     the built-in generator

Web addresses name single files: folders cannot be listed there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from stillhouse.data.faults import Unreadable
from stillhouse.errors import Problem

__all__ = [
    "FORMATS",
    "SPLIT_PARAMETERS",
    "DataFile",
    "HubLocation",
    "check_location",
    "find_files",
    "parse_demo",
    "parse_hub",
    "public_name",
    "scheme_of",
]

SPLIT_PARAMETERS = {"train": "data", "validation": "validation_data", "test": "test_data"}
"""The pipeline parameter that locates each split."""

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
"""File format by suffix; all but Parquet may carry `.gz` after it."""

FILE_SCHEMES = ("", "file", "s3", "gs", "gcs", "https", "http")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_HUB = re.compile(
    r"^hub://(?P<path>/[^@:]+|[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?(?::(?P<config>[\w.-]+))?$"
)
DEMO_ROWS = 5500
DEMO_SEED = 0
MAX_DEMO_ROWS = 100_000_000


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One file to read."""

    name: str
    """As people know it; carries no credentials."""
    path: str
    """As its file system knows it."""
    filesystem: Any
    """An fsspec file system."""
    format: str
    """A value of `FORMATS`, or of the formats that were asked for."""
    compressed: bool
    """Whether it is gzip."""
    size: int
    """Bytes, or 0 where unknown."""


@dataclass(frozen=True, kw_only=True)
class HubLocation:
    """A parsed `hub://` location."""

    path: str
    """`owner/name`, or the absolute path of a local folder."""
    revision: str
    """Branch, tag or commit; empty: the default branch."""
    config: str
    """Configuration of the dataset; empty: its only or default one."""


def scheme_of(location: str) -> str:
    """The scheme in lower case; empty for a plain path."""
    match = _SCHEME.match(location)
    return match.group(1).lower() if match else ""


def public_name(location: str) -> str:
    """The location without what may be secret: user and password, and the query of a web address (signed URLs)."""
    if scheme_of(location) not in ("http", "https"):
        return location
    parts = urlsplit(location)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def parse_hub(location: str) -> HubLocation | None:
    """The parts of a `hub://` location, or None where it is malformed."""
    match = _HUB.match(location)
    if not match:
        return None
    return HubLocation(path=match["path"], revision=match["revision"] or "", config=match["config"] or "")


def parse_demo(location: str) -> tuple[int, int]:
    """Rows and seed of a `demo://reviews` location.

    Raises:
        ValueError: saying what is wrong with it.
    """
    parts = urlsplit(location)
    if parts.netloc != "reviews" or parts.path.strip("/"):
        raise ValueError(f"there is no generator {parts.netloc + parts.path!r}; there is 'reviews'.")
    values = {"rows": DEMO_ROWS, "seed": DEMO_SEED}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in values:
            raise ValueError(f"has the unknown option {key!r}; there are 'rows' and 'seed'.")
        if not re.fullmatch(r"\d{1,12}", value):
            raise ValueError(f"has {key}={value!r}, which is not a whole number.")
        values[key] = int(value)
    if not 1 <= values["rows"] <= MAX_DEMO_ROWS:
        raise ValueError(f"asks for {values['rows']} rows; from 1 to {MAX_DEMO_ROWS:,} can be made.")
    return values["rows"], values["seed"]


def check_location(parameter: str, location: str) -> list[Problem]:
    """What is wrong with the form of a location; nothing is opened."""
    scheme = scheme_of(location)
    if scheme == "demo":
        try:
            parse_demo(location)
        except ValueError as error:
            return [Problem(parameter, f"{location}: {error}", "Write demo://reviews?rows=5500&seed=0.")]
    elif scheme == "hub":
        if parse_hub(location) is None:
            return [
                Problem(
                    parameter,
                    f"{location!r} does not name a dataset.",
                    "Write hub://owner/name, with @revision and :config after it where needed.",
                )
            ]
    elif scheme not in FILE_SCHEMES:
        return [
            Problem(
                parameter,
                f"{public_name(location)!r} has the unknown scheme {scheme}://.",
                "Give a path, or one of s3://, gs://, https://, hub://, demo://.",
            )
        ]
    return []


def find_files(location: str, formats: Mapping[str, str] = FORMATS) -> list[DataFile]:
    """The files behind a path or URL: one, or those of a folder in the order of their names.

    Raises:
        Unreadable: nothing is there, it cannot be reached, or its format is not one of `formats`.
    """
    from fsspec.core import url_to_fs

    web = scheme_of(location) in ("http", "https")
    try:
        if web:
            import aiohttp

            # The client's own default ends any download after five minutes, however steadily it flows.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
            filesystem, path = url_to_fs(location, client_kwargs={"timeout": timeout})
        else:
            filesystem, path = url_to_fs(str(Path(location).expanduser()) if not scheme_of(location) else location)
            # Object stores' listings are cached per process; the source may have changed since.
            filesystem.invalidate_cache()
        if web:
            return [_one_file(public_name(location), path, filesystem, 0, formats)]
        info = filesystem.info(path)
        if info["type"] != "directory":
            return [_one_file(location, path, filesystem, int(info.get("size") or 0), formats)]
        entries = filesystem.ls(path, detail=True)
    except Unreadable:
        raise
    except FileNotFoundError:
        raise Unreadable("there is no such file or folder.", "Check the path.") from None
    except ImportError as error:
        raise Unreadable(f"needs a package that is not installed ({error}).", "Install it with pip.") from None
    except Exception as error:  # each store's client has an exception tree of its own
        raise Unreadable(f"cannot be reached ({describe(error)}).", "Check the address and the credentials.") from None
    return _folder_files(location, entries, filesystem, formats)


def describe(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _folder_files(
    location: str, entries: list[dict[str, Any]], filesystem: Any, formats: Mapping[str, str]
) -> list[DataFile]:
    found = []
    for entry in sorted(entries, key=lambda entry: str(entry["name"])):
        name = PurePosixPath(entry["name"]).name
        if entry["type"] == "file" and _format_of(name, formats) and not name.startswith((".", "_")):
            shown = f"{location.rstrip('/')}/{name}"
            found.append(_one_file(shown, entry["name"], filesystem, int(entry.get("size") or 0), formats))
    mixed = sorted({file.format for file in found})
    if not found:
        raise Unreadable(
            f"the folder holds no file ending in {_suffixes(formats)}.", "Point to the folder with the files."
        )
    if len(mixed) > 1:
        raise Unreadable(f"the folder mixes formats: {', '.join(mixed)}.", "Keep one format in a folder.")
    return found


def _one_file(name: str, path: str, filesystem: Any, size: int, formats: Mapping[str, str]) -> DataFile:
    plain = urlsplit(path).path if scheme_of(path) in ("http", "https") else path
    kind = _format_of(plain, formats)
    if kind is None:
        suffix = "".join(PurePosixPath(plain).suffixes[-2:]) or "no suffix"
        remedy = f"Give a file ending in {_suffixes(formats)}."
        raise Unreadable(f"its format is not known from its name ({suffix}).", remedy)
    return DataFile(
        name=name, path=path, filesystem=filesystem, format=kind, compressed=plain.lower().endswith(".gz"), size=size
    )


def _format_of(name: str, formats: Mapping[str, str]) -> str | None:
    name = name.lower()
    compressed = name.endswith(".gz")
    kind = formats.get(PurePosixPath(name.removesuffix(".gz")).suffix)
    return None if compressed and kind == "parquet" else kind


def _suffixes(formats: Mapping[str, str]) -> str:
    return ", ".join(formats) + " (or .gz after a text format)"
