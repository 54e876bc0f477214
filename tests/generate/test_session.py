"""Sessions: commands between chunks, going back, files that go on in another process."""

import dataclasses

import numpy as np
import pytest

import jvdm
from jvdm.pipeline import Request
from jvdm.pipeline.session import Prompt, Rewind, begin_session, command_of, load_session
from jvdm.samplers import Heun
from jvdm.weights import safetensors

pytestmark = pytest.mark.filterwarnings("ignore:its frames go together")
PROMPT, OTHER = "a large red ball rolls to the left", "a small blue box rests"


def session_of(pipe, keep=None, **settings):
    return begin_session(pipe, Request(**{"prompt": PROMPT, "seed": 0} | settings), keep=keep)


def steps(session, count, *commands):
    """Returns the session after so many chunks, and their frames; commands before the first."""
    made = []
    for _ in range(count):
        session, frames = session.step(*commands)
        made.append(frames)
        commands = ()
    return session, np.concatenate(made)


@pytest.fixture(scope="module")
def begun(pipe):
    """A session after three chunks, and the four that follow."""
    session, _ = steps(session_of(pipe, keep="2s"), 3)
    return session, steps(session, 4)[1]


def test_a_session_is_the_stream(pipe):
    parts = [part.frames for part in pipe.stream(PROMPT, seed=0, num_frames=13)]
    session, frames = steps(session_of(pipe, num_frames=13), 4)
    np.testing.assert_array_equal(frames, np.concatenate(parts))
    assert session.done and session.frames == 13
    with pytest.raises(jvdm.ConfigError, match="13 frames were asked for"):
        session.step()


def test_another_prompt_is_told_from_the_next_chunk_on(pipe, begun):
    session, plain = begun
    told, frames = steps(session, 4, Prompt(OTHER))
    assert (session.prompt, told.prompt) == (PROMPT, OTHER)
    changed = np.abs(frames.astype(int) - plain).reshape(4, -1).max(1)
    assert (changed > 0).all()
    same = begin_session(pipe, Request(prompt=PROMPT, seed=0), {session.frames / 12: OTHER})
    np.testing.assert_array_equal(steps(same, 7)[1][session.frames :], frames)
    assert len(told.run.told) == 1


def test_a_fork_changes_nothing_of_what_it_comes_from(begun):
    session, plain = begun
    steps(session, 2, Prompt(OTHER))
    np.testing.assert_array_equal(steps(session, 4)[1], plain)


def test_going_back_is_having_been_there(begun):
    session, plain = begun
    later, _ = steps(session, 1)
    later, told = steps(later, 2, Prompt(OTHER))
    back = later.after(Rewind(1.0))
    assert (back.frames, back.prompt) == (session.frames, PROMPT)
    np.testing.assert_array_equal(steps(back, 4)[1], plain)
    same = later.after(Rewind(8 / 12))
    assert (same.frames, same.prompt) == (session.frames + 4, OTHER)
    np.testing.assert_array_equal(steps(same, 2)[1], told)
    assert (
        len(back.past) == len(session.past) and len(steps(later, 2)[0].past) == later.job.kept == 6
    )
    with pytest.raises(jvdm.ConfigError, match=r"rewind by 60 s; the states of the last 1.8 s"):
        later.after(Rewind(60.0))
    with pytest.raises(jvdm.ConfigError, match="the last 0 s are kept; .*--keep 60s"):
        dataclasses.replace(session, past=()).after(Rewind(1.0))


@pytest.mark.parametrize("chunks", [0, 3])
def test_a_saved_session_goes_on_bit_for_bit(pipe, begun, tmp_path, chunks):
    session = begun[0] if chunks else session_of(pipe)
    session = session.after(Prompt(OTHER))
    session.save(tmp_path / "session.safetensors")
    again = load_session(pipe, tmp_path / "session.safetensors", keep="1s")
    assert (again.frames, again.prompt, again.job.kept) == (session.frames, OTHER, 3)
    np.testing.assert_array_equal(steps(again, 3)[1], steps(session, 3)[1])


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("prompt a small blue box rests\n", Prompt(OTHER)),
        ("  rewind 2s", Rewind(2.0)),
        ("rewind .5m", Rewind(30.0)),
        *[(line, None) for line in ("", "prompt", "prompt ", "rewind", "rewind fast", "dance")],
    ],
)
def test_lines_are_commands(line, command):
    if command is not None:
        assert command_of(line) == command
    else:
        with pytest.raises(jvdm.ConfigError, match="is no command|rewind is"):
            command_of(line)


def test_words_that_the_text_encoder_does_not_know_are_said(begun):
    session, _ = begun
    told = session.after(Prompt("a purple dragon rolls"))
    assert any("dragon" in note for note in told.unknown) and told.step()[0].unknown == ()
    assert session.unknown == ()


def test_a_session_of_another_model_is_refused(pipe, begun, tmp_path):
    path = tmp_path / "session.safetensors"
    begun[0].save(path)
    other = dataclasses.replace(pipe, identity={"model.safetensors": "0"})
    with pytest.raises(jvdm.ConfigError, match="made with other weights"):
        load_session(other, path)
    sampling = dataclasses.replace(pipe.system.sampling, solver=Heun())
    other = dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, sampling=sampling))
    with pytest.raises(jvdm.ConfigError, match="made with other rules"):
        load_session(other, path)
    safetensors.save(tmp_path / "x.safetensors", {"a": np.zeros(3)})
    with pytest.raises(jvdm.WeightsError, match="holds no session"):
        load_session(pipe, tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(jvdm.WeightsError, match="truncated|corrupt"):
        load_session(pipe, path)
