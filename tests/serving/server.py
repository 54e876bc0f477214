"""A server in a process of its own, and a client of the standard library."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KEYS = tuple(f"key-number-{i}-of-this-test" for i in range(4))
ENDED = ("done", "failed", "cancelled")


class Server:
    """`jvdm serve` on a free port of the loopback; it runs while the object is entered."""

    def __init__(self, folder: Path, *arguments: str, keys=KEYS):
        self.folder, self.keys = folder, keys
        self.said: list[str] = []
        place = folder / "elsewhere"  # where nothing may be written
        place.mkdir(exist_ok=True)
        command = ["-m", "jvdm", "serve", "--weights", "nano", "--port", "0"]
        command += ["--workdir", str(folder / "work"), *arguments]
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=place,
            env={**os.environ, "JVDM_API_KEYS": " ".join(keys), "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        found = threading.Event()

        def listen():
            for line in self.process.stderr or ():
                self.said.append(line)
                if " at http://" in line:
                    found.set()
            found.set()

        threading.Thread(target=listen, daemon=True).start()
        assert found.wait(120), self.said
        address = re.search(r"at http://(\S+):(\d+)", "".join(self.said))
        assert address, self.said
        self.host, self.port = address[1], int(address[2])
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)

    def stop(self, number=signal.SIGTERM) -> int:
        """Sends a signal; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(90)

    def ask(self, method, path, body=None, key=0, **headers) -> tuple[int, Any]:
        """Returns status and answer, JSON as data."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            if self.keys and key is not None:
                headers.setdefault("Authorization", f"Bearer {self.keys[key]}")
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            if method == "POST":
                headers.setdefault("Content-Type", "application/json")
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(content) if is_json else content
        finally:
            connection.close()

    def post(self, key=0, **settings):
        """Asks for a video; returns the name of the job."""
        status, answer = self.ask("POST", "/v1/videos", settings, key)
        assert status == 202, answer
        return answer["id"]

    def status(self, name):
        status, answer = self.ask("GET", f"/v1/videos/{name}")
        assert status == 200, answer
        return answer

    def until(self, name, wanted=ENDED, timeout_s=60.0):
        """Waits for a state; returns what is said of the job then."""
        end = time.monotonic() + timeout_s
        while (answer := self.status(name))["state"] not in wanted:
            assert time.monotonic() < end, answer
            time.sleep(0.02)
        return answer

    def metrics(self) -> dict[str, float]:
        _, text = self.ask("GET", "/metrics")
        lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def used(self) -> tuple[int, int, int]:
        """Returns kilobytes of memory, open files and threads of the process."""
        folder = Path(f"/proc/{self.process.pid}")
        memory = re.search(r"VmRSS:\s+(\d+)", (folder / "status").read_text())
        assert memory
        return (
            int(memory[1]),
            len(list((folder / "fd").iterdir())),
            len(list((folder / "task").iterdir())),
        )
