"""Mixers decide which source each sample of a stage comes from; see ``base.Mixer`` for how to add one."""

from rebus.data.mixers import image_schedule, odm, temperature, two_stage, weighted
from rebus.data.mixers.base import Mixer, Mixture, MixtureChange, Portion

__all__ = [
    "Mixer",
    "Mixture",
    "MixtureChange",
    "Portion",
    "image_schedule",
    "odm",
    "temperature",
    "two_stage",
    "weighted",
]
