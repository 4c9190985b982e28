"""Strings in Nix's language. Source: Nix manual, "String literals"."""

_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def quote(text: str) -> str:
    """Quote a string, or the name of an attribute."""
    return '"' + text.translate(_ESCAPES).replace("${", "\\${") + '"'
