"""The types that travel between rooms. Imports no sibling; numpy at most.

Shapes use one legend everywhere: ``B`` sequences in a batch, ``N`` inputs of a request, ``T`` packed
tokens, ``S`` padded length, ``D`` hidden size, ``E`` embedding size, ``V`` vocabulary, ``L`` labels.
"""

from hilbert.core.request import (
    Batch,
    BatchOutput,
    EmbedRequest,
    EmbedResult,
    Output,
    OutputType,
    Request,
    Sequence,
    SparseVector,
    Timing,
)
from hilbert.core.spec import (
    DenseModule,
    LayerNormModule,
    ModelSpec,
    Module,
    NormalizeModule,
    PoolingMode,
    PoolingModule,
    Task,
)
from hilbert.core.vectors import finish_vectors

__all__ = [
    "Batch",
    "BatchOutput",
    "DenseModule",
    "EmbedRequest",
    "EmbedResult",
    "LayerNormModule",
    "ModelSpec",
    "Module",
    "NormalizeModule",
    "Output",
    "OutputType",
    "PoolingMode",
    "PoolingModule",
    "Request",
    "Sequence",
    "SparseVector",
    "Task",
    "Timing",
    "finish_vectors",
]
