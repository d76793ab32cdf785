"""Policy servers of other projects, spoken to in their own protocols: openpi, vla-eval and GR00T.

    policy = foreign_policy("openpi://127.0.0.1:8000", contract)

Such a server states no contract, so the caller does; a `Layout` says how it names pictures, state and
instruction. None of them takes a noise seed: where the policy draws noise, two scores of it differ.

Needs the packages of an extra: `pip install 'demoscale[openpi]'` (also for vla-eval) or `[groot]`. Nothing is
pickled; messages are bounded, and arrays in them are read as plain numbers only.
"""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from policy.foreign.layout import MOST_BYTES, Layout
from policy.http_protocol import RemoteError, checked_contract
from policy.interface import Contract, Policy
from policy.untrusted import printable, read_json


def _openpi(address: str, contract: Contract, layout: Layout, execute: int) -> Policy:
    from policy.foreign.openpi import OpenpiPolicy

    return OpenpiPolicy(address, contract, layout, execute)


def _vla_eval(address: str, contract: Contract, layout: Layout, execute: int) -> Policy:
    from policy.foreign.vla_eval import VlaEvalPolicy

    return VlaEvalPolicy(address, contract, layout, execute)


def _groot(address: str, contract: Contract, layout: Layout, execute: int) -> Policy:
    from policy.foreign.groot import GrootPolicy

    return GrootPolicy(address, contract, layout, execute)


_CLIENTS: dict[str, Callable[[str, Contract, Layout, int], Policy]] = {
    "openpi": _openpi,
    "vla-eval": _vla_eval,
    "groot": _groot,
}
SCHEMES = tuple(_CLIENTS)
"""Schemes of the URLs of foreign servers."""


def is_foreign(url: str) -> bool:
    """Return whether a URL is that of a server of another project."""
    return url.partition("://")[0] in SCHEMES


def read_contract(path: Path) -> Contract:
    """Return the contract in a JSON file, the fields of `policy.interface.Contract`. Raises RemoteError if it
    cannot be read or is not valid.
    """
    try:
        with path.open("rb") as file:
            return checked_contract(read_json(file.read(MOST_BYTES + 1), MOST_BYTES))
    except (OSError, ValueError, TypeError) as error:
        raise RemoteError(f"the contract {path} is not valid: {printable(str(error))}") from None


def foreign_policy(url: str, contract: Contract, layout: Layout | None = None, execute: int = 0) -> Policy:
    """Return the client of a server of another project; its first query opens the connection.

    url: SCHEME://HOST:PORT. layout: names of what is sent; None: the protocol's usual one. execute: actions
    of a chunk that are executed before the next observation; 0: all of them. Raises RemoteError if the
    address is not valid, the contract lacks what the layout sends, or a package is missing.
    """
    scheme = url.partition("://")[0]
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname and parts.port) and not (parts.path.strip("/") or parts.query)
    except ValueError:  # an invalid port, unbalanced brackets
        valid = False
    if scheme not in _CLIENTS or not valid:
        raise RemoteError(
            f"{printable(url)} is not the address of a policy server: it must look like"
            f" {scheme if scheme in _CLIENTS else 'openpi'}://127.0.0.1:8000"
        )
    layout = layout or Layout.named(scheme, contract)
    layout.check(contract)
    try:
        return _CLIENTS[scheme](parts.netloc.rpartition("@")[2], contract, layout, execute)
    except ModuleNotFoundError as error:
        extra = "groot" if scheme == "groot" else "openpi"
        raise RemoteError(
            f"{scheme}:// needs the package {error.name}, which is not installed; pip install"
            f" 'demoscale[{extra}]' installs it"
        ) from None
