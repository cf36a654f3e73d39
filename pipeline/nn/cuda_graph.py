"""Recording GPU work once and replaying it, so that the CPU does not have to launch every kernel again."""

from collections.abc import Callable

import torch


def record(function: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Record the GPU work of a function as a CUDA graph; it is not executed until `replay`.

    A replay reads and writes the same tensors, which must stay where they are. The function must have been called
    before, because libraries initialize themselves and choose algorithms in a first call, and must not wait for the
    GPU. Random numbers continue from the generator's state at the time of the replay.
    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        # With a stream of its own, a graph shares no workspace of cuBLAS with another graph, which may end before it.
        with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
            function()
    except RuntimeError as error:
        # The end of a recording that has failed raises an error without the cause.
        raise error.__context__ or error from None
    return graph
