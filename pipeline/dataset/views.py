"""Views: deskewed or stretched versions of all images, so that the networks of an ensemble make different errors.

Networks trained on different views share fewer errors than networks with different seeds. The idea is from D. Cireşan,
U. Meier and J. Schmidhuber, Multi-column deep neural networks for image classification (2012), who trained networks on
digits normalized to several widths.
"""

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from pipeline.shapes import UInt8

# Whether to deskew, and the horizontal standard deviation of the ink in pixels (None: unchanged).
VIEWS: dict[str, tuple[bool, float | None]] = {
    "plain": (False, None),
    "deskewed": (True, None),
    "even": (False, 4.0),
    "deskewed_even": (True, 4.0),
    "wide": (False, 5.5),
}
MAX_SLANT = 1.0  # pixels to the side per pixel down; a larger slant is removed up to this
MIN_STRETCH, MAX_STRETCH = 0.5, 2.0  # limits of the change of width, so that a 1 stays a 1
BATCH = 4096  # images transformed at a time


def apply_view(images: UInt8[Tensor, "n 28 28"], name: str) -> UInt8[Tensor, "n 28 28"]:
    """Transform images to a view in VIEWS, with bilinear interpolation.

    "plain" returns the images themselves. The other views also move the centre of the ink to the centre of the image.
    """
    if name == "plain":
        return images
    return torch.cat([_apply_view(batch, *VIEWS[name]) for batch in torch.split(images, BATCH)])


def _apply_view(images: UInt8[Tensor, "n 28 28"], deskew: bool, std: float | None) -> UInt8[Tensor, "n 28 28"]:
    ink, side = images.float(), images.shape[-1]
    pixels = torch.arange(side, dtype=torch.float32, device=images.device)
    total = ink.sum((1, 2)).clamp_min(1)
    mean_x, mean_y = (ink.sum(1) @ pixels / total), (ink.sum(2) @ pixels / total)
    x, y = pixels - mean_x[:, None], pixels - mean_y[:, None]
    xx, yy = (ink.sum(1) * x**2).sum(1) / total, (ink.sum(2) * y**2).sum(1) / total
    xy = torch.einsum("nij,ni,nj->n", ink, y, x) / total
    slant = (xy / yy.clamp_min(1e-3)).clamp(-MAX_SLANT, MAX_SLANT) if deskew else torch.zeros_like(total)
    width = (xx - 2 * slant * xy + slant**2 * yy).clamp_min(1e-3).sqrt()
    stretch = (std / width).clamp(MIN_STRETCH, MAX_STRETCH) if std else torch.ones_like(total)
    # From pixels of the view to pixels of the image, in affine_grid's units: the image is 2 wide.
    maps = torch.zeros(images.shape[0], 2, 3, device=images.device)
    maps[:, 0, 0], maps[:, 0, 1], maps[:, 1, 1] = 1 / stretch, slant, 1
    maps[:, 0, 2], maps[:, 1, 2] = ((mean - (side - 1) / 2) * 2 / side for mean in (mean_x, mean_y))
    grid = affine_grid(maps, [images.shape[0], 1, side, side], align_corners=False)
    view = grid_sample(ink[:, None], grid, align_corners=False)[:, 0]
    return view.round().clamp(0, 255).to(torch.uint8)
