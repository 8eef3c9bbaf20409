"""The types that travel between rooms. Imports no sibling; numpy at most.

Shapes use one legend everywhere: ``B`` sequences in a batch, ``N`` inputs of a request, ``T`` packed
tokens, ``S`` padded length, ``D`` hidden size, ``E`` embedding size, ``V`` vocabulary, ``L`` labels.
"""

from hilbert.core.calls import (
    ClassifyRequest,
    ClassifyResult,
    EncodeResult,
    RerankRequest,
    RerankResult,
    Scale,
)
from hilbert.core.quantize import OutputDtype, quantize
from hilbert.core.request import (
    DENSE_ONLY,
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
from hilbert.core.tasks import tasks_of, with_task
from hilbert.core.vectors import finish_vectors

__all__ = [
    "DENSE_ONLY",
    "Batch",
    "BatchOutput",
    "ClassifierModule",
    "ClassifyRequest",
    "ClassifyResult",
    "DenseModule",
    "EmbedRequest",
    "EmbedResult",
    "EncodeResult",
    "LayerNormModule",
    "ModelSpec",
    "Module",
    "MultivectorSpec",
    "NormalizeModule",
    "Output",
    "OutputDtype",
    "OutputType",
    "PoolingMode",
    "PoolingModule",
    "Request",
    "RerankRequest",
    "RerankResult",
    "Scale",
    "Sequence",
    "SparseVector",
    "SpladeModule",
    "Task",
    "Timing",
    "TokenVectorsModule",
    "TokenWeightsModule",
    "finish_vectors",
    "quantize",
    "tasks_of",
    "with_task",
]
