# Licensed under the Apache License, Version 2.0.
"""TIER: CLIP-style models of radiographs and reports with text-image entropy regularisation (arXiv 2212.06710)."""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor

from .configuration_tier import TierConfig
from .entropy_tier import TextImageEntropy, text_image_entropy
from .modeling_tier import TierModel, TierOutput, TierSimilarityMap
from .processing_tier import TierProcessor, load_radiograph


AutoConfig.register(TierConfig.model_type, TierConfig)
AutoModel.register(TierConfig, TierModel)
AutoModelForZeroShotImageClassification.register(TierConfig, TierModel)
AutoProcessor.register(TierConfig, TierProcessor)

__all__ = [
    "TextImageEntropy",
    "TierConfig",
    "TierModel",
    "TierOutput",
    "TierProcessor",
    "TierSimilarityMap",
    "load_radiograph",
    "text_image_entropy",
]
