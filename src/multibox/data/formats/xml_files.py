"""Parses the XML files of datasets, and finds them by their first tags.

XML with a DTD is refused, because the entities of a DTD could expand without limit or read other
files.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError

from multibox.data.files import read_bytes, read_ends
from multibox.data.formats.tree import FileTree
from multibox.errors import DataError

_NUMBER = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,30})?([eE][-+]?[0-9]{1,3})?")
_MAX_NUMBER = 1e12
_HEAD_BYTES = 1 << 14
_MAX_BYTES = 1 << 40
# Some programs write the declaration of UTF-16 and save the file as UTF-8.
_CLAIMS_UTF16 = re.compile(rb"<\?xml[^>]{0,100}encoding\s*=\s*[\"']utf-?16", re.IGNORECASE)
_TRIED_PER_FOLDER = 3


class _FoundTagsError(Exception):
    """The first two tags of a file were read."""


class _FirstTags:
    """A target for the parser that stops it after two tags."""

    def __init__(self) -> None:
        self.tags: list[str] = []

    def start(self, tag: str, _: object) -> None:
        """Is called for each tag."""
        self.tags.append(tag)
        if len(self.tags) == 2:
            raise _FoundTagsError

    def close(self) -> None:
        """Is called at the end."""


def parse_xml(file: Path, *, root: str, limit: int) -> Element:
    """Returns the root element of an XML file.

    Args:
        file: The file.
        root: The tag that the root element must have.
        limit: The maximum size of the file in bytes.

    Raises:
        DataError: The file is not XML, has another root element, or has a DTD.
    """
    # The parser's default tree builder is pure Python and takes twice as long.
    builder = TreeBuilder()
    try:
        parser = _fed(read_bytes(file, limit=limit), builder)
        tree: Element = parser.close()
    except DefusedXmlException as error:
        raise DataError("has a DTD, which is not allowed", kind="xml-dtd", file=file) from error
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"is not XML: {error}", kind="xml-malformed", file=file) from error
    if tree.tag != root:
        raise DataError(f"its root is {tree.tag[:40]!r}, not {root!r}", kind="xml-root", file=file)
    return tree


def _fed(data: bytes, target: object) -> DefusedXMLParser:
    """Returns a parser after parsing some data."""
    # XML allows no whitespace before its declaration, but some programs write it.
    data = data.lstrip(b" \t\r\n")
    encoding = "utf-8" if _CLAIMS_UTF16.match(data.removeprefix(b"\xef\xbb\xbf")) else None
    parser = DefusedXMLParser(target=target, encoding=encoding, forbid_dtd=True)
    parser.feed(data)
    return parser


def first_tags(file: Path) -> tuple[str, ...]:
    """Returns the tags of the root element and of its first child, as far as they can be read."""
    found = _FirstTags()
    try:
        head, _ = read_ends(file, head=_HEAD_BYTES, tail=1, limit=_MAX_BYTES)
        _fed(head, found)
    except (_FoundTagsError, DefusedXmlException, ParseError, ValueError, LookupError, DataError):
        pass
    return tuple(found.tags)


def folders_of_xml(tree: FileTree, root: str) -> Iterator[list[Path]]:
    """Yields the .xml files of each folder that has one with this root element.

    Only the first few files of a folder are opened.
    """
    folders = defaultdict[Path, list[Path]](list)
    for file in tree.with_suffix(".xml"):
        folders[file.parent].append(file)
    for files in folders.values():
        if any(first_tags(file)[:1] == (root,) for file in files[:_TRIED_PER_FOLDER]):
            yield files


def number_in(text: str, name: str) -> float:
    """Returns the number in a text.

    Args:
        text: A decimal number, possibly with an exponent.
        name: The name of the field, for the message.

    Raises:
        DataError: It is not a number, or above 1e12. The error names no file.
    """
    number = float(text) if _NUMBER.fullmatch(text.strip()) else math.nan
    if not abs(number) <= _MAX_NUMBER:
        raise DataError(
            f"its {name} is {text.strip()[:40]!r}, not a plain number", kind="number-malformed"
        )
    return number
