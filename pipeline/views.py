"""Views: digits in forms of their own, so that the networks of an ensemble err differently.

Networks that see different views share fewer mistakes than networks of different seeds. The idea is of D. Cireşan,
U. Meier and J. Schmidhuber, Multi-column deep neural networks for image classification (2012), whose columns were
trained on digits of several widths.
"""

import torch
from torch.nn.functional import affine_grid, grid_sample

# Whether a slant is taken out, and the standard deviation in pixels that the ink gets to either side; None: as it is.
VIEWS = {
    "plain": (False, None),
    "deskewed": (True, None),
    "even": (False, 4.0),
    "deskewed_even": (True, 4.0),
    "wide": (False, 5.5),
}
STEEPEST = 1.0  # pixels to the side for each pixel down: more is not taken out
FACTORS = (0.5, 2.0)  # no digit is made narrower or wider than this; a 1 stays a 1
PART = 4096  # images at a time


def view(images, name):
    """Images (n, 28, 28), uint8, of a view, bilinear; those that are plain are given back.

    Other views also bring the centre of the ink to the centre of the image.
    """
    if name == "plain":
        return images
    return torch.cat([_view(part, *VIEWS[name]) for part in images.split(PART)])


def _view(images, deskew, spread):
    ink, side = images.float(), images.shape[-1]
    place = torch.arange(side, dtype=torch.float32, device=images.device)
    total = ink.sum((1, 2)).clamp_min(1)
    right, down = (ink.sum(1) @ place / total), (ink.sum(2) @ place / total)
    x, y = place - right[:, None], place - down[:, None]
    xx, yy = (ink.sum(1) * x**2).sum(1) / total, (ink.sum(2) * y**2).sum(1) / total
    xy = torch.einsum("nij,ni,nj->n", ink, y, x) / total
    slant = (xy / yy.clamp_min(1e-3)).clamp(-STEEPEST, STEEPEST) if deskew else torch.zeros_like(total)
    width = (xx - 2 * slant * xy + slant**2 * yy).clamp_min(1e-3).sqrt()
    factor = (spread / width).clamp(*FACTORS) if spread else torch.ones_like(total)
    # Where each pixel of the view is taken from, in affine_grid's units: the image is 2 wide.
    maps = torch.zeros(len(images), 2, 3, device=images.device)
    maps[:, 0, 0], maps[:, 0, 1], maps[:, 1, 1] = 1 / factor, slant, 1
    maps[:, 0, 2], maps[:, 1, 2] = ((centre - (side - 1) / 2) * 2 / side for centre in (right, down))
    grid = affine_grid(maps, (len(images), 1, side, side), align_corners=False)
    made = grid_sample(ink[:, None], grid, align_corners=False)[:, 0]
    return made.round().clamp(0, 255).to(torch.uint8)
