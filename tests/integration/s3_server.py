"""An S3 server in a process of its own, on loopback, that refuses whoever does not sign with its key."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

BUCKET = "mill"
_REGION = "us-east-1"
_EVERYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
# The requests that make a user with a key, which nobody has to sign.
_SETUP_REQUESTS = 3


@dataclass(frozen=True)
class S3Server:
    """`environment`: where it is and who may use it, as every S3 client reads it."""

    process: subprocess.Popen[bytes]
    environment: dict[str, str]

    @property
    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=_REGION,
        )

    def upload(self, folder: Path, prefix: str) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder).as_posix()}")

    def objects(self, prefix: str) -> dict[str, Any]:
        """When each object below a prefix was written; markers of folders aside."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        found = (each for page in pages for each in page.get("Contents", []))
        return {each["Key"]: each["LastModified"] for each in found if not each["Key"].endswith("/")}


@contextlib.contextmanager
def s3_server(log: Path) -> Iterator[S3Server]:
    """A server with one empty bucket; its log of requests goes to a file."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    strict = os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": str(_SETUP_REQUESTS)}
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=strict, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 60
        while not _answers(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server = S3Server(process, _account(f"http://127.0.0.1:{port}"))
        server.client.create_bucket(Bucket=BUCKET)
        yield server
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _account(endpoint: str) -> dict[str, str]:
    iam = boto3.client(
        "iam", endpoint_url=endpoint, region_name=_REGION, aws_access_key_id="-", aws_secret_access_key="-"
    )
    iam.create_user(UserName="mill")
    iam.put_user_policy(UserName="mill", PolicyName="all", PolicyDocument=json.dumps(_EVERYTHING))
    key = iam.create_access_key(UserName="mill")["AccessKey"]
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        "AWS_DEFAULT_REGION": _REGION,
    }
