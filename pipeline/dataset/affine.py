"""Random affine augmentation of image batches on the training device."""

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from pipeline.recipes.settings import Affine
from pipeline.shapes import Float, Float32


def random_affine(images: Float[Tensor, "n 1 28 28"], settings: Affine) -> Float[Tensor, "n 1 28 28"]:
    """Apply an affine map, drawn for each image within the limits in `settings`; bilinear, 0 outside the image.

    Draws from torch's default generator of the images' device. Returns the batch itself if all limits are 0.
    """
    if settings == Affine():
        return images
    n, (height, width) = len(images), images.shape[-2:]
    draws = torch.rand(5, n, device=images.device) * 2 - 1
    angle = draws[0] * math.radians(settings.rotation)
    zoom = 1 / (1 + draws[1] * settings.zoom)
    shear = torch.tan(draws[2] * math.radians(settings.shear))
    right, down = draws[3:] * (settings.shift * 2 / width)  # in grid_sample's units: the image is 2 wide
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    maps = torch.stack([cos, shear * cos - sin, -right, sin, shear * sin + cos, -down], 1)
    if settings.flip:
        maps[:, :3] *= torch.where(torch.rand(n, 1, device=images.device) < 0.5, -1, 1)
    maps = maps.view(2 * n, 3)
    # The same as affine_grid, but one matrix product for all images: half the time.
    y, x = torch.meshgrid(*(_pixel_centres(size, images.device) for size in (height, width)), indexing="ij")
    grid = (maps @ torch.stack([x, y, torch.ones_like(x)]).view(3, -1)).view(n, 2, height, width)
    return grid_sample(images, grid.permute(0, 2, 3, 1), align_corners=False)


def _pixel_centres(size: int, device: torch.device) -> Float32[Tensor, " size"]:
    """Coordinates from -1 to 1 of the centres of `size` pixels."""
    return (torch.arange(size, device=device) * 2 + 1) / size - 1
