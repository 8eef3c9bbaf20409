"""The torch side: transformers' own models run packed, pooled by our heads, traced to an artifact.

Knows models and tensors; knows nothing of serving. Everything here imports torch except `choose`,
which predicts from a `ModelSpec` alone.
"""
