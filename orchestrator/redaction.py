r"""Detection and redaction of credentials in everything that is logged, stored or passed on.

`redacted` replaces each secret in a text by ***: the user part of a URI, the value of a name such as
`password` or `X-Amz-Signature` (a parameter of a URI, a key of JSON or YAML, a keyword argument, an
assignment, a header, an option of a command), a token known by its form (`hf_...`, a private key), and the
values of this process's own environment variables with names of secrets. Secrets that are escaped or encoded
for JSON, HTML or a URI are recognised as well. `credentials_in` tests a text for secrets, to refuse it before
anything is spent.

A name is judged by its words (`_is_secret_name`), not by substrings: `max_tokens`, `tokenizer`,
`RAY_AUTH_MODE` and `sort_key` hold no secrets. Quantifiers are possessive or bounded, so that every
expression reads a text once and none is slow on any text.
"""

import base64
import binascii
import html
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote

MARK = "***"
"""Replacement of a secret."""
FEWEST = 6
"""Minimum length of a value of the environment that is removed wherever it appears; shorter ones may be
ordinary words.
"""
_UNBOUNDED = 12
"""Length from which such a value is removed inside other words too."""

# -- names ---------------------------------------------------------------------------------------------------

# Words that mark a name as a secret's, alone or among other words.
_WORDS = re.compile(
    r"(?:password|passwd|passphrase|passwort|pwd|passcode|secret|secrets|token|apikey|credential|credentials|jwt|authorization|cookie"
    r"|accesskey|accountkey|privatekey|secretkey|sessionkey|signature|sas|dsn)$"
)
# The same words joined, as in PGPASSWORD or secretaccesskey.
_JOINED = re.compile(
    r"passw(?:or)?d|passphrase|apikey|api_key|secretkey|(?:secret)?access_?key(?:id)?$|accountkey|privatekey|private_key|sharedkey|signingkey"
    r"|encryptionkey|masterkey|subscriptionkey|(?:auth|access|refresh|bearer|id|csrf|xsrf|session|security|hf|github|api|bot|deploy)token$"
    r"|clientsecret|^pw$|^auth$|authkey|keypairid$"
)
# Last words of names that describe a secret instead of holding it: its place, lifetime or identity.
_ABOUT = re.compile(
    r"(?:file|path|dir|folder|url|uri|endpoint|mode|type|kind|ttl|expires|expiry|expiration|length|len|count|size|env|name|names|id|ids"
    r"|limit|budget|rate|policy|version|method|field|header|prefix|enabled|required|provider|helper|algorithm|index|idx|sock|scope"
    r"|pattern|format|hint|label|embedding)$"
)
# Names of secrets among the parameters of a URI only; elsewhere they are ordinary words.
_IN_URI = frozenset(
    (
        "key",
        "code",
        "auth",
        "sig",
        "policy",
        "pass",
        "pw",
        "otp",
        "pin",
        "assertion",
        "state_token",
        "sid",
        "ticket",
        "hmac",
        "sign",
        "session",
        "sessionid",
        "jsessionid",
    )
)
# Names that are a secret's only before an equals sign, since prose has them too ("signature: (self, x)" is a
# function's).
_ONLY_ASSIGNED = frozenset(("signature", "sas", "dsn", "credential", "credentials", "secrets"))
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[A-Za-z]+")


@lru_cache(4096)
def _words(name: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(_CAMEL.sub(" ", unquote(name)).lower()))


@lru_cache(4096)
def _is_secret_name(name: str) -> bool:
    """Return whether a name is a secret's in any context."""
    words = _words(name[-200:])
    if not words:
        return False
    joined = "".join(words)
    if joined.endswith("accesskeyid"):
        return True
    if _ABOUT.match(words[-1]) and not joined.endswith("keypairid"):
        return False
    return any(map(_WORDS.match, words)) or bool(_JOINED.search(joined))


def _is_parameter_name(name: str) -> bool:
    """Return whether a parameter of a URI is a secret, by its name."""
    words = _words(name[-200:])
    return (
        _is_secret_name(name) or "".join(words) in _IN_URI or "signature" in words or words[-1:] == ("sig",)
    )


# -- values of names -----------------------------------------------------------------------------------------

_KEY = re.compile(
    r"""(?<![\w.-])(-{0,2}+[A-Za-z_][\w.\-]*+(?:%\w\w[\w.\-]*+)*+)(\\*+["']?+\]?+[ \t]{0,8}+(?::=|=>|==?|:)[ \t]{0,8}+)"""  # noqa: E501
)
_OPTION = re.compile(
    r"""(?<![\w.-])--?([A-Za-z][\w\-]*+)(?:[ \t]{1,8}+|\\*+["'],[ \t]{0,8}+(?=\\*+["']))(?=[^\s-])"""
)
_ANNOTATION = re.compile(r"(?:str|bytes|SecretStr|Any|Optional\[\w{1,20}\])(?: ?\| ?None)? ?= ?(?!=)")
_BLOCK = re.compile(r"[|>][+-]?[ \t]{0,8}\n[ \t]{1,40}")
_WRAPPED = re.compile(r"""\[?[ \t]{0,8}(?:SecretStr\()?(?:[bru]|[rb][rb])?(?=\\*["'])""", re.I)
_QUOTED = re.compile(r"""(\\*+)(["'])""")
_BARE = re.compile(r"""(?:(?![,;&][ \t]{0,2}[\w.\-%]++ ?[=:])[^\s"'<>]){1,4096}+""")
_WHOLE = re.compile(r"""[^\s"'<>]++""")
_ORDINARY = re.compile(
    r"(?:none|null|nil|true|false|yes|no|str|int|bytes|bool|float|any|object|optional\[.*|string|expired|invalid|missing|required|wrong|refused|denied"
    r"|unset|empty|not|incorrect|unknown|rejected|changed|mismatch|the|a|an|is|and|or|are|was|must|has|\*+|x{3,}|\.{3}|…|<.*|\[?redacted\]?"
    r"|\$\{?\{?.*|%\w+%|os\.environ.*|os\.getenv.*|getenv.*|environ\b.*|self\..*|args\..*|settings\..*|secrets\..*|\{\{.*|\{\w*\}?)$",
    re.I,
)
_TELLING = re.compile(r"(?=.*[0-9])|(?=.*[A-Z].*[a-z].*[A-Z])|(?=.*[^\w.,:;!?()'\"/-])|(?=.{20})")
_NAMED = re.compile(
    r"""\b(?:name|key)\\*["']?[ \t]{0,4}[:=][ \t]{0,4}\\*["']?([\w.\-]{1,80})\\*["']?,?\s{1,40}(?:- )?\\*["']?$""",  # noqa: E501
    re.I,
)
_SCHEME = re.compile(
    r"(?:bearer|basic|token|apikey|api-key|negotiate|digest|aws4-hmac-sha256|aws|sharedkey|sharedaccesssignature)["
    r" \t]{1,4}",
    re.I,
)
_MANY = re.compile(r"(?:digest|aws4-hmac-sha256)\b", re.I)
_FOLDER = re.compile(r"[\"']?(?:/|~|\$|[A-Za-z]:\\)")


def _values(text: str) -> Iterator[tuple[int, int]]:
    """Yield the (begin, end) of the values of secret names, in order."""
    reached = 0
    for key in _KEY.finditer(text):
        if key.start() < reached:
            continue
        name, separator = key[1].lstrip("-"), key[2]
        quoted_key = separator.lstrip("\\")[:1] in ("'", '"')
        in_uri, assigned = (
            text[max(0, key.start() - 1) : key.start()] in ("?", "&", "#", ";"),
            "=" in separator,
        )
        if not _holds_a_secret(text, key.start(), name, quoted_key, in_uri and assigned):
            continue
        if (
            not (assigned or quoted_key or "-" in name)
            and _words(name)[-1:]
            and _words(name)[-1] in _ONLY_ASSIGNED
        ):
            continue
        if name in ("PWD", "OLDPWD") and _FOLDER.match(text, key.end()):
            continue
        strict = assigned or quoted_key or "-" in name or "_" in name
        if (found := _value(text, key.end(), name, strict)) and found[1] > found[0]:
            yield found
            reached = found[1]


def _holds_a_secret(text: str, start: int, name: str, quoted: bool, parameter: bool) -> bool:
    if parameter:
        return _is_parameter_name(name)
    # {"name": "DB_PASSWORD", "value": ...}
    if name.lower() == "value" and (named := _NAMED.search(text[max(0, start - 160) : start])):
        return _is_secret_name(named[1])
    return _is_secret_name(name) or (quoted and name.lower() == "auth") or name.lower() == "pass"


def _option_values(text: str) -> Iterator[tuple[int, int]]:
    """Yield the (begin, end) of the values of a command's secret options: --password hunter2, also in a list
    of arguments, as messages of `subprocess` have them: ['--password', 'hunter2'].
    """
    for option in _OPTION.finditer(text):
        if _is_secret_name(option[1]) and (found := _value(text, option.end(), option[1], strict=True)):
            yield found


def _value(text: str, start: int, name: str, strict: bool) -> tuple[int, int] | None:
    """Return the (begin, end) of the value at `start`, None if it is no secret. Not strict: after a colon,
    which prose has as well.
    """
    for skipped in (_ANNOTATION, _BLOCK, _WRAPPED):
        if found := skipped.match(text, start):
            start = found.end()
    if opening := _QUOTED.match(text, start):
        begin, end = opening.end(), _closing(text, opening.end(), opening[0], opening[2])
        return None if _ORDINARY.match(text[begin : min(end, begin + 200)]) else (begin, end)
    kind = _words(name)[-1] if _words(name) else ""
    if kind in ("authorization", "cookie"):
        end = _line_end(text, start)
        scheme = _SCHEME.match(text, start, end)
        if kind == "cookie" or (scheme and _MANY.match(text, start)):
            return None if _ORDINARY.match(text[start : min(end, start + 200)]) else (start, end)
        start, strict = (scheme.end(), True) if scheme else (start, strict)
    if (
        text.startswith("{", start)
        and (brace := text.find("}", start, start + 200)) > 0
        and text[brace + 1 : brace + 2] in ("", ";", "\n", " ")
    ):
        return start, brace + 1  # ODBC's quotes
    bare = _BARE.match(text, start)
    if bare is None:
        return None
    end = start + len(bare[0].rstrip(")]},.:;!?&"))
    value = text[start:end]
    if not value or _ORDINARY.match(value) or value == name or value.endswith("("):
        return None
    if kind in ("token", "pass") and re.fullmatch(r"[\d.,:]{1,7}", value):
        return None  # a number of tokens, or a position in a text
    alone = not text[end : min(_line_end(text, end), end + 80)].strip(" \t,;}])\r.\"'")
    if not (strict or alone or _TELLING.match(value)):
        return None
    if bare.end() - start == 4096 and (whole := _WHOLE.match(text, start)):
        end = whole.end()
    return start, end


def _closing(text: str, start: int, opening: str, mark: str) -> int:
    """Return the end of a quoted value: at a mark with the escapes of the opening one, or at the end of the
    line.
    """
    end = _line_end(text, start)
    place = start
    while (place := text.find(mark, place, end)) >= 0:
        slashes = place
        while slashes > start and text[slashes - 1] == "\\":
            slashes -= 1
        if place - slashes <= len(opening) - 1 or (len(opening) == 1 and (place - slashes) % 2 == 0):
            return max(start, place - (len(opening) - 1))
        place += 1
    return end


def _line_end(text: str, start: int) -> int:
    return end if (end := text.find("\n", start)) >= 0 else len(text)


# -- URIs ----------------------------------------------------------------------------------------------------

_SEPARATOR = re.compile(r"(?<=[A-Za-z0-9+.\-]{2}):(?:(?:\\{0,8}+/){2}|\\{2,8}+)")
_AUTHORITY = re.compile(r"""(?:(?!:[/\\]{2})[^\s"<>`])*+""")
_USER = re.compile(r"""[^/\\@\s:'"<>?#,]*+""")
_PORT = re.compile(r"""\d{1,5}+(?=[/\\?#'",;)\]}.]|\s|$)""")
_SPACED = re.compile(
    r"""[^/\\@\s:'"<>,;]{0,64}+:(?!\d{1,5}(?:[/\s'",;)]|$))[^\s@"<>/]{1,64}(?:\s{1,4}[^\s@:/"<>]{1,64}){1,3}@(?=[\w\[])"""
)
_HOST = re.compile(
    r"(?:[A-Za-z0-9][\w\-]{0,62}+\.)+[A-Za-z]{2,}+(?![\w.])|localhost\b|[A-Za-z][\w\-]{0,62}+:\d|\d+\.\d+\.\d+\.\d+"
)
_NAME = re.compile(r"[A-Za-z][\w.\-]{0,62}+(?=[:/\s'\",;)\]]|$)")
_WEB = frozenset(("http", "https", "ws", "wss", "ray", "grpc", "grpcs", "tcp", "udp"))
_NO_USERS = frozenset(
    (
        "http",
        "https",
        "ws",
        "wss",
        "s3",
        "s3a",
        "s3n",
        "gs",
        "gcs",
        "az",
        "abfs",
        "abfss",
        "wasb",
        "wasbs",
        "hf",
    )
)
"""Schemes whose URIs need no user, so that a user part is a key or a token."""
_CONTAINERS = frozenset(("az", "abfs", "abfss", "wasb", "wasbs"))
"""Schemes with a container before the host: abfss://container@account.dfs.core.windows.net/path."""


def _user_part(text: str, separator: re.Match[str], strictly: bool = False) -> tuple[int, bool] | None:
    """Return (end of the user part with its @, whether it is a credential) of the URI whose `://` is
    `separator`; None without a user part.

    A password may hold an unescaped / or ?, so the part reaches to the last @ that can end it; `strictly`: to
    the one that ends it by RFC 3986, if there is one.
    """
    start = separator.end()
    head = text[max(0, separator.start() - 24) : separator.start()]
    scheme = re.split(r"[^A-Za-z0-9]", head)[-1].lower()
    if text[start : start + 1] in ("/", "[", ""):
        return None
    word = _AUTHORITY.match(text, start)
    end = word.end() if word else start
    last = text.rfind("@", start, end)
    user = _USER.match(text, start, end)
    after = user.end() if user else start
    if last < 0:
        spaced = _SPACED.match(text, start)
        return (spaced.end(), True) if spaced else None
    following = text[after : after + 1]
    authority_end = min((place for mark in "/?#" if (place := text.find(mark, start, end)) >= 0), default=end)
    inside = text.rfind("@", start, authority_end)
    if strictly and inside >= 0:
        last = inside
    if following == "@":
        if scheme in _CONTAINERS or text[start:after] == "git" or after == start:
            return None
        return inside + 1, scheme in _NO_USERS
    if following == ":":
        port = _PORT.match(text, after + 1, end)
        if port is None:
            return last + 1, True
        if text[port.end() : port.end() + 1] not in ("/", "\\") or "?" in text[port.end() : last]:
            return None
        if scheme in _WEB and not (text[last - 1] != "/" and _HOST.match(text, last + 1)):
            return None
        return last + 1, True
    if (
        following == "/"
        and scheme in ("http", "https")
        and "." not in text[start:after]
        and text[start:after] != "localhost"
    ):
        opens = text[last - 1] != "/" and _NAME.match(text, last + 1, end) and "?" not in text[after:last]
        return (last + 1, True) if opens else None
    return None


def _without_users(text: str, users: bool) -> str:
    """Replace the user parts of URIs. users: also those of user names alone, which are no credentials."""
    parts, reached = list[str](), 0
    for separator in _SEPARATOR.finditer(text):
        if separator.start() < reached:
            continue
        found = _user_part(text, separator)
        if found and (found[1] or users):
            parts += [text[reached : separator.end()], MARK, "@"]
            reached = found[0]
    return "".join(parts) + text[reached:] if parts else text


# -- forms ---------------------------------------------------------------------------------------------------

_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{20,}+|api_org_[A-Za-z0-9]{20,}+|gh[pousr]_[A-Za-z0-9]{20,}+|github_pat_\w{20,}+|gl(?:pat|dt|rt|ptt|soat|cbt|ft|agent)-[\w\-]{16,}+"
    r"|dapi[0-9a-f]{32}(?:-\d)?|(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])|AIza[\w\-]{35}|ya29\.[\w\-]{20,}+|GOCSPX-[\w\-]{20,}+"
    r"|sk-(?=[\w\-]{0,64}[0-9A-Z])[\w\-]{20,}+|[srp]k_(?:live|test)_\w{10,}+|xox[a-z]-[\w\-]{10,}+|xapp-[\w\-]{10,}+|npm_[A-Za-z0-9]{30,}+"
    r"|pypi-(?=[\w\-]{0,64}[A-Z])[\w\-]{32,}+|eyJ[\w\-]{8,}+\.[\w\-]{8,}+(?:\.[\w\-]*+)?|hvs\.[\w\-]{20,}+|SG\.[\w\-]{16,}+\.[\w\-]{16,}+"
    r"|dckr_(?:pat|oat)_[\w\-]{20,}+|nvapi-[\w\-]{20,}+|gsk_[A-Za-z0-9]{20,}+|r8_[A-Za-z0-9]{20,}+|tskey-[\w\-]{12,}+|dop_v1_[0-9a-f]{32,}+"
    r"|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|lin_api_\w{20,}+|ATATT3[\w\-=]{20,}+|AGE-SECRET-KEY-1[A-Z0-9]{20,}+|wandb_v1_\w{20,}+"
    r"|\d{8,10}:AA[\w\-]{33}(?![\w\-]))"
)
_PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z0-9 ]{0,40}?PRIVATE KEY(?: BLOCK)?-----)(?:(?!-----)[\s\S])*+(-----END [A-Z0-9"
    r" ]{0,60}-----)?"
)
_BEARER = re.compile(r"\b(bearer|basic)([ \t]{1,4})([\w.~+/=\-]{8,}+)", re.I)
_HOOK = re.compile(
    r"(hooks\.slack\.com/(?:services|workflows|triggers)/|discord(?:app)?\.com/api/webhooks/|api\.telegram\.org/bot|webhook\.office\.com/)[^\s\"'<>*]++"
)
_DATABASE = re.compile(
    r"""(?<![\w.@/+%\-:])[A-Za-z_][\w.+\-]{0,63}+:([^\s@"'<>]{1,128}+)@(?=([A-Za-z0-9][\w.\-]{0,100}+)(:\d{2,5}(?!\w))?)"""
)
_MAIL = frozenset(
    (
        "mailto",
        "from",
        "to",
        "cc",
        "bcc",
        "author",
        "email",
        "mail",
        "contact",
        "sip",
        "sips",
        "xmpp",
        "acct",
        "by",
        "owner",
        "git",
    )
)
_DIGEST = re.compile(r"(?:sha\d{1,3}|md5|blake\w{1,4})$")
_XML = re.compile(r"<([A-Za-z_][\w.\-]{0,80}+)>([^<\s][^<]{0,4096}+)(?=</)")
_PAIR = re.compile(r"""(\(\\*["']([A-Za-z_][\w.\-]{0,80}+)\\*["'], ?[bru]?\\*["'])([^"'\n\\]{1,4096}+)""")
_SPOKEN = (
    re.compile(r"""(\bsshpass\s{1,2}-p\s{0,2})(?![\s*])(\S++)"""),
    # a URI without its scheme
    re.compile(r"""((?<![:\w/\\])//[\w.\-]{1,64}+:)(?!\*)([^\s@/"']{1,128}+)(?=@[\w\[])"""),
    re.compile(
        r"""(\b(?:(?:password|passphrase|token|secret)\s(?:is|was)|(?:api|access|secret)\skey(?:\s(?:is|was)|:))\s["']?)"""
        r"""(?=[^\s"']{0,64}\d)(?=[^\s"']{0,64}[A-Za-z])([^\s"',;]{6,}+)""",
        re.I,
    ),  # sentences
    re.compile(r"""(\blogin\s{1,4}\S{1,80}\s{1,4}password\s{1,4})(?!\*)(\S++)"""),  # .netrc
    re.compile(r"""((?:\bpassword|\bidentified\s{1,2}by)\s{1,4}')([^'\n]{1,256}+)""", re.I),  # SQL
    # curl
    re.compile(r"""((?<![\w.\-])(?:-u|--user)[ =]{1,2}["']?[\w.@\-]{1,64}:)(?!\*)([^\s"']{1,256}+)"""),
    # .pgpass
    re.compile(
        r"""((?<![\w.\-/])[\w.\-]{1,80}+:\d{4,5}:[A-Za-z_*][\w\-*]{0,63}+:[\w\-]{1,64}+:)(?![\s*])([^\s:]{4,256}+)"""
    ),
)


def _bearer(found: re.Match[str]) -> str:
    scheme, gap, value = found.groups()
    if scheme.lower() == "basic":
        try:
            secret = b":" in base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            secret = False
    else:
        secret = any(letter.isdigit() for letter in value) or any(letter.isupper() for letter in value[1:])
    return f"{scheme}{gap}{MARK}" if secret else found[0]


def _database(found: re.Match[str]) -> str:
    """Redact user:password@host without a scheme."""
    user, password, host = found[0].partition(":")[0].lower(), found[1], found[2]
    mark = f"{found[0].partition(':')[0]}:{MARK}@"
    if _DIGEST.match(host) or password.startswith(("//", "\\")) or password.endswith(MARK):
        return found[0]
    if found[3]:  # with a port
        return mark
    if (
        user in _MAIL
        or "/" in password
        or re.fullmatch(r"[\d.eE+\-]+", password)
        or not re.match(r"[A-Za-z]|\d+\.\d+\.\d+\.\d+$", host)
    ):
        return found[0]
    return mark if re.search(r"[^a-z.\-_]", password) else found[0]


def _spans(text: str, find: Callable[[str], Iterator[tuple[int, int]]]) -> str:
    parts, reached = list[str](), 0
    for begin, end in find(text):
        if begin >= reached:
            parts += [text[reached:begin], MARK]
            reached = end
    return "".join(parts) + text[reached:] if parts else text


def _plain(text: str, users: bool) -> str:
    """Redact the secrets that are not encoded."""
    text = _PRIVATE_KEY.sub(lambda key: f"{key[1]}{MARK}{key[2] or ''}", text)
    text = _HOOK.sub(rf"\1{MARK}", _TOKENS.sub(MARK, text))
    if "://" in text or ":\\" in text:
        text = _without_users(text, users)
    if ":" in text or "=" in text:
        text = _spans(text, _values)
    if "-" in text:
        text = _spans(text, _option_values)
    if "@" in text:
        text = _DATABASE.sub(_database, text)
    if "<" in text:
        text = _XML.sub(lambda found: f"<{found[1]}>{MARK}" if _is_secret_name(found[1]) else found[0], text)
    if "(" in text:
        text = _PAIR.sub(lambda found: f"{found[1]}{MARK}" if _is_secret_name(found[2]) else found[0], text)
    for spoken in _SPOKEN:
        text = spoken.sub(rf"\1{MARK}", text)
    return _BEARER.sub(_bearer, text)


# -- the environment -----------------------------------------------------------------------------------------

_URI_PASSWORD = re.compile(r"[A-Za-z][\w+.\-]{1,40}://[^/@\s:]{0,64}:([^@/\s]{1,256})@")


def _of_environment(environment: Mapping[str, str]) -> list[str]:
    """Return its secret variables and its URIs' passwords, plain and as encoded in headers, JSON, HTML and
    URIs; longest first.
    """
    values = dict[str, None]()
    for name, value in environment.items():
        if _is_secret_name(name) and name not in ("PWD", "OLDPWD"):
            values[value.strip()] = None
            user = environment.get(re.sub("(?i)(password|passwd|token)$", "USERNAME", name), "")
            values[base64.b64encode(f"{user}:{value}".encode()).decode()] = None
        elif "://" in value and (password := _URI_PASSWORD.match(value)):
            values[password[1]] = values[unquote(password[1])] = None
    found = {value for value in values if len(value) >= FEWEST and not _ORDINARY.match(value)}
    for value in list(found):
        found |= {quote(value, safe=""), quote_plus(value), html.escape(value), json.dumps(value)[1:-1]}
    return sorted(found, key=lambda value: (-len(value), value))


@lru_cache(8)
def _pattern(values: tuple[str, ...]) -> re.Pattern[str] | None:
    spelled = (
        (
            re.escape(value)
            if len(value) >= _UNBOUNDED
            else rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])"
        )
        for value in values
    )
    return re.compile("|".join(spelled)) if values else None


# -- public functions ----------------------------------------------------------------------------------------

_ENCODED = re.compile(r"%(?:25)*+(?:3[aAdDfF]|40|2[fF6]|5[cC])")
_ENTITY = re.compile(r"&(?:amp|quot|apos|colon|sol|commat|equals|#\d{2,3}|#x[0-9A-Fa-f]{2});")
_UNICODE = re.compile(r"\\u00([0-7][0-9A-Fa-f])")


def redact(text: object) -> str:
    """Return a text with *** for every secret in it, and for user names before the host of a URI."""
    found = str(text)
    pattern = _pattern(tuple(_of_environment(os.environ)))
    return _redacted(pattern.sub(MARK, found) if pattern else found, users=True)


def redacting(say: Callable[[str], None]) -> Callable[[str], None]:
    """Return a `say` that redacts every line first."""
    return lambda line: say(redact(line))


def redacted_in(value: Any) -> Any:
    """Redact every text in nested dicts, lists and tuples; text values of keys that name secrets
    become ***.
    """
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        secret = {
            key: isinstance(part, str) and part != "" and _is_secret_name(str(key))
            for key, part in value.items()
        }
        return {
            redact(key) if isinstance(key, str) else key: MARK if secret[key] else redacted_in(part)
            for key, part in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redacted_in(part) for part in value]
    return value


def credentials_in(text: str) -> bool:
    """Return whether a text holds a password, a token or a signed key; a user name alone is none."""
    pattern = _pattern(tuple(_of_environment(os.environ)))
    return bool(pattern and pattern.search(text)) or _redacted(text, users=False) != text


def fields_with_credentials(value: Any, field: str = "", seen: set[int] | None = None) -> Iterator[str]:
    """Yield the dotted names of fields with credentials in parsed YAML or JSON; a name that holds credentials
    is redacted.
    """
    seen = set() if seen is None else seen
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        if id(value) in seen:
            return  # by YAML's aliases, a value can occur several times, and within itself
        seen.add(id(value))
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, part in parts:
            place = f"{field}.{redact(str(name))}".lstrip(".")
            bare = (
                isinstance(part, (str, bytes, int, float))
                and not isinstance(part, bool)
                and isinstance(name, str)
            )
            if (isinstance(name, str) and credentials_in(name)) or (
                bare and _is_secret_name(str(name)) and str(part) not in ("", "none", MARK)
            ):
                yield place
            else:
                yield from fields_with_credentials(part, place, seen)
    elif isinstance(value, (str, bytes)) and credentials_in(
        value.decode(errors="replace") if isinstance(value, bytes) else value
    ):
        yield field


def strip_credentials(uri: str) -> str:
    """Return a URI without user, password and query: safe to write down, and still valid as an address."""
    text = html.unescape(uri) if _ENTITY.search(uri) else uri
    if (separator := _SEPARATOR.search(text)) and (
        found := _user_part(text, separator, strictly=text.lower().startswith(("http:", "https:")))
    ):
        text = text[: separator.end()] + text[found[0] :]
    return _redacted(text.partition("?")[0], users=True).replace(f"{MARK}@", "")


def _redacted(text: str, users: bool) -> str:
    """Redact a text, including secrets encoded for a URI, HTML or JSON; other text is unchanged."""
    text = _plain(text, users)
    if _ENCODED.search(text):
        text = _WHOLE.sub(lambda word: _decoded(word[0], users), text)
    if _ENTITY.search(text):
        text = "\n".join(_of_html(line, users) if "&" in line else line for line in text.split("\n"))
    if _UNICODE.search(text):
        decoded = _UNICODE.sub(lambda letter: chr(int(letter[1], 16)), text)
        plain = _plain(decoded, users)
        text = plain if plain != decoded else text
    return text


def _decoded(word: str, users: bool) -> str:
    if "%" not in word:
        return word
    decoded = word
    for _ in range(3):
        decoded = unquote(decoded)
    plain = _plain(decoded, users)
    return plain if plain != decoded else word


def _of_html(line: str, users: bool) -> str:
    decoded = html.unescape(line)
    plain = _plain(decoded, users)
    return html.escape(plain) if plain != decoded else line
