"""Networks: shared layers and one short file per family."""

from jvdm.models.conditions import ChannelCondition, Conditions, TextStates
from jvdm.models.video_dit import Aux, VideoDiT

__all__ = ["Aux", "ChannelCondition", "Conditions", "TextStates", "VideoDiT"]
