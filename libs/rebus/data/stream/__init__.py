"""The stream of samples that a stage trains on, indexed by global sample number and never by rank or worker.

Mixers say which source a sample comes from, ``shuffle`` which row of it, ``packing`` which samples share a pack, and
``ranks`` who works on a pack. All of it is arithmetic on numbers; whoever holds the data loads it afterwards. The state
is ``StreamState``, a small document.
"""

from rebus.data.stream.packing import PackConfig, Packer, Size
from rebus.data.stream.ranks import deal
from rebus.data.stream.samples import SampleStream
from rebus.data.stream.shuffle import shuffled_rows
from rebus.data.stream.state import Drawn, StreamState, by_source
from rebus.data.stream.steps import FEEDBACK_LAG, Pack, Step, StepStream

__all__ = [
    "FEEDBACK_LAG",
    "Drawn",
    "Pack",
    "PackConfig",
    "Packer",
    "SampleStream",
    "Size",
    "Step",
    "StepStream",
    "StreamState",
    "by_source",
    "deal",
    "shuffled_rows",
]
