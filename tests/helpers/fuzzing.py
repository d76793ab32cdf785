"""Random damage of bytes, and the memory that reading them takes."""

import gc
import random


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one or several random changes, or other bytes altogether."""
    match rng.randrange(7):
        case 0:
            return rng.randbytes(rng.randrange(4000))
        case 1:
            return data[: rng.randrange(len(data))]
        case 2:
            return data + rng.randbytes(rng.randrange(1, 200))
        case 3:
            place, size = rng.randrange(len(data)), rng.randrange(64)
            return data[:place] + data[place : place + size] * rng.randrange(2, 50) + data[place + size :]
        case 4:
            place = rng.randrange(len(data))
            return (
                data[:place]
                + rng.choice(
                    [b"[" * 5000, b'{"a":' * 3000, b"NaN", b"1e999", b"-1", b"\x1b[2J", b"\x00", b"9" * 6000]
                )
                + data[place:]
            )
        case _:
            copy = bytearray(data)
            for _ in range(rng.randrange(1, 9)):
                copy[rng.randrange(len(copy))] = rng.randrange(256)
            return bytes(copy)


def collect_and_freeze() -> None:
    """Collect garbage, and exclude what is left from later collections: they take the longer the more modules
    the process has imported.
    """
    gc.collect()
    gc.freeze()


def peak_reset() -> int:
    """Return the resident set without garbage, bytes, and start a new measurement of its largest value."""
    collect_and_freeze()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return peak()


def peak() -> int:
    """Return the largest resident set since `peak_reset`, bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
