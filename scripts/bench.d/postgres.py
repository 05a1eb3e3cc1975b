"""A stock Postgres cluster, with the same settings wherever its data lies."""

import re
from contextlib import contextmanager

from machine import AS_POSTGRES, postgres_directory, run

# Checkpoints come when a workload asks for one, so that none falls into one side's measurement only; autovacuum
# is off for the same reason (pgbench vacuums its small tables before each run). All that makes commits safe is on.
# WAL's buffers are as `zenith pg create` has them.
SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "256MB",
    "wal_buffers": "32MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
}


class Cluster:
    def __init__(self, programs, data, sockets):
        self.programs, self.data, self.sockets = programs, data, sockets
        postgres_directory(sockets)

    def _run(self, program, *arguments):
        return run(*AS_POSTGRES, self.programs / program, *arguments)

    def initdb(self):
        self._run("initdb", "-D", self.data, "--no-locale", "--encoding=UTF8", "--data-checksums", "-A", "trust")

    def start(self):
        options = " ".join(f"-c {name}='{value}'" for name, value in SETTINGS.items())
        self._run("pg_ctl", "start", "-D", self.data, "-w", "-t", "300", "-s", "-l", self.sockets / "server.log",
                  "-o", f"{options} -c unix_socket_directories={self.sockets}")

    def stop(self, mode="fast"):
        self._run("pg_ctl", "stop", "-D", self.data, "-s", "-w", "-t", "300", "-m", mode)

    @contextmanager
    def running(self):
        self.start()
        yield self
        self.stop()

    def sql(self, statement):
        return self._run("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", self.sockets, "-d", "postgres",
                         "-c", statement).strip()

    def fill(self, scale):
        self._run("pgbench", "-i", "-q", "-s", scale, "-h", self.sockets, "postgres")

    def pgbench(self, clients, seconds, *more):
        """Transactions, and transactions a second without the time to connect."""
        said = self._run("pgbench", "-c", clients, "-j", min(clients, 2), "-T", seconds, "-h", self.sockets, *more, "postgres")
        return int(re.search(r"processed: (\d+)", said)[1]), float(re.search(r"^tps = ([\d.]+)", said, re.M)[1])
