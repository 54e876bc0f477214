"""Conditions: subsets of ports, and what a model refuses."""

import jax.numpy as jnp
import pytest

from jvdm.errors import ConfigError
from jvdm.models import ChannelCondition, Conditions, TextStates
from jvdm.samplers import Weighted
from jvdm.system import Sampling, System

TEXT = TextStates(jnp.zeros((2, 3, 4)), jnp.array([1, 3]))
CHANNEL = ChannelCondition(jnp.zeros((2, 1, 2, 2, 4)), jnp.ones((2, 1, 2, 2), bool))
BOTH = Conditions(TEXT, CHANNEL)


def test_subsets_and_what_is_left():
    assert BOTH.given == ("text", "channel") and Conditions().given == ()
    assert BOTH.subset("channel") == Conditions(channel=CHANNEL) == BOTH.without("text")
    assert BOTH.subset() == Conditions() == BOTH.without("text", "channel")
    assert BOTH.without() == BOTH == BOTH.subset("channel", "text")
    assert Conditions(TEXT).subset("channel").given == ()


@pytest.mark.parametrize("verb", ["subset", "without"])
def test_unknown_ports_are_named(verb):
    with pytest.raises(ConfigError, match="no port is called 'chanel'.*text, channel"):
        getattr(BOTH, verb)("text", "chanel")


def test_a_model_refuses_conditions_it_has_no_port_for():
    BOTH.check(("text", "channel"))
    Conditions().check(())
    with pytest.raises(ConfigError, match="a channel condition.*ports text.*'text', 'channel'"):
        BOTH.check(("text",))
    with pytest.raises(ConfigError, match="a text and a channel condition.*has no ports"):
        BOTH.check(())
    with pytest.raises(ConfigError, match="no port is called 'audio'"):
        Conditions().check(("audio",))


def test_a_branch_of_guidance_goes_without_pictures():
    class Text:
        def apply(self, params, ids):
            return jnp.zeros((*ids.shape, 1)), jnp.ones(len(ids), int)

    guidance = Weighted(("unconditional", "prompt without pictures"), (-1.0, 2.0))
    system = System(Text(), None, None, sampling=Sampling(guidance=guidance))
    states = jnp.arange(24.0).reshape(2, 3, 4)
    told = system.conditions({"text": {}}, jnp.zeros((4, 1), int), None, states).pictures
    assert told is not None and told.known.tolist() == [True, True, False, False]
    assert (told.states == jnp.concatenate([states, states])).all()
    assert system.conditions({"text": {}}, jnp.zeros((4, 1), int)).pictures is None
