"""Contact sheet: labelled pictures side by side, for visual inspection."""

import io
import math

import numpy as np
import numpy.typing as npt


def contact_sheet(pictures: list[tuple[str, npt.NDArray[np.uint8]]], columns: int = 6) -> bytes:
    """Return a PNG of labelled (H, W, 3) pictures, row by row; their sizes may differ."""
    from matplotlib.figure import Figure

    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows), dpi=100, layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flat
    for place in places:
        place.axis("off")
    for place, (label, picture) in zip(figure.axes, pictures, strict=False):
        place.imshow(picture, interpolation="nearest")
        place.set_title(label, fontsize=7, wrap=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
