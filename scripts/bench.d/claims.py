"""What zenith promises in figures of its own: snapshots and writable views cost the same at every size, and next to nothing."""

import fcntl
import os
import shutil
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import layers
from machine import Meter, bytes_on_disk, resident_bytes
from postgres import Cluster
from report import progress
from sides import Plain, Zenith

MIB = 1 << 20
VIEWS = 20
REQUESTS = 20_000
NO_SUCH_IOCTL = 0x5A00
PAGE = bytes(8192)
SCANNED_ROWS = 4_000_000  # of 128 bytes: more than 500 MiB, as tables have it


@dataclass
class Answer:
    """One promise: what was measured, and the limit it must stay under; without a limit, something to compare with."""

    claim: str
    what: str
    measured: float
    limit: float | None
    unit: str
    error: float | None = None  # the standard error of what was measured


def one_gib(side, size):
    side.fill(size.claim_scale["1GiB"])


def ten_gib(side, size):
    side.fill(size.claim_scale["10GiB"])


def many_files(side, size):
    """Small tables are what makes many files in a real data directory."""
    side.fill(size.claim_scale["files"])
    with side.cluster.running():
        for first in range(0, size.files, 1000):
            side.cluster.sql(f"DO $$ BEGIN FOR i IN {first}..{first + 999} LOOP "
                             "EXECUTE 'CREATE TABLE file_' || i || ' AS SELECT 1 AS one'; END LOOP; END $$")
        side.cluster.sql("CHECKPOINT")


def scanned_table(side, size):
    """All hint bits are set, as in any table that has been vacuumed since it was loaded."""
    side.fill(size.claim_scale["files"])
    with side.cluster.running():
        side.cluster.sql(f"CREATE TABLE wide AS SELECT g, repeat(md5(g::text), 3) AS pad FROM generate_series(1, {SCANNED_ROWS}) g")
        side.cluster.sql("VACUUM (FREEZE) wide")


def timed(action):
    """Milliseconds of a command, as its user sees it: with the start of its process."""
    with Meter(None) as meter:
        action()
    return meter.seconds * 1000


def percentile(values, percent):
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def snapshots_under_load(side, size):
    """Latencies of many snapshots while eight clients write: as mkdir and as a command take them, and of as many starts of the program that do
    nothing else."""
    control = side.cluster.data / ".zenith/snapshot"
    with ThreadPoolExecutor() as pool:
        load = pool.submit(side.cluster.pgbench, 8, 3 + size.snapshots // 3)
        time.sleep(2)
        made, commands, starts = [], [], []
        while len(commands) < size.snapshots and not load.done():
            made.append(timed(lambda: os.mkdir(control / f"made-{len(made)}")))
            time.sleep(0.05)
            commands.append(timed(lambda: side.snapshot(f"busy-{len(commands)}")))
            time.sleep(0.05)
            starts.append(timed(lambda: side.zenith("version")))
            time.sleep(0.05)
        load.result()
    return made, commands, starts


def snapshot_costs(claim, side, size):
    with side.cluster.running():
        made, commands, starts = snapshots_under_load(side, size)
        side.cluster.sql("CHECKPOINT")
        before = bytes_on_disk(side.store)
        side.snapshot("quiet")
        added = bytes_on_disk(side.store) - before
    resident = resident_bytes(side.service_pid())
    progress(f"{claim}: {len(commands)} snapshots under load, p50 {percentile(commands, 50):.1f} ms, max {max(commands):.1f} ms")
    return [
        Answer(claim, f"snapshot under load by mkdir, p50 of {len(made)}", percentile(made, 50), 10, "ms"),
        Answer(claim, f"snapshot under load by mkdir, p99 of {len(made)}", percentile(made, 99), 10, "ms"),
        Answer(claim, f"snapshot under load by a command, p50 of {len(commands)}", percentile(commands, 50), 20, "ms"),
        Answer(claim, f"snapshot under load by a command, p99 of {len(commands)}", percentile(commands, 99), 20, "ms"),
        Answer(claim, "the program's start alone under that load, p50", percentile(starts, 50), None, "ms"),
        Answer(claim, "the program's start alone under that load, p99", percentile(starts, 99), None, "ms"),
        Answer(claim, "store grows by a snapshot", added / MIB, 1, "MiB"),
        Answer(claim, "service resident after that load", resident / MIB, 100, "MiB"),
    ]


def branch(side, name):
    side.ask("POST", "/branches", {"name": name, "start": {"view": "main@quiet"}})


def view_costs(claim, side):
    """Makes branches of the same snapshot, one after the other, by a request and by a command that mounts them, too."""
    made = [timed(lambda: branch(side, f"branch-{number}")) for number in range(VIEWS)]
    views = [side.home / f"view-{number}" for number in range(VIEWS)]
    before = bytes_on_disk(side.store)
    ready = [timed(lambda: side.mount("main@quiet", view, "--cow", view.name)) for view in views]
    added = (bytes_on_disk(side.store) - before) / VIEWS
    for view in views:
        side.zenith("umount", view)
    return [
        Answer(claim, f"writable view ready to mount by a request, p50 of {VIEWS}", percentile(made, 50), 10, "ms"),
        Answer(claim, f"writable view ready to mount by a request, slowest of {VIEWS}", max(made), 10, "ms"),
        Answer(claim, f"writable view mounted by a command, p50 of {VIEWS}", percentile(ready, 50), 50, "ms"),
        Answer(claim, f"writable view mounted by a command, slowest of {VIEWS}", max(ready), 50, "ms"),
        Answer(claim, "store grows by a view", added / MIB, 1, "MiB"),
    ]


def scan_costs(claim, side):
    """A server's start, its recovery and a scan of a large table on a fresh view."""
    with side.cluster.running():
        side.cluster.sql("CHECKPOINT")
        side.snapshot("quiet")
    before = bytes_on_disk(side.store)
    side.mount("main@quiet", side.home / "view", "--cow", "view")
    copy = Cluster(side.options.postgres, side.home / "view", side.home / "view-sockets")
    with copy.running():
        copy.sql("SELECT count(*) FROM wide")
        added = bytes_on_disk(side.store) - before
        scanned = int(copy.sql("SELECT pg_relation_size('wide')")) / MIB
    side.zenith("umount", side.home / "view")
    return [Answer(claim, f"store grows by recovery and a scan of {scanned:.0f} MiB", added / MIB, 2, "MiB")]


def snapshots_and_views(claim, side, size):
    return snapshot_costs(claim, side, size) + view_costs(claim, side)


def microseconds(action):
    """The median and the 99th percentile of many calls, one after the other."""
    times = []
    for _ in range(REQUESTS):
        start = time.perf_counter_ns()
        action()
        times.append((time.perf_counter_ns() - start) / 1000)
    return percentile(times, 50), percentile(times, 99)


def request_costs(claim, side):
    """What a request costs that does nothing, and what those of a commit cost, here and on the plain filesystem."""
    plain = Plain(side.options, f"{claim}-plain")
    answers = []
    for place in (side, plain):
        (place.cluster.data / "pg_wal").mkdir(exist_ok=True)
        file = os.open(place.cluster.data / "pg_wal" / "file", os.O_RDWR | os.O_CREAT, 0o600)
        os.pwrite(file, PAGE, 0)
        os.fdatasync(file)

        def nothing():
            try:
                fcntl.ioctl(file, NO_SUCH_IOCTL)
            except OSError:
                pass

        def write():
            os.pwrite(file, PAGE, 0)

        def write_and_sync():
            write()
            os.fdatasync(file)

        calls = {"a call that is refused": nothing, "a sync of nothing": lambda: os.fdatasync(file), "a write of WAL": write,
                 "a write of WAL and its sync": write_and_sync}
        for what, call in calls.items():
            median, tail = microseconds(call)
            answers += [Answer(claim, f"{what} on {place.name}, {name}", value, None, "us") for name, value in (("p50", median), ("p99", tail))]
        os.close(file)
    return answers


CLAIMS = {
    "requests": (lambda side, size: None, lambda claim, side, _size: request_costs(claim, side)),
    "at-1GiB": (one_gib, snapshots_and_views),
    "at-10GiB": (ten_gib, snapshots_and_views),
    "with-many-files": (many_files, snapshots_and_views),
    "scan-of-a-view": (scanned_table, lambda claim, side, _size: scan_costs(claim, side)),
    "history": (one_gib, lambda claim, side, size: layers.history_costs(claim, side, size, Answer)),
    "depth": (one_gib, lambda claim, side, size: layers.depth_costs(claim, side, size, Answer)),
    "company": (one_gib, lambda claim, side, size: layers.company_costs(claim, side, size, Answer)),
    "packed": (one_gib, lambda claim, side, _size: layers.packed_costs(claim, side, Answer)),
}


def measure(claim, options, size):
    prepare, costs = CLAIMS[claim]
    progress(f"preparing {claim}")
    side = Zenith(options, claim)
    prepare(side, size)
    answers = costs(claim, side, size)
    side.close()
    shutil.rmtree(side.store)
    return [asdict(answer) for answer in answers]
