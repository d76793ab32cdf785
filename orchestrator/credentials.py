"""Credentials in addresses: which must not be passed on, and how an address, or a text with some, is told without them."""

import re

# A password before the host; a user name or a token before a web server's; a secret among the parameters.
_PASSWORD = re.compile(r"(?<=://)[^@/\s]*:(?!\d+/)\S*@|(?<=http://)[^/\s]+@|(?<=https://)[^/\s]+@", re.I)
_USER = re.compile(r"(?<=://)[^/\s]+@")
_PARAMETER = re.compile(r"([?&][^=&\s]*(?:passw|pwd|secret|token|signature|credential|apikey|api_key|access_?key|\bsig\b)[^=&\s]*=)[^&\s]*", re.I)


def shown(uri: str) -> str:
    """A URI without its user, password and query: the form that may be written down, and still leads there."""
    return _USER.sub("", _PASSWORD.sub("", uri)).partition("?")[0]


def credentials_in(text: str) -> bool:
    """Whether a URI in it carries a password, a token or a signed key."""
    return bool(_PASSWORD.search(text) or _PARAMETER.search(text))


def without_credentials(text: object) -> str:
    """Whatever was said, fit to be passed on: *** for what stands before the host of a URI in it, a user name too, and for secret parameters."""
    return _PARAMETER.sub(r"\1***", _USER.sub("***@", _PASSWORD.sub("***@", str(text))))
