"""The body of a request -> the pictures in it, as bytes, and the fields beside them. All of it in memory, which is why
a form is taken apart here: the usual parsers of forms roll larger files over to the disk."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from .errors import unknown

FIELDS = ("top", "threshold")
NAME = 255  # characters of a file's name that are given back


class Refusal(Exception):  # noqa: N818 - an answer, not a mistake of ours
    """A request that gets no other answer than `status` and one sentence; `headers` go with it."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}


@dataclass
class Upload:
    """`pictures` are (name, bytes), the name empty where the request gave none; `fields` are texts or, from JSON,
    values."""

    pictures: list[tuple[str, bytes]] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)


def is_plain(content_type: str) -> bool:
    """Whether the body is one picture and nothing else."""
    return content_type.startswith("image/") or content_type == "application/octet-stream"


def read_upload(body: bytes, content_type: str, max_images: int, fields: tuple[str, ...] = FIELDS) -> Upload:
    """Take `body` apart as its type says: one picture, a form with files, or JSON with base64.

    Raises:
        Refusal: 415 for another type, 400 for what is not of its type, 413 for too many pictures.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if is_plain(kind):
        found = Upload([("", body)])
    elif kind == "multipart/form-data":
        found = _form(body, content_type, max_images, fields)
    elif kind == "application/json":
        found = _object(body, max_images, fields)
    else:
        given = f"not {kind[:80]!r}" if kind else "and none was given"
        raise Refusal(415, f"the Content-Type is image/*, multipart/form-data or application/json, {given}")
    if not found.pictures or (is_plain(kind) and not body):
        raise Refusal(400, "the request has no picture")
    return found


def _too_many(max_images: int) -> Refusal:
    return Refusal(413, f"a request may have {max_images} pictures")


def _form(body: bytes, content_type: str, max_images: int, fields: tuple[str, ...]) -> Upload:
    _, options = parse_options_header(content_type.encode("latin-1", "replace"))
    form = _Form(max_images, fields)
    try:
        parser = MultipartParser(options.get(b"boundary", b""), form.callbacks())  # type: ignore[arg-type] # its own types
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise Refusal(400, "the body is not a form of the boundary that its Content-Type names") from error
    if not options.get(b"boundary") or not form.ended:
        raise Refusal(400, "the body is not a form of the boundary that its Content-Type names, or is cut off")
    return form.found


class _Form:
    """What the parser's callbacks are told, put together. They get slices of one body, so nothing is copied twice."""

    def __init__(self, max_images: int, fields: tuple[str, ...]) -> None:
        self.max_images, self.allowed, self.found, self.ended = max_images, fields, Upload(), False
        self.header, self.value, self.disposition = b"", b"", b""
        self.data: list[bytes] = []

    def callbacks(self) -> dict[str, Any]:
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "end")
        return {f"on_{name}": getattr(self, name) for name in names}

    def part_begin(self) -> None:
        self.data, self.disposition = [], b""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self.header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def header_end(self) -> None:
        if self.header.lower() == b"content-disposition":
            self.disposition = self.value
        self.header, self.value = b"", b""

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self.data.append(data[start:end])

    def part_end(self) -> None:
        _, options = parse_options_header(self.disposition)
        name, value = options.get(b"name", b"").decode(errors="replace"), b"".join(self.data)
        if b"filename" in options:
            if len(self.found.pictures) == self.max_images:
                raise _too_many(self.max_images)
            self.found.pictures.append((options[b"filename"].decode(errors="replace")[:NAME], value))
        elif name not in self.allowed:
            raise Refusal(400, str(unknown("field", name[:80], (*self.allowed, "a file"))))
        elif name in self.found.fields:
            raise Refusal(400, f"the form has {name} twice")
        else:
            self.found.fields[name] = value[:80].decode(errors="replace")

    def end(self) -> None:
        self.ended = True


def _object(body: bytes, max_images: int, fields: tuple[str, ...]) -> Upload:
    # Counted before it is read: twenty megabytes of brackets would become half a gigabyte of lists
    if body.count(b"[") + body.count(b"{") > 16 or body.count(b",") > 2 * max_images + 64:
        raise Refusal(413, f'the JSON has more parts than {{"images": [...]}} with {max_images} pictures has')
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "the body is not JSON") from error
    if not isinstance(value, dict) or not isinstance(value.get("images"), list):
        raise Refusal(400, 'the JSON is {"images": [base64, ...]}, an object with a list of texts')
    for name in value:
        if name not in (*fields, "images"):
            raise Refusal(400, str(unknown("field", name[:80], ("images", *fields))))
        if name in FIELDS and isinstance(value[name], str):  # which in a form they are
            raise Refusal(422, f"{name} is a number, not {value[name][:80]!r}")
    images = value.pop("images")
    if len(images) > max_images:
        raise _too_many(max_images)
    return Upload([("", _from_base64(text, i)) for i, text in enumerate(images)], value)


def _from_base64(text: object, at: int) -> bytes:
    try:
        if not isinstance(text, str):
            raise TypeError
        head, comma, _ = text[:100].partition(",")  # a browser's data: address is taken as it is
        given = text[len(head) + 1 :] if comma and head.startswith("data:") and head.endswith(";base64") else text
        return base64.b64decode(given, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise Refusal(400, f"images[{at}] is not base64") from error
