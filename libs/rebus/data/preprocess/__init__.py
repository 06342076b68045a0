"""From encoded media to what encoders read: one package for trainer, embedder, server and evaluator.

All build the same processor from the config stored with the model, so that they cannot drift apart; its ``digest``
names the processing, keys feature caches, and is checked when a model is loaded.
"""

from rebus.data.preprocess.image import ImageProcessor, ImageProcessorConfig, check_digest, model_processor

__all__ = ["ImageProcessor", "ImageProcessorConfig", "check_digest", "model_processor"]
