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
    ClassifierModule,
    DenseModule,
    LayerNormModule,
    ModelSpec,
    Module,
    MultivectorSpec,
    NormalizeModule,
    PoolingMode,
    PoolingModule,
    SpladeModule,
    Task,
    TokenVectorsModule,
    TokenWeightsModule,
)
from hilbert.core.vectors import finish_vectors

__all__ = [
    "Batch",
    "BatchOutput",
    "ClassifierModule",
    "DenseModule",
    "EmbedRequest",
    "EmbedResult",
    "LayerNormModule",
    "ModelSpec",
    "Module",
    "MultivectorSpec",
    "NormalizeModule",
    "Output",
    "OutputType",
    "PoolingMode",
    "PoolingModule",
    "Request",
    "Sequence",
    "SparseVector",
    "SpladeModule",
    "Task",
    "Timing",
    "TokenVectorsModule",
    "TokenWeightsModule",
    "finish_vectors",
]
