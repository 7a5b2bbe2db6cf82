"""The plugin against a real HTTP server in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pluggy
import pytest

#: Writes the text of the plugin's file.
Write = Callable[[str], object]
SECRET = "/ping/0f3c-secret"
OK = SimpleNamespace(failed=False, error=None)
VOLUME = SimpleNamespace(name="offsite", mountpoint=Path("/mnt/backupspace"))


class Service(ThreadingHTTPServer):
    """Remembers the paths it was asked for and answers all with *status*."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.paths: list[str] = []
        self.status = 200
        self.release = threading.Event()
        self.release.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{SECRET}"


class Handler(BaseHTTPRequestHandler):
    """Answers when the service lets it."""

    server: Service

    def do_GET(self) -> None:
        self.server.release.wait(5)
        self.server.paths.append(self.path)
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name in http.server)
        """Keep the tests' own output clean."""


@pytest.fixture(name="service")
def _service() -> Iterator[Service]:
    with Service() as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


@pytest.fixture(name="plugin")
def _plugin() -> ModuleType:
    (found,) = entry_points(group="lukshook", name="webhook")
    module = found.load()
    assert isinstance(module, ModuleType)
    return module


@pytest.fixture(name="write")
def _write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    file = tmp_path / "webhook.toml"
    monkeypatch.setenv("LUKSHOOK_WEBHOOK", str(file))
    return file.write_text


def call(plugin: ModuleType, hook: str, **arguments: object) -> None:
    """Call the hook as lukshook does, through pluggy."""
    manager = pluggy.PluginManager("lukshook")
    manager.register(plugin)
    getattr(manager.hook, hook)(**arguments)


def configured(service: Service, *more: str) -> str:
    """The text of a file for the volume of these tests."""
    return "\n".join(["[volumes.offsite]", f'url = "{service.url}"', *more])


def test_start_and_success(
    plugin: ModuleType, service: Service, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """A good backup is two pings and no output at all."""
    write(configured(service))

    call(plugin, "before_backup", volume=VOLUME)
    call(plugin, "report", volume=VOLUME, outcome=OK)

    assert [f"{SECRET}/start", SECRET] == service.paths
    assert ("", "") == capsys.readouterr()


@pytest.mark.parametrize(
    "outcome", [SimpleNamespace(failed=True, error=None), SimpleNamespace(failed=False, error=OSError())]
)
def test_failure(plugin: ModuleType, service: Service, write: Write, outcome: SimpleNamespace) -> None:
    """A host that says "failed" and an error of lukshook's own both lead to the failure address."""
    write(configured(service))

    call(plugin, "report", volume=VOLUME, outcome=outcome)

    assert [f"{SECRET}/fail"] == service.paths


def test_suffixes_of_other_services(plugin: ModuleType, service: Service, write: Write) -> None:
    """The file chooses what is added, and false means no ping."""
    write(configured(service, "start = false", 'success = "?status=up"', 'fail = "?status=down"'))

    call(plugin, "before_backup", volume=VOLUME)
    call(plugin, "report", volume=VOLUME, outcome=OK)

    assert [f"{SECRET}?status=up"] == service.paths


def test_other_volumes_are_left_alone(
    plugin: ModuleType, service: Service, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """A volume that the file does not name has no pings and no warning."""
    write(configured(service))

    call(plugin, "before_backup", volume=SimpleNamespace(name="other"))

    assert ([], "") == (service.paths, capsys.readouterr().err)


def test_no_file_means_no_pings(plugin: ModuleType, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """An installed plugin that was not configured is silent."""
    call(plugin, "before_backup", volume=VOLUME)

    assert ("", "") == capsys.readouterr()


def test_refused_ping_is_one_warning(
    plugin: ModuleType, service: Service, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """The backup goes on, and the warning does not betray the address."""
    service.status = 404
    write(configured(service))

    call(plugin, "before_backup", volume=VOLUME)

    expected = "warning: webhook: start of offsite not reported: 127.0.0.1 answered 404\n"
    assert ("", expected) == capsys.readouterr()


def test_service_that_is_down(
    plugin: ModuleType, service: Service, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """A closed port is a warning as well."""
    write(configured(service).replace(f":{service.server_port}/", ":1/"))

    call(plugin, "report", volume=VOLUME, outcome=OK)

    error = capsys.readouterr().err
    assert "warning: webhook: success of offsite not reported: 127.0.0.1: ConnectionRefusedError\n" == error


def test_service_that_hangs(
    plugin: ModuleType, service: Service, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """A silent service holds the backup up for the timeout only."""
    service.release.clear()
    write(configured(service, "timeout = 0.2"))

    call(plugin, "before_backup", volume=VOLUME)

    assert "warning: webhook: start of offsite not reported: 127.0.0.1: TimeoutError\n" == capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "[volumes.offsite]\nurl = 'file:///etc/passwd'",
        "[volumes.offsite]\nurl = 'http://[SECRET'",
        "[volumes.offsite]\nurl = 'http://x/SECRET'\nstart = 1",
        "[volumes.offsite]\nurl = 'http://x/SECRET'\nunknown = 1",
        "[volumes.offsite]\nurl = 'http://x/SECRET'\ntimeout = 0",
        "[volumes.offsite]\nstart = ''",
        "volumes = 1",
        "url = SECRET",
    ],
)
def test_wrong_file_is_one_warning(
    plugin: ModuleType, write: Write, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """Every mistake in the file names the file in one line, and no address."""
    write(text)

    call(plugin, "before_backup", volume=VOLUME)

    error = capsys.readouterr().err
    assert error.startswith("warning: webhook: start of offsite not reported: ")
    assert "webhook.toml: " in error
    assert "SECRET" not in error
    assert 1 == error.count("\n")
