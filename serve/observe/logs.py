"""The log of a server: one line for each thing that happened, as JSON or as text."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

if TYPE_CHECKING:
    from loguru import Record

LEVELS = ("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# we write of each request ourselves, and addresses that httpx names may be signed
QUIET = ("asyncio", "httpx", "httpx2")
LOUD = {"uvicorn.access": logging.CRITICAL, **dict.fromkeys(QUIET, logging.WARNING)}
LINE = "line"  # the field of a record that holds the line as it is written
SIGNS = ', "='  # that end a word of a list, or but for the first one a field
MOST_CHARACTERS = 20_000  # of a line's message, and of each of its fields
_lost = 0  # lines of this process; the thread that writes them alone counts


class ServerLog:
    """All that this process logs: loguru's lines and those of `logging`, as of uvicorn. A thread of loguru's writes them, so a slow disk holds up no answer. Lines that cannot be written are lost:
    standard error hears of the first one, and `lost_lines` counts all. A line is one line, whatever clients send:
    JSON and text escape what would end it.

    format: json or text. level: the lowest that is written. path: a file to add to; None = standard error.
    """

    def __init__(self, format: str = "json", level: str = "INFO", path: Path | None = None) -> None:
        if format not in FORMATS:
            raise ValueError(f"log_format={format!r} must be one of {', '.join(FORMATS)}")
        if level.upper() not in LEVELS:
            raise ValueError(f"log_level={level!r} must be one of {', '.join(LEVELS).lower()}")
        self._number = number = _opened(path)
        self._loses = False  # lines
        written = FORMATS[format]

        def line(record: Record) -> str:
            record["extra"][LINE] = written(record)
            return f"{{extra[{LINE}]}}"

        def write(message: str) -> None:
            data = message.encode("utf-8", "backslashreplace")
            try:
                while data:  # a disk that is nearly full takes a part
                    data = data[os.write(number, data) :]
            except OSError as error:
                self._lose(error)

        logger.remove()
        logger.enable("fastslow")
        # diagnose would write the values of variables, prompts among them, into tracebacks
        self._sink = logger.add(
            write, level=level.upper(), format=line, backtrace=False, diagnose=False, enqueue=True
        )
        root = logging.getLogger()
        root.handlers, root.level = [_ToLoguru()], logging.INFO
        for name in list(logging.root.manager.loggerDict):
            logging.getLogger(name).handlers = []
            logging.getLogger(name).propagate = True
        for name, lowest in LOUD.items():
            logging.getLogger(name).setLevel(lowest)

    @classmethod
    def of_environment(cls) -> ServerLog:
        """That of the process which started this one: see `ServerConfig.log_environment`."""
        path = os.environ.get("FASTSLOW_LOG_FILE")
        format = os.environ.get("FASTSLOW_LOG_FORMAT", "text")
        level = os.environ.get("FASTSLOW_LOG_LEVEL", "info")
        return cls(format, level, Path(path) if path else None)

    def _lose(self, error: OSError) -> None:
        global _lost
        _lost += 1
        if not self._loses:
            self._loses = True
            said = f"the log cannot be written: {error.strerror}; lines are lost\n"
            with suppress(OSError):  # it may lie on the same disk
                os.write(2, said.encode())

    def close(self) -> None:
        """Write what waits."""
        logger.remove(self._sink)
        os.close(self._number)


class _ToLoguru(logging.Handler):
    """Hands a record of `logging` on."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        options = logger.opt(exception=record.exc_info, depth=6)
        options.bind(logger=record.name).log(level, "{}", record.getMessage())


def lost_lines() -> int:
    """Lines of this process that could not be written."""
    return _lost


def _opened(path: Path | None) -> int:
    if path is None:
        return os.dup(sys.stderr.fileno())
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    except OSError as error:
        raise ValueError(f"log_file={str(path)!r} cannot be written: {error.strerror}") from None


def as_json(record: Record) -> str:
    """Format a record as one JSON object, in ASCII: nothing in it can end the line or move a terminal's cursor."""
    line: dict[str, Any] = {
        "time": record["time"].isoformat(timespec="milliseconds"),
        "level": record["level"].name,
        "message": record["message"][:MOST_CHARACTERS],
        "logger": record["name"],
    }
    line.update(_fields(record))
    if record["exception"] is not None:
        line["exception"] = _traced(record)[-MOST_CHARACTERS:]
    return json.dumps(line, default=str) + "\n"


def as_text(record: Record) -> str:
    """Time, level, message, then fields; what would end the line is escaped."""
    when = record["time"].strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    fields = "".join(f" {name}={_one_word(value)}" for name, value in _fields(record).items())
    message = escaped(record["message"][:MOST_CHARACTERS])
    line = f"{when} {record['level'].name:8} {message}{fields}\n"
    if record["exception"] is not None:
        lines = _traced(record)[-MOST_CHARACTERS:].splitlines()
        line += "".join(f"    {escaped(part)}\n" for part in lines)
    return line


FORMATS: dict[str, Callable[[Record], str]] = {"json": as_json, "text": as_text}


def escaped(text: str) -> str:
    """The text with all that is no visible character as \\n, \\x1b and the like."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "backslashreplace").decode()
        for one in text
    )


def _one_word(value: object) -> str:
    """A field's value, of a list its words; in quotes where it could be taken for more than one field."""
    if isinstance(value, list) and not any(sign in str(part) for part in value for sign in SIGNS):
        value = ",".join(map(str, value))
    text = escaped(str(value))
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in SIGNS[1:]) else text


def _fields(record: Record) -> dict[str, Any]:
    """Return what a log line says besides its message."""
    return {
        name: value[:MOST_CHARACTERS] if isinstance(value, str) else value
        for name, value in record["extra"].items()
        if name != LINE
    }


def _traced(record: Record) -> str:
    error = record["exception"]
    if error is None or error.type is None:
        return ""
    return "".join(traceback.format_exception(error.type, error.value, error.traceback))
