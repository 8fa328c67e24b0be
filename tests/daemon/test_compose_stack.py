"""The stack of docker/compose.yaml without Docker: its own commands and environment, as processes on loopback.

Postgres, an S3 server, code server, webserver and daemon on the profile `cluster`; a backfill of real assets
runs through all of them.
"""

import json
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml
from daemon_site import free_port, stop, until

CLONE = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((CLONE / "docker" / "compose.yaml").read_text())
SECRETS = {
    "POSTGRES_PASSWORD": "canary-postgres-4711",
    "AWS_ACCESS_KEY_ID": "deepdistill",
    "AWS_SECRET_ACCESS_KEY": "canary-s3-secret-4711",
}
BINARIES = next((str(path.parent) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)
INITDB = shutil.which("initdb", path=os.pathsep.join([os.environ["PATH"], BINARIES or ""]))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        INITDB is None, reason="Postgres' server programs are not installed (apt-get install postgresql)"
    ),
]
pytest.importorskip("psycopg2", reason="the dev extra is not installed")
LAUNCH = """mutation($keys: [AssetKeyInput!]!, $partitions: [String!]!) {
  launchPartitionBackfill(backfillParams: {assetSelection: $keys, partitionNames: $partitions}) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
STATUS = """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { status error { message } } } }"""


class Stack:
    """The services of compose.yaml, each one's host name replaced by a port of this machine."""

    def __init__(self, home):
        self.home, self.environment, self.processes = home, {}, ExitStack()
        self.ports = {name: free_port() for name in ("postgres", "s3", "code", "webserver")}
        (home / "dagster").mkdir()
        text = (CLONE / "docker" / "dagster.cluster.yaml").read_text()
        (home / "dagster" / "dagster.yaml").write_text(text)
        workspace = (CLONE / "docker" / "workspace.yaml").read_text()
        workspace = workspace.replace("host: code", "host: 127.0.0.1").replace("4000", str(self.ports["code"]))
        (home / "workspace.yaml").write_text(workspace)

    def here(self, text):
        """Return a text of compose.yaml as it must read on this machine."""
        variables = {**SECRETS, "DEEPDISTILL_RECIPE": "small"}
        text = re.sub(
            r"\$\{(\w+)(?::([-?])([^}]*))?\}",
            lambda found: variables.get(found[1], found[3] if found[2] == "-" else None),
            text,
        ).replace("$$", "$")
        for old, new in {
            "@postgres:5432": f"@127.0.0.1:{self.ports['postgres']}",
            "http://s3:9000": f"http://127.0.0.1:{self.ports['s3']}",
            "0.0.0.0": "127.0.0.1",
            "-p 4000": f"-p {self.ports['code']}",
            "-p 3000": f"-p {self.ports['webserver']}",
            ":3000": f":{self.ports['webserver']}",
            "/app/docker/workspace.yaml": str(self.home / "workspace.yaml"),
            "/app/": f"{CLONE}/",
        }.items():
            text = text.replace(old, new)
        return text

    def variables(self, service):
        said = {name: self.here(value) for name, value in COMPOSE["services"][service].get("environment", {}).items()}
        said |= {"DAGSTER_HOME": str(self.home / "dagster"), "DEEPDISTILL_HOME": str(self.home / "data")}
        said["DEEPDISTILL_RECIPE"] = str(CLONE / "tests" / "end_to_end" / "small.yaml")
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**os.environ, **said, "PATH": path, "PYTHONPATH": str(CLONE), "DAGSTER_DISABLE_TELEMETRY": "1"}

    def command(self, words):
        words = [self.here(word) for word in words]
        modules = {"dagster": "dagster", "dagster-webserver": "dagster_webserver", "dagster-daemon": "dagster._daemon"}
        if words[0] in modules:  # the console scripts, wherever their environment is
            return [sys.executable, "-m", modules[words[0]], *words[1:]]
        return [sys.executable, *words[1:]] if words[0] == "python" else words

    @contextmanager
    def process(self, name, command, **options):
        with (self.home / f"{name}.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=CLONE, **options)
            try:
                yield process
            finally:
                stop(process)

    def start(self, service):
        command = self.command(shlex.split(self.here(COMPOSE["services"][service]["command"])))
        return self.processes.enter_context(self.process(service, command, env=self.variables(service)))

    def run(self, service):
        command = self.command(shlex.split(COMPOSE["services"][service]["command"]))
        subprocess.run(command, env=self.variables(service), cwd=CLONE, check=True)

    def healthy(self, service):
        test = COMPOSE["services"][service]["healthcheck"]["test"][1:]
        words = shlex.split(self.here(shlex.join(test)))
        return not subprocess.run(self.command(words), env=self.variables(service), capture_output=True).returncode

    def ask(self, query, **variables):
        body = json.dumps({"query": query, "variables": variables}).encode()
        url = f"http://127.0.0.1:{self.ports['webserver']}/graphql"
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)["data"]


@contextmanager
def postgres(stack):
    """A Postgres server of its own; as root it runs as the user `postgres`, as the server demands."""
    directory = Path(tempfile.mkdtemp(prefix="deepdistill-postgres-"))
    user = "postgres" if os.getuid() == 0 else None
    if user:
        shutil.chown(directory, pwd.getpwnam(user).pw_uid)
    as_user = {"user": user} if user else {}
    programs = Path(INITDB).resolve().parent
    password = directory / "password"
    password.write_text(SECRETS["POSTGRES_PASSWORD"])
    password.chmod(0o644)
    data = str(directory / "data")
    try:
        initdb = [programs / "initdb", "-D", data, "-U", "deepdistill", "--pwfile", password, "-A", "scram-sha-256"]
        subprocess.run(initdb, check=True, capture_output=True, cwd="/", **as_user)
        command = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(stack.ports["postgres"])]
        with stack.process("postgres", [*command, "-k", str(directory), "-c", "fsync=off"], **as_user):
            until(lambda: connects(stack, "postgres"), what="Postgres")
            connects(stack, "postgres", "create database dagster")
            yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def connects(stack, database, statement="select 1"):
    import psycopg2

    try:
        connection = psycopg2.connect(
            host="127.0.0.1",
            port=stack.ports["postgres"],
            user="deepdistill",
            password=SECRETS["POSTGRES_PASSWORD"],
            dbname=database,
        )
    except psycopg2.OperationalError:
        return False
    connection.autocommit = True
    connection.cursor().execute(statement)
    connection.close()
    return True


@pytest.fixture
def stack(tmp_path):
    stack = Stack(tmp_path)
    with stack.processes as processes:
        processes.enter_context(postgres(stack))
        s3 = ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(stack.ports["s3"])]
        processes.enter_context(stack.process("s3", [sys.executable, *s3]))
        until(lambda: socket.socket().connect_ex(("127.0.0.1", stack.ports["s3"])) == 0, what="the S3 server")
        stack.run("bucket")
        for service in ("code", "webserver", "daemon"):
            stack.start(service)
            if service != "daemon":
                until(lambda service=service: stack.healthy(service), every=2, what=service)
        yield stack


def objects(stack, prefix):
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{stack.ports['s3']}",
        region_name="us-east-1",
        aws_access_key_id=SECRETS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=SECRETS["AWS_SECRET_ACCESS_KEY"],
    )
    found = client.get_paginator("list_objects_v2").paginate(Bucket="deepdistill", Prefix=prefix)
    return {
        item["Key"]: client.get_object(Bucket="deepdistill", Key=item["Key"])["Body"].read()
        for page in found
        for item in page.get("Contents", [])
    }


def dump(stack):
    command = [Path(INITDB).resolve().parent / "pg_dump", "-h", "127.0.0.1", "-p", str(stack.ports["postgres"])]
    environment = {**os.environ, "PGPASSWORD": SECRETS["POSTGRES_PASSWORD"]}
    return subprocess.run(
        [*command, "-U", "deepdistill", "dagster"], env=environment, capture_output=True, check=True
    ).stdout


def test_a_backfill_runs_through_the_stack_of_compose(stack):
    keys = [{"path": [name]} for name in ("raw_queries", "clean_queries")]
    launched = stack.ask(LAUNCH, keys=keys, partitions=["digits-2", "digits-3"])["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched

    def finished():
        found = stack.ask(STATUS, id=launched["backfillId"])["partitionBackfillOrError"]
        return found["status"].startswith(("COMPLETED", "FAILED", "CANCELED")) and found["status"]

    assert until(finished, 600, every=2, what="the backfill") == "COMPLETED_SUCCESS"
    tables = objects(stack, "small/lake/")
    made = {key for key in tables if key.endswith("/data.parquet")}
    assert {f"small/lake/clean_queries/partition=digits-{level}/data.parquet" for level in (2, 3)} <= made
    logs = objects(stack, "compute-logs/")
    assert logs  # what the steps wrote
    assert not list((stack.home / "dagster").rglob("*.db"))  # every event is in Postgres
    assert stack.healthy("daemon")

    doctor = [sys.executable, "-m", "jobs.cli", "doctor"]
    said = subprocess.run(doctor, env=stack.variables("code"), cwd=CLONE, capture_output=True, text=True).stdout
    for line in ("lake", "events", "step logs"):
        assert re.search(rf"^ok +{line} ", said, re.M), said

    everything = [dump(stack), said.encode(), *tables.values(), *logs.values()]
    everything += [file.read_bytes() for file in stack.home.rglob("*") if file.is_file()]
    for secret in (SECRETS["POSTGRES_PASSWORD"], SECRETS["AWS_SECRET_ACCESS_KEY"]):
        assert not any(secret.encode() in content for content in everything)
