# Licensed under the Apache License, Version 2.0.
"""
Makes TIER's classes known to transformers, so that `AutoModel`, `AutoProcessor` and `pipeline` need no
`trust_remote_code` for it. `import modeling_tier` imports this module, and its commands do so after they have parsed
their options: it takes seconds.
"""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_tier import TierConfig
from .entropy_tier import TextImageEntropy, text_image_entropy
from .maps_tier import overlay_map
from .modeling_tier import TierModel, TierOutput, TierSimilarityMap
from .pipeline_tier import CAPTION_TASK, TASK, TierImageClassificationPipeline, TierZeroShotPipeline
from .processing_tier import TierProcessor
from .reading_tier import ReadingOptions, load_radiograph


__all__ = [
    "ReadingOptions",
    "TextImageEntropy",
    "TierConfig",
    "TierModel",
    "TierOutput",
    "TierProcessor",
    "TierSimilarityMap",
    "TierZeroShotPipeline",
    "load_radiograph",
    "overlay_map",
    "text_image_entropy",
]

AutoConfig.register(TierConfig.model_type, TierConfig)
AutoModel.register(TierConfig, TierModel)
AutoModelForZeroShotImageClassification.register(TierConfig, TierModel)
AutoProcessor.register(TierConfig, TierProcessor)
PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=TierZeroShotPipeline, pt_model=AutoModel, type="multimodal")
# transformers' own pipeline of this task turns 16-bit pictures white; for other models this one does the same as it.
PIPELINE_REGISTRY.supported_tasks[CAPTION_TASK]["impl"] = TierImageClassificationPipeline
