"""Files of a source: which a folder holds, which are refused, and how errors of reading are described."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from policy.errors import DemoscaleError

HDF5_SUFFIXES = (".hdf5", ".h5")
MCAP_SUFFIXES = (".mcap",)
FILM_SUFFIXES = (
    *(".mp4", ".mov", ".m4v", ".mkv", ".avi", ".webm"),
    *(".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".3gp", ".flv", ".ogv", ".gif"),
)
POINTER = b"version https://git-lfs"
"""First bytes of the file that git-LFS leaves in place of one that was not downloaded."""


class SourceError(DemoscaleError):
    """Error of a source, in one sentence: which file, field or episode, what is wrong, and the fix."""

    exit_code = 2


def cause(error: BaseException) -> str:
    """Return the description of an error, as part of a sentence."""
    said = " ".join(str(error).split())
    return (
        said
        if isinstance(error, (SourceError, ValueError)) and said
        else f"it cannot be read ({type(error).__name__}{f': {said}' * bool(said)})"
    )


def visible(root: Path, suffixes: Sequence[str], depth: int = 8) -> list[Path]:
    """Return the files below a folder that end in one of the suffixes (in capitals too), sorted, without
    hidden files and folders.

    A link to a file or folder that is listed under its own name is passed over, so that no recording is
    listed twice and no link leads in a circle.
    """
    found: dict[Path, Path] = {}
    folders: set[Path] = set()
    links: list[tuple[Path, int]] = []
    begin = root.resolve()

    def collect(path: Path, depth: int) -> None:
        if not path.exists():  # a broken or circular link
            return
        real = path.resolve()
        if path.is_dir():
            if depth and real not in folders:
                folders.add(real)
                for inner in sorted(path.iterdir()):
                    if inner.is_symlink() and not inner.name.startswith("."):
                        links.append((inner, depth - 1))
                    elif not inner.name.startswith("."):
                        collect(inner, depth - 1)
        elif path.suffix.lower() in suffixes and path.is_file():
            # files outside may be shared: Hugging Face's cache keeps equal files once
            found.setdefault(real if real.is_relative_to(begin) else path, path)

    collect(root, depth)
    for link, rest in links:  # grows while folders that links lead to are read
        collect(link, rest)
    return sorted(found.values())


def refuse_pointer(path: Path) -> None:
    """Raise SourceError for a file whose content git-LFS did not download."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise SourceError(
                f"{path}: it is a git-LFS pointer, not the file itself; run `git lfs pull` where it was"
                " cloned"
            )


def contained(root: Path, relative: str) -> Path:
    """Return the path of a file that a data set names. Raises SourceError if it leads out of the data set's
    folder.

    Links into `blobs` next to `snapshots` are allowed: Hugging Face keeps a snapshot's files so.
    """
    named = PurePosixPath(relative)
    if named.is_absolute() or ".." in named.parts:
        raise SourceError(f"{root}: it names the file {relative}, which is not inside its folder")
    path = root / named
    allowed = [
        root.resolve(),
        *([root.resolve().parent.parent / "blobs"] if root.resolve().parent.name == "snapshots" else []),
    ]
    if path.exists() and not any(path.resolve().is_relative_to(folder) for folder in allowed):
        raise SourceError(f"{root}: {relative} is a link to a file outside its folder")
    return path
