"""How far generated pictures are from real ones.

Three measures, none of which needs a network's weights:

- PSNR in dB and SSIM (Wang et al. 2004) as torchmetrics computes them: what papers on video generation report. Higher is better.
- A perceptual distance from 0 (no visible difference) to 1: FLIP (Andersson et al. 2020, "A Difference Evaluator for Alternating Images",
  HPG 2020, https://research.nvidia.com/publication/2020-07_FLIP) by its authors' package. It predicts the difference a person sees who flips
  between two rendered pictures, from contrast sensitivity, colour and edges, and was made for renderings, as a simulator's pictures are.
  LPIPS and DISTS, the usual ones, need weights from the net; HaarPSI or MDSI (`piq`) need torchvision, which must fit torch's build.

Shapes: N pictures; H W pixels.
"""

from dataclasses import dataclass, fields
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

MEASURES = tuple(f"{package} {version(package)}" for package in ("torchmetrics", "flip-evaluator"))
"""What computes them: numbers of another release are not compared."""
SHOWN = 256
"""Pixels: pictures are judged as if shown so high, however many pixels they have, at FLIP's own distance from the screen."""
PIXELS_PER_DEGREE = 67.0
"""Of a screen 0.7 m away, 0.7 m wide, of 3840 pixels: FLIP's default."""
WHOLE_GREYS = 1 / 12
"""Mean squared error of rounding to whole grey levels: pictures that agree to it have the highest PSNR, 58.9 dB, instead of an infinite one."""


@dataclass(frozen=True)
class Fidelity:
    """Means over pictures."""

    psnr: float
    """dB."""
    ssim: float
    distance: float
    """FLIP's mean over a picture: 0 to 1, lower is better."""

    @classmethod
    def mean(cls, several: "list[Fidelity]") -> "Fidelity":
        return cls(*(float(np.mean([getattr(one, field.name) for one in several])) for field in fields(cls)))


def fidelity(shown_NHW3: npt.NDArray[np.uint8], real_NHW3: npt.NDArray[np.uint8]) -> Fidelity:
    """Of pictures beside the real ones, uint8 RGB; every picture counts the same. They must have at least 11 pixels a side."""
    import torch
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    shown, real = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() for pictures in (shown_NHW3, real_NHW3))
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
