"""Distances between generated and real pictures.

Three measures, none of which needs a network's weights:

- PSNR in dB and SSIM (Wang et al. 2004) as torchmetrics computes them: what papers on video generation
  report. Higher is better.
- A perceptual distance from 0 (no visible difference) to 1: FLIP (Andersson et al. 2020, "A Difference
  Evaluator for Alternating Images", HPG 2020, https://research.nvidia.com/publication/2020-07_FLIP) by its
  authors' package. It predicts the difference that a viewer perceives when flipping between two rendered
  pictures, from contrast sensitivity, colour and edges. It was made for renderings, such as a simulator's.
  The common alternatives LPIPS and DISTS need downloaded weights; HaarPSI and MDSI (`piq`) need a torchvision
  that fits torch's build.

Shapes: N pictures; H, W pixels.
"""

from dataclasses import dataclass, fields
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

MEASURES = tuple(f"{package} {version(package)}" for package in ("torchmetrics", "flip-evaluator"))
"""Packages that compute the measures, with versions: numbers of different releases are not compared."""
SHOWN = 256
"""Displayed height of every picture in pixels, whatever its resolution, at FLIP's default viewing
distance.
"""
PIXELS_PER_DEGREE = 67.0
"""FLIP's default: a screen of 3840 pixels, 0.7 m wide, at a distance of 0.7 m."""
WHOLE_GREYS = 1 / 12
"""Mean squared error of rounding to whole grey levels; it caps PSNR at 58.9 dB, which is infinite for equal
pictures.
"""


@dataclass(frozen=True)
class Fidelity:
    """Means of the measures over pictures."""

    psnr: float
    """Peak signal-to-noise ratio in dB; higher is better."""
    ssim: float
    distance: float
    """FLIP's mean over a picture, 0 to 1; lower is better."""

    @classmethod
    def mean(cls, several: "list[Fidelity]") -> "Fidelity":
        """Return the unweighted mean of several."""
        return cls(*(float(np.mean([getattr(one, field.name) for one in several])) for field in fields(cls)))


def fidelity(shown_NHW3: npt.NDArray[np.uint8], real_NHW3: npt.NDArray[np.uint8]) -> Fidelity:
    """Compare pictures with the real ones, uint8 RGB, at least 11 pixels a side; every picture has the same
    weight.
    """
    import torch
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    shown, real = (
        torch.from_numpy(pictures).permute(0, 3, 1, 2).float() for pictures in (shown_NHW3, real_NHW3)
    )
    psnr = peak_signal_noise_ratio(shown, real, data_range=255.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(shown, real, data_range=255.0)
    assert isinstance(ssim, torch.Tensor)
    best = 10 * np.log10(255**2 / WHOLE_GREYS)
    distances = [_flip(one, other) for one, other in zip(shown_NHW3, real_NHW3, strict=True)]
    return Fidelity(float(psnr.clamp(max=best).mean()), float(ssim), float(np.mean(distances)))


def _flip(shown_HW3: npt.NDArray[np.uint8], real_HW3: npt.NDArray[np.uint8]) -> float:
    import flip_evaluator

    per_degree = PIXELS_PER_DEGREE * len(real_HW3) / SHOWN
    real, shown = (picture.astype(np.float32) / 255 for picture in (real_HW3, shown_HW3))
    _, mean, _ = flip_evaluator.evaluate(real, shown, "LDR", applyMagma=False, parameters={"ppd": per_degree})
    return float(mean)
