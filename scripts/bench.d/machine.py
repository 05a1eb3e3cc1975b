"""What is asked of the machine: commands, caches, CPU time and memory of a process, bytes on disk."""

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
AS_POSTGRES = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]


class Failed(Exception):
    """A command failed; the text says which, and what it printed."""


def run(*command, **options):
    """Runs a command and returns what it printed."""
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise Failed(f"{' '.join(str(word) for word in command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def postgres_directory(path):
    """A directory that the Postgres servers may write to."""
    path.mkdir(parents=True)
    if os.geteuid() == 0:
        run("chown", "postgres:", path)
    path.chmod(0o700)
    return path


def drop_caches():
    """Empties the kernel's page cache, on every filesystem."""
    run("sync")
    run(*AS_ROOT, "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")


def read_all(directory):
    """Reads all files below a directory, one after the other; returns how many bytes they have."""
    done = 0
    for where, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(where, name), "rb", buffering=0) as file:
                while block := file.read(1 << 20):
                    done += len(block)
    return done


def bytes_on_disk(path):
    run("sync")
    return int(run("du", "-s", "--block-size=1", path).split()[0])


class Meter:
    """Wall time, CPU time of the whole machine and of one process (None: there is none), CPU time that the host took for others, and that
    process' memory."""

    def __init__(self, pid):
        self.pid = pid
        self.seconds = self.machine_cpu = self.stolen_cpu = self.process_cpu = self.resident_bytes = 0

    def __enter__(self):
        self._start = time.perf_counter(), machine_cpu(), process_cpu(self.pid)
        return self

    def __exit__(self, *_):
        wall, (machine, stolen), process = self._start
        self.seconds = time.perf_counter() - wall
        machine_now, stolen_now = machine_cpu()
        self.machine_cpu, self.stolen_cpu = machine_now - machine, stolen_now - stolen
        self.process_cpu = process_cpu(self.pid) - process
        self.resident_bytes = resident_bytes(self.pid)


def machine_cpu():
    """CPU seconds that the machine was busy since boot, and that it could have been but did not get from its host."""
    user, nice, system, _idle, _wait, irq, softirq, stolen = (int(ticks) for ticks in Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq) / TICKS, stolen / TICKS


def process_cpu(pid):
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_bytes(pid):
    if pid is None:
        return 0
    return int(re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1]) * 1024


def warn_if_unfit():
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: the machine is busy with something else (load {load:.1f}): the figures will scatter", file=sys.stderr)
    if pages_out_by_itself():
        print("warning: this kernel pages out what was not used for a while (DAMON): caches that should be warm may not be", file=sys.stderr)


def pages_out_by_itself():
    """Whether the kernel watches which memory is used (DAMON) to take away what was not for a while, cached files too: then nothing stays warm."""
    states = Path("/sys/kernel/mm/damon/admin/kdamonds").glob("*/state")
    return any(state.read_text().strip() == "on" for state in states)


def describe(options):
    """What a reader must know to judge the figures."""
    return {
        "load_before": os.getloadavg()[0],
        "pages_out_by_itself": pages_out_by_itself(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "filesystem": run("stat", "-f", "-c", "%T", options.work).strip(),
        "postgres": run(options.postgres / "postgres", "--version").strip(),
        "rounds": options.rounds,
        "quick": options.quick,
    }
