"""Jobs: made together and alone, cancelled, refused, kept, and taken up again."""

import threading
import time

import numpy as np
import pytest

import jvdm
from jvdm import machine, outputs
from jvdm.pipeline import Request, programs
from jvdm.serving import tasks
from jvdm.serving.jobs import Busy, Closing, Jobs, UnknownJob
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


def test_clients_take_turns(jobs_of):
    jobs = jobs_of(max_batch=1)
    gate = Gate(jobs)
    order = [("a", 1), ("a", 2), ("a", 3), ("b", 4)]
    names = [
        jobs.submit(client, {"prompt": PROMPT, "seed": seed, **SMALL}) for client, seed in order
    ]
    assert [jobs.status(name).ahead for name in names] == [0, 2, 3, 1]
    gate.open()
    started = {name: jobs.wait(name, 60.0).started for name in names}
    assert sorted(names, key=lambda name: started[name] or 0) == [names[i] for i in (0, 3, 1, 2)]
    assert jobs.calls == {1: 4}


def test_too_many_are_refused_and_leave_nothing(jobs_of):
    jobs = jobs_of(max_waiting_each=2, max_waiting=3)
    gate = Gate(jobs)
    for client in "aab":
        jobs.submit(client, {"prompt": PROMPT, **SMALL})
    folders = sorted(jobs.folder.iterdir())
    with pytest.raises(Busy, match="2 jobs of this client wait; 2 is the most here"):
        jobs.submit("a", {"prompt": PROMPT, **SMALL})
    with pytest.raises(Busy, match="3 jobs of all clients wait"):
        jobs.submit("c", {"prompt": PROMPT, **SMALL})
    with pytest.raises(Busy, match="3 jobs of all clients wait"):
        jobs.stream("c", iter(()))
    with pytest.raises(jvdm.ShapeError, match="17"):
        jobs_of().submit("c", {"prompt": PROMPT, **SMALL, "height": 17})
    assert sorted(jobs.folder.iterdir()) == folders
    gate.open()


def test_errors_do_not_tell_where_files_are(jobs_of):
    jobs = jobs_of()
    with pytest.raises(jvdm.ConfigError, match="^image.png is not a picture") as caught:
        settings = {**SMALL, "prompt": PROMPT, "num_frames": 9}
        jobs.submit("a", settings, {"image": b"\x89PNG\r\n\x1a\n"})
    assert str(jobs.folder) not in str(caught.value)
    assert not [path for path in jobs.folder.iterdir() if path.is_dir()]


def test_none_fails_for_another(jobs_of, monkeypatch):
    jobs, whole = jobs_of(), jvdm.Pipeline.sample

    def sample(self, job, *arguments, **settings):
        if "boom" in job.prompts:
            raise RuntimeError("a fault that nobody foresaw")
        return whole(self, job, *arguments, **settings)

    monkeypatch.setattr(jvdm.Pipeline, "sample", sample)
    gate = Gate(jobs)
    names = [jobs.submit("a", {"prompt": text, **SMALL}) for text in ("ball", "boom", "box", "red")]
    gate.open()
    ended = []
    for name in names:
        ended.append(jobs.wait(name, 60.0))
        assert ended[-1].state in tasks.ENDED
    assert [status.state for status in ended] == ["done", "failed", "done", "done"]
    assert ended[1].error and "failed with RuntimeError" in ended[1].error["what"]
    assert jobs.alive and jobs.calls == {4: 1, 1: 4}


def test_work_is_checked_with_the_memory_that_is_free_when_nothing_runs(
    jobs_of, pipe, monkeypatch, tmp_path
):
    jobs = jobs_of()
    for name in ("max", "current"):
        (tmp_path / f"memory.{name}").write_text("1000")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    with pytest.raises(jvdm.DeviceMemoryError):
        pipe.prepare(Request(prompt=PROMPT, **SMALL))
    assert jobs.wait(jobs.submit("a", {"prompt": PROMPT, **SMALL}), 60.0).state == "done"


def test_a_full_disk_does_not_stop_the_worker(jobs_of, monkeypatch):
    jobs = jobs_of()

    def full(task):
        raise jvdm.ConfigError("the disk is full")

    monkeypatch.setattr(tasks, "write_status", full)
    for _ in range(2):
        assert jobs.wait(jobs.submit("a", {"prompt": PROMPT, **SMALL}), 60.0).state == "done"


@pytest.mark.parametrize(
    ("limits", "left"),
    [({"keep_jobs": 2}, 2), ({"keep_gigabytes": 1e-7}, 1), ({"keep_hours": 1e-9}, 0), ({}, 4)],
)
def test_old_results_go(jobs_of, limits, left):
    jobs = jobs_of(**limits)
    names = []
    for _ in range(4):
        names.append(jobs.submit("a", {"prompt": PROMPT, **SMALL}))
        jobs.wait(names[-1], 60.0)
    kept = [path.name for path in jobs.folder.iterdir() if path.is_dir()]
    assert sorted(kept) == sorted(names[4 - left :])
    for name in names[: 4 - left]:
        with pytest.raises(UnknownJob):
            jobs.status(name)
    assert (jobs.kept_bytes > 0) == (left > 0)


def test_what_was_left_is_taken_up(jobs_of):
    first = jobs_of()
    ended = first.submit("a", {"prompt": PROMPT, "seed": 1, **SMALL})
    first.wait(ended, 60.0)
    gate = Gate(first)
    waits = first.submit("b", {"prompt": PROMPT, **SMALL})
    wrong = first.submit("b", {"prompt": PROMPT, "seed": 2, **SMALL})
    other = first.submit("b", {"prompt": PROMPT, "seed": 3, **SMALL})
    threading.Timer(0.2, gate.open).start()
    assert first.close(1.0)
    with pytest.raises(Closing):
        first.submit("a", {"prompt": PROMPT, **SMALL})
    assert first.wait(waits).state == "queued" and not first.alive and not first.broken
    path = first.folder / wrong / "request.json"
    path.write_text(path.read_text().replace('"height": 16', '"height": 17'))
    (first.folder / other / "request.json").write_text("{")
    (first.folder / "notes").mkdir()
    second = jobs_of()
    assert second.status(ended) == first.status(ended)
    assert second.wait(waits, 60.0).state == "done"
    status = second.wait(wrong, 60.0)
    assert status.state == "failed" and status.error and status.error["code"] == "ShapeError"
    with pytest.raises(UnknownJob):
        second.status(other)
    assert (first.folder / other).exists() and (first.folder / "notes").exists()


@pytest.mark.parametrize(("grace_s", "state"), [(60.0, "done"), (0.0, "queued")])
def test_what_runs_is_finished_within_the_grace_or_left_with_its_latents(
    jobs_of, monkeypatch, grace_s, state
):
    jobs, begun, closing = jobs_of(), threading.Event(), threading.Event()
    late = jobs._late

    def noted():
        begun.set()
        assert closing.wait(60)
        return late()

    monkeypatch.setattr(jobs, "_late", noted)
    name = jobs.submit("a", {"prompt": PROMPT, "seed": 1, **SMALL})
    assert begun.wait(60)
    closer = threading.Thread(target=jobs.close, args=(grace_s,))
    closer.start()
    while jobs.alive:
        time.sleep(0.01)
    closing.set()
    closer.join(90)
    assert jobs.status(name).state == state
    files = files_of(jobs, name)
    assert "video_0.latents.safetensors" in files and ("video_0.mp4" in files) == (state == "done")


def test_programs_of_many_sizes_do_not_fill_the_memory(jobs_of):
    jobs, held = jobs_of(max_sizes=2), []
    for width in (16, 32, 16, 48):
        settings = {**SMALL, "prompt": PROMPT, "num_inference_steps": 1, "width": width}
        assert jobs.wait(jobs.submit("a", settings), 60.0).state == "done"
        held.append(programs.denoise_row._cache_size())
    assert held[1] == held[2] == held[0] + 1 and held[3] == 1


def test_jobs_of_other_settings_are_made_apart(jobs_of):
    jobs = jobs_of()
    gate = Gate(jobs)
    names = [
        jobs.submit(client, {"prompt": PROMPT, **SMALL, "guidance_scale": scale})
        for client, scale in (("a", 2.0), ("b", 3.0))
    ]
    gate.open()
    assert [jobs.wait(name, 60.0).state for name in names] == ["done", "done"]
    assert jobs.calls == {1: 2}
    scales = [jobs.task(name).outputs(0).record.read_text() for name in names]
    assert '"guidance_scale": 2.0' in scales[0] and '"guidance_scale": 3.0' in scales[1]
