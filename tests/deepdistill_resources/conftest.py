import secrets
import sys
from pathlib import Path

import pytest

from deepdistill_resources.lake import Lake

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def s3_server():
    """An S3 server from a package, on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_lake(s3_server, monkeypatch):
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "tester",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"lake-{secrets.token_hex(4)}"
    boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1").create_bucket(Bucket=bucket)
    return Lake(root=f"s3://{bucket}/prefix", endpoint_url=s3_server)


@pytest.fixture
def lake(request, tmp_path):
    """The same lake on a directory and on S3; parametrize indirectly with "directory" or "s3"."""
    if request.param == "directory":
        return Lake(root=str(tmp_path / "lake"))
    return request.getfixturevalue("s3_lake")
