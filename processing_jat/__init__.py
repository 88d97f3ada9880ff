"""The JAT processor. Importing this package registers it with transformers' AutoProcessor."""

from transformers import AutoProcessor

from modeling_jat import JatConfig

from .processing_jat import JatProcessor, JatProcessorKwargs

AutoProcessor.register(JatConfig, JatProcessor)

__all__ = ["JatProcessor", "JatProcessorKwargs"]
