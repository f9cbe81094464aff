"""Which reader a file needs: by its extension if it has one, else by its media type."""

from typing import Final

_TEXT: Final = """
    txt md mdx markdown html htm xhtml xml svg log ini cfg conf toml env vtt srt css scss less tex rst adoc org
    py pyi js jsx mjs cjs ts tsx vue java kt kts scala groovy c h cc cpp cxx hpp hh cs go rs rb php pl pm lua r jl
    swift m mm dart ex exs erl hs clj ml fs fsx vb pas asm sh bash zsh fish ps1 bat cmd sql graphql gql proto thrift
    tf hcl dockerfile makefile cmake gradle gitignore editorconfig diff patch ipynb jsonl ndjson tsv
""".split()

_BY_EXTENSION: Final[dict[str, str]] = {
    **dict.fromkeys(_TEXT, "text"),
    "json": "json",
    "yaml": "yaml",
    "yml": "yaml",
    "csv": "csv",
    "properties": "properties",
    "eml": "eml",
    "pdf": "pdf",
    "docx": "docx",
    "xlsx": "xlsx",
    "pptx": "pptx",
    "epub": "epub",
    "odt": "odt",
    "ods": "ods",
    "odp": "odp",
}

_OFFICE: Final = "application/vnd.openxmlformats-officedocument."
_OPEN: Final = "application/vnd.oasis.opendocument."
_BY_MEDIA_TYPE: Final[dict[str, str]] = {
    "application/json": "json",
    **dict.fromkeys(("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"), "yaml"),
    **dict.fromkeys(("text/csv", "application/csv"), "csv"),
    "text/vtt": "vtt",
    "text/properties": "properties",
    "text/x-java-properties": "properties",
    "message/rfc822": "eml",
    "application/pdf": "pdf",
    f"{_OFFICE}wordprocessingml.document": "docx",
    f"{_OFFICE}spreadsheetml.sheet": "xlsx",
    f"{_OFFICE}presentationml.presentation": "pptx",
    "application/epub+zip": "epub",
    f"{_OPEN}text": "odt",
    f"{_OPEN}spreadsheet": "ods",
    f"{_OPEN}presentation": "odp",
    **dict.fromkeys(("application/xml", "application/xhtml+xml", "application/javascript", "application/sql"), "text"),
}

EXTENSIONS: Final = {media_type: f".{kind}" for media_type, kind in _BY_MEDIA_TYPE.items() if kind != "text"}
"""Media type -> extension of the files that readers read."""

_INSTEAD: Final = {
    "doc": "docx",
    "ppt": "pptx",
    "xls": "xlsx",
    "rtf": "docx",
    "msg": "eml",
}


_ARCHIVED: Final = frozenset({"pdf", "docx", "xlsx", "pptx", "epub", "odt", "ods", "odp"})


class UnsupportedKind(Exception):
    """No reader for this extension or media type. The text says what can be read."""


def kind_of(extension: str, media_type: str) -> str:
    """`text`, `json`, `pdf`, ...; `extension` with or without its dot, either may be empty. Raises UnsupportedKind."""
    extension = extension.lower().lstrip(".")
    media_type = media_type.partition(";")[0].strip().lower()
    if extension:
        found, seen = _BY_EXTENSION.get(extension), f"the extension .{extension[:20]}"
    else:
        found = _BY_MEDIA_TYPE.get(media_type) or ("text" if media_type.startswith("text/") else None)
        seen = f"the media type {media_type[:80]}" if media_type else "no extension and no media type"
    if found is not None:
        return found
    if extension in _INSTEAD:
        raise UnsupportedKind(f"{seen} has no reader here; save it as .{_INSTEAD[extension]}")
    formats = "plain text, json, yaml, csv, properties, eml, pdf, docx, xlsx, pptx, epub, odt, ods, odp"
    raise UnsupportedKind(f"{seen} has no reader here; there are readers for {formats}")


def extension_of_text(extension: str) -> str:
    """The extension of a file that is given as text: what its name promises, unless text cannot be that."""
    try:
        return "txt" if kind_of(extension, "text/plain") in _ARCHIVED else extension
    except UnsupportedKind:
        return "txt"
