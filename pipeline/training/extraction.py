"""Features of images: the outputs of a frozen extractor."""

import numpy as np
import torch
from torch import Tensor

from pipeline.dataset.views import apply_view
from pipeline.nn.inference import as_input, choose_batch_size
from pipeline.nn.precision import autocast, choose_memory_format, library_settings
from pipeline.nn.transfer import TransferNetwork
from pipeline.shapes import Float16, UInt8


@torch.inference_mode()
def extract_features(
    network: TransferNetwork, images: UInt8[Tensor, "n 28 28"], view: str, device: str, precision: str
) -> Float16[np.ndarray, "n ..."]:
    """The outputs of a network's frozen layers.

    images: without the view; on the device, as is the network.
    Raises FloatingPointError if a feature exceeds the range of fp16.
    """
    extractor, batch_size = network.extractor.eval(), choose_batch_size(network, device)
    memory_format = choose_memory_format(device, precision)
    outputs = []
    with library_settings(device), autocast(device, precision):
        for batch in torch.split(apply_view(images, view), batch_size):
            outputs.append(extractor(as_input(batch, memory_format)).to(torch.float16).contiguous().cpu())
    features: Float16[np.ndarray, "n ..."] = torch.cat(outputs).numpy()
    if not np.isfinite(features).all():
        raise FloatingPointError("a feature exceeds 65,504, the range of fp16: choose another model.frozen")
    return features
