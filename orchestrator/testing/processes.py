"""Processes that Ray started below this one."""

import psutil


def titled_processes(title: str) -> list[psutil.Process]:
    """Return the descendants of this process whose command line contains `title`, such as
    "ray::RolloutWorker".
    """
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if title in " ".join(process.cmdline())
    ]
