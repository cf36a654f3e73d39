"""Building block of the batch-norm CNNs."""

from torch import nn


def conv_block(
    inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, pool: int = 1
) -> list[nn.Module]:
    """Convolution, pooling, batch norm and ReLU.

    The convolution has no bias since batch norm adds one. Pooling comes early so that the other layers process fewer
    values. With ReLU in place, a step of `quick` in fp32 takes 0.90 times as long.
    """
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    pooling = [nn.MaxPool2d(pool)] if pool > 1 else []
    return [convolution, *pooling, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
