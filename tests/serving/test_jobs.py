"""Jobs: made together and alone, cancelled, refused, kept, and taken up again."""

import threading

import numpy as np
import pytest

from jvdm import outputs
from jvdm.serving.jobs import Jobs
from jvdm.serving.limits import Limits
from tests.serving.conftest import PROMPT, SMALL


@pytest.fixture
def jobs_of(pipe, tmp_path):
    made = []

    def make(**limits):
        made.append(Jobs(pipe, tmp_path / "work", Limits(**limits), {"weights": "nano"}))
        return made[-1]

    yield make
    for jobs in made:
        assert jobs.close()


class Gate:
    """A stream of one chunk that keeps the device until it is opened."""

    def __init__(self, jobs, client="gate"):
        self.entered, self.opened = threading.Event(), threading.Event()
        self.feed = jobs.stream(client, self._chunks())
        assert self.entered.wait(10)

    def _chunks(self):
        self.entered.set()
        assert self.opened.wait(60)
        yield "chunk"

    def open(self):
        self.opened.set()


def files_of(jobs, name):
    return sorted(path.name for path in jobs.task(name).folder.iterdir())


def test_a_job_is_what_generate_makes(jobs_of, pipe):
    jobs = jobs_of()
    name = jobs.submit("a", {"prompt": PROMPT, "seed": 5, "num_videos": 2, **SMALL})
    status = jobs.wait(name, 60.0)
    assert (status.state, status.row, status.rows, status.videos) == ("done", 2, 2, 2)
    want = pipe(PROMPT, seed=5, num_videos=2, output_type="latent", progress=False, **SMALL)
    for index in (0, 1):
        latents, record = outputs.load_latents(jobs.task(name).outputs(index).latents)
        np.testing.assert_allclose(latents, want[index], rtol=1e-4, atol=1e-4)
        assert record.settings["prompt"] == PROMPT and record.settings["index"] == index
    assert len(files_of(jobs, name)) == 2 * 4 + 2


def test_jobs_that_wait_are_made_together_and_are_the_same_alone(jobs_of, pipe):
    jobs = jobs_of()
    gate = Gate(jobs)
    prompts = [PROMPT, "a small blue box rests", "a ball", "a large green box slides"]
    names = [
        jobs.submit(f"c{i}", {"prompt": p, "seed": 10 * i, **SMALL}) for i, p in enumerate(prompts)
    ]
    other = jobs.submit("c0", {"prompt": PROMPT, "seed": 1, **SMALL, "num_inference_steps": 3})
    gate.open()
    assert [jobs.wait(name, 60.0).state for name in (*names, other)] == ["done"] * 5
    assert jobs.calls == {4: 1, 1: 1}
    for index, (name, prompt) in enumerate(zip(names, prompts, strict=True)):
        alone = pipe(prompt, seed=10 * index, output_type="latent", progress=False, **SMALL)
        latents, record = outputs.load_latents(jobs.task(name).outputs(0).latents)
        np.testing.assert_allclose(latents, alone[0], rtol=1e-4, atol=1e-4)
        assert record.settings["together"] == 4 and record.settings["seed"] == 10 * index
