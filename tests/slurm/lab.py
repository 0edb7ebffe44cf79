"""A real Slurm on this machine: two nodes in namespaces of their own, with real accounting.

Each node is a slurmd with its own host name, address, process tree, /dev/shm and local disk (the
folder ``private``), so killing it is a power cut. Everything is in one folder and on free ports
of the loopback address; several labs can run side by side. Nodes claim more processors than there
are.

By hand: ``python -m tests.slurm.lab DIR`` starts one, prints the environment and stops it at
Ctrl-C.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.slurm.configuration import accounting, database_user, slurm_configuration
from tests.slurm.daemons import Daemon, succeeds
from tests.support.training import environment

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "sacct", "unshare")
PACKAGES = (
    "slurmctld slurmd slurm-client munge slurmdbd slurm-wlm-mysql-plugin mariadb-server-core "
    "mariadb-client-core"
)
NODES = ("n1", "n2")
_PORTS = len(NODES) + 3
_NODE = (
    'hostname "$1" && mount --bind "$2" /etc/hosts && '
    'mount -t tmpfs -o mode=1777 shm /dev/shm && mount -t tmpfs private "$3" && '
    '{ slurmd -D -N "$1" & wait $!; }'
)


def missing() -> str:
    """Say why no lab can be started here; empty if one can."""
    if os.getuid() != 0:
        return "a lab of Slurm nodes needs root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install {PACKAGES}"
    if not succeeds(["unshare", "--uts", "--mount", "--pid", "--fork", "true"]):
        return "no namespaces can be made here"
    return ""


class Lab:
    """A cluster that runs; :func:`started` makes one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, _free_ports(_PORTS)
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        self._daemons: dict[str, Daemon] = {}
        for name in ("log", "state", "spool", "db", "private"):
            (folder / name).mkdir()

    def run(self, *command: str, check: bool = True) -> str:
        """Run a program, e.g. a client of Slurm; return what it prints."""
        done = subprocess.run(
            command,
            env={**environment(), **self.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def start(self) -> None:
        """Start all daemons; takes about three seconds."""
        self._start_munge()
        self._start_accounting()
        (self.folder / "slurm.conf").write_text(slurm_configuration(self.folder, self.port, NODES))
        (self.folder / "cgroup.conf").write_text("")
        self._write_hosts()
        self._start_controller()
        for node in NODES:
            self.power_on(node)

    @contextlib.contextmanager
    def without_controller(self) -> Iterator[None]:
        """Stop the controller, so that no client gets an answer, for as long as the block runs.

        Clients give up soon: each tries for MessageTimeout, 10 s by default.
        """
        before, hasty = self.environment, self.folder / "hasty.conf"
        hasty.write_text(Path(before["SLURM_CONF"]).read_text() + "MessageTimeout=1\n")
        self._daemons.pop("slurmctld").end()
        self.environment = {**before, "SLURM_CONF": str(hasty)}
        try:
            yield
        finally:
            self.environment = before
            self._start_controller()
            for node in NODES:  # it takes no jobs until it has heard of them again
                self._daemons["slurmctld"].wait_until(functools.partial(self.takes_jobs, node), 30)

    def power_on(self, node: str) -> None:
        """Start a node and wait until it takes jobs."""
        (self.folder / "spool" / node).mkdir(exist_ok=True)
        namespaces = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child=KILL"]
        hosts, private = str(self.folder / "hosts"), str(self.folder / "private")
        daemon = self._start(
            node, *namespaces, "--mount-proc", "bash", "-c", _NODE, "init", node, hosts, private
        )
        daemon.wait_until(lambda: self.takes_jobs(node), 30)

    def power_off(self, node: str) -> None:
        """Cut a node off with everything that runs on it."""
        self._daemons.pop(node).kill()

    def stop(self) -> None:
        """Cancel all jobs and end all daemons."""
        self.run("scancel", "--quiet", "--user=root", check=False)
        end = time.monotonic() + 10
        while self.run("squeue", "-h", check=False) and time.monotonic() < end:
            time.sleep(0.2)
        for name, daemon in reversed(self._daemons.items()):
            if name in NODES:
                daemon.kill()
            else:
                daemon.end()

    def _start(self, name: str, *command: str) -> Daemon:
        prefixed = ["env", *(f"{key}={value}" for key, value in self.environment.items())]
        daemon = self._daemons[name] = Daemon(name, [*prefixed, *command], self.folder)
        return daemon

    def _start_controller(self) -> None:
        controller = self._start("slurmctld", "slurmctld", "-D", "-i")
        controller.wait_until(lambda: "is UP" in self.run("scontrol", "ping", check=False), 15)

    def _start_munge(self) -> None:
        folder = self.folder
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        arguments = {
            "key-file": key,
            "socket": folder / "munge.sock",
            "pid-file": folder / "munged.pid",
            "log-file": folder / "log" / "munged.log",
            "seed-file": folder / "munge.seed",
        }
        options = [f"--{name}={path}" for name, path in arguments.items()]
        munge = self._start("munged", "munged", "--foreground", "--force", *options)
        munge.wait_until((folder / "munge.sock").exists, 10)

    def _start_accounting(self) -> None:
        folder, port = self.folder, self.port
        database = folder / "db"
        options = ["--no-defaults", f"--datadir={database}", "--user=root"]
        made = ("--skip-test-db", "--auth-root-authentication-method=normal")
        self.run("mariadb-install-db", *options, *made)
        sock = folder / "db.sock"
        server = self._start(
            "mariadbd",
            "mariadbd",
            *options,
            f"--socket={sock}",
            f"--port={port + 2}",
            "--bind-address=127.0.0.1",
            f"--pid-file={folder / 'mariadbd.pid'}",
            "--innodb-buffer-pool-size=64M",
            "--innodb-lock-wait-timeout=900",
            "--innodb-flush-log-at-trx-commit=0",
        )
        client = ["mariadb", "--no-defaults", "-S", str(sock), "-u", "root", "-e"]
        server.wait_until(lambda: succeeds([*client, "select 1"]), 30)
        subprocess.run([*client, database_user()], check=True, capture_output=True)
        path = folder / "slurmdbd.conf"
        path.write_text(accounting(folder, port))
        path.chmod(0o600)
        (folder / "slurm.conf").write_text(slurm_configuration(folder, port, NODES))
        daemon = self._start("slurmdbd", "slurmdbd", "-D")
        listing = ["sacctmgr", "-n", "list", "cluster"]
        daemon.wait_until(lambda: succeeds(listing, self.environment), 30)

    def _write_hosts(self) -> None:
        lines = [f"127.0.0.{11 + place} {node}" for place, node in enumerate(NODES)]
        known = Path("/etc/hosts").read_text()
        (self.folder / "hosts").write_text(known + "\n".join(lines) + "\n")

    def takes_jobs(self, node: str) -> bool:
        """Return whether a node is up and not drained."""
        state = self.run("sinfo", "-h", "-n", node, "-o", "%T", check=False)
        return bool(state) and set(state.split()) <= {"idle", "mixed", "allocated"}


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Lab]:
    """Give a running lab in an empty folder with a short path; stop it afterwards."""
    lab = Lab(folder)
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports(count: int) -> int:
    """Return the first of some consecutive ports that nobody listens on."""
    for first in range(21000 + os.getpid() % 200 * 40, 40000, 40):
        if not any(_listens(first + place) for place in range(count)):
            return first
    raise RuntimeError("no free ports")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def exports(environment: Mapping[str, str]) -> str:
    """Return an environment as lines for a shell."""
    return "".join(f"export {name}='{value}'\n" for name, value in environment.items())


def main(folder: Path) -> None:
    """Run a lab until Ctrl-C."""
    folder.mkdir(parents=True)
    with started(folder) as lab:
        sys.stdout.write(exports(lab.environment) + "# Ctrl-C stops the cluster\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(60)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
