"""Networks: shared layers and one short file per family."""

from jvdm.models.carry import Carry
from jvdm.models.conditions import ChannelCondition, Conditions, TextStates
from jvdm.models.video_dit import VideoDiT

__all__ = ["Carry", "ChannelCondition", "Conditions", "TextStates", "VideoDiT"]
