"""The studio and the demo in processes of their own, and the browser of the system: `make browser-test`."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from jaxlm.studio.processes.jobs import Jobs
from jaxlm.studio.reading.folders import STATE

ROOT = Path(__file__).parent.parent.parent
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_HOW = "install it: apt-get install chromium (Debian), snap install chromium (Ubuntu), brew install chromium (a Mac)"
_MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")


class PagesProcess:
    """A command that serves pages, and prints their address."""

    def __init__(self, words: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None):
        self._words, self._log, self._environment = words, log, {**os.environ, **(environment or {})}
        self.address = ""
        """Link, with the token where it has one."""
        self.seconds = 0.0
        """Seconds from the start to the address."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> str:
        """Address without the token."""
        return self.address.partition("?")[0].rstrip("/")

    @property
    def port(self) -> int:
        """Port that it listens on; 0 before the first start, when it may take any."""
        return int(re.findall(r":(\d+)", self.address)[-1]) if self.address else 0

    def start(self) -> None:
        """Start it, at the port that it had, and wait for its address."""
        self._log.write_text("")
        begin = time.monotonic()
        words = [sys.executable, *self._words, "--port", str(self.port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                words, cwd=ROOT, stdout=log, stderr=log, start_new_session=True, env=self._environment
            )
        while not (found := re.search(r"http://\S+", self._log.read_text())):
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() - begin < 300, f"{self._words[0]} did not open"
            time.sleep(0.02)
        self.seconds = time.monotonic() - begin
        self.address = found[0]

    def kill(self) -> None:
        """Kill it, and nothing that it has started."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def stopped_children(self) -> Iterator[None]:
        """Stop, for a while, the processes that it has started, and those which these have."""
        assert self._process is not None
        listed = subprocess.run(["ps", "-eo", "ppid=,pid="], capture_output=True, text=True, check=True).stdout
        pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
        found = [self._process.pid]
        for process in found:  # grows while it is read
            found += [child for parent, child in pairs if parent == process]
        try:
            for child in found[1:]:
                os.kill(child, signal.SIGSTOP)
            yield
        finally:
            for child in found[1:]:
                os.kill(child, signal.SIGCONT)

    @property
    def memory(self) -> int:
        """Bytes of its resident memory."""
        assert self._process is not None
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * 4096


class StudioProcess(PagesProcess):
    """A studio of a root, which can be killed and started again at the same port."""

    def __init__(self, root: Path, log: Path):
        super().__init__(["scripts/studio.py", "--root", str(root)], log)
        self.root = root


class DemoProcess(PagesProcess):
    """A demo of a model."""

    def __init__(self, model: str | Path, log: Path, *words: str, environment: Mapping[str, str] | None = None):
        super().__init__(["scripts/demo.py", "--model", str(model), *words], log, environment=environment)


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[StudioProcess]:
    """A studio of an empty root."""
    (tmp_path / "root").mkdir()
    found = StudioProcess(tmp_path / "root", tmp_path / "studio.log")
    found.start()
    yield found
    found.kill()
    for job in Jobs(tmp_path / "root" / STATE / "jobs").all():
        job.kill()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The Chromium of the system."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("playwright is not installed: make browser-test installs it")
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), str(_MAC) if _MAC.exists() else None)
    if found is None:
        pytest.fail(f"found no Chromium or Chrome on this machine; {_HOW}")
    with sync_playwright() as driver:
        # A sandbox of the browser needs rights that containers do not give; the pages are our own.
        chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page without cookies, which fails the test on an error of a script."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    found, errors = context.new_page(), list[str]()
    found.on("pageerror", lambda error: errors.append(str(error)))
    yield found
    context.close()
    assert not errors, errors
