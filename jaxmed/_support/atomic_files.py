"""Files written all or nothing, and one error where they cannot be."""

from __future__ import annotations

import errno
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from jaxmed._support.errors import WriteError


def check_folder_of(path: Path) -> None:
    """:class:`FitError` where a file cannot be written for want of a folder: known before the work that makes it."""
    with _words_of_writing(path):
        path.parent.stat()
        for wrong, code in ((not path.parent.is_dir(), errno.ENOTDIR), (path.is_dir(), errno.EISDIR)):
            if wrong:
                raise OSError(code, os.strerror(code))


def write_text(path: Path, text: str) -> None:
    """Write a text file, all or nothing."""
    write_atomically(path, lambda stream: stream.write(text.encode()))


def write_atomically(target: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its target and move it there when it is whole; an earlier file stays until then.

    A target that is no regular file is written to as it is, as are the standard streams of this process, by whatever
    name. Another link is replaced itself: one that a stranger left in a folder of results leads nowhere.
    """
    with _words_of_writing(target):
        own = _own_stream(target)
        if own is not None:
            with suppress(AttributeError, ValueError):  # none, or closed
                sys.stdout.flush()
            with open(os.dup(own), "wb") as stream:
                fill(stream)
            return
        if target.exists() and not target.is_file():
            with open(target, "wb") as stream:
                fill(stream)
            return
        with _beside(target, fill) as written:
            os.replace(written, target)


def _own_stream(target: Path) -> int | None:
    """1 or 2 where a path, such as /dev/stdout, leads to where that stream of this process goes."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(target.stat(), os.fstat(descriptor)):
                return descriptor
    return None


def write_once(target: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file, all or nothing, unless there is one: of several processes the first one's stays."""
    with _words_of_writing(target):
        if target.exists():
            return
        with _beside(target, fill) as written:
            try:
                os.link(written, target)
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                with suppress(FileExistsError), open(target, "xb") as stream:
                    stream.write(written.read_bytes())


@contextmanager
def _words_of_writing(target: Path) -> Iterator[None]:
    if not target.name:
        raise WriteError(f"{str(target)!r} is no file name; give one to write to")
    try:
        yield
    except OSError as error:
        written = WriteError(f"{str(target)!r} could not be written: {error.strerror or error}")
        written.errno, written.filename = error.errno, str(target)
        raise written from error


@contextmanager
def _beside(target: Path, fill: Callable[[BinaryIO], object]) -> Iterator[Path]:
    """A whole file under another name in the same folder, which is gone afterwards."""
    path = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(path, "xb") as stream:
            fill(stream)
        yield path
    finally:
        path.unlink(missing_ok=True)
