"""What is measured on every side, and in what order.

A workload gets a side whose server is up, brings it into a defined state (checkpoint, warm or cold caches), and
returns a rate (more is better) with the amount of work done and what that cost, so that CPU time can be told per
piece of work: a transaction, or a MiB. What leaves warm caches warm is measured in short turns with all servers up:
a machine's speed drifts within the minute that a longer one takes.
"""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

from machine import Meter, drop_caches, read_all
from report import progress


PAGE = 8192
WAL_SEGMENT = 16 << 20
TURNS = 5  # in a round, of what is measured in turns
SELECTS = "-n", "-S"


@dataclass
class Size:
    """How large and how long."""

    scale: int  # pgbench: 100,000 rows, 15 MiB, each
    seconds: int  # of one pgbench run
    snapshot_every: int  # seconds, in the workload with snapshots
    bulk_rows: int  # of a bulk load, 130 bytes each
    snapshots: int  # how many snapshots a latency is taken from
    claim_scale: dict  # pgbench scale of each claim about sizes
    files: int
    history_seconds: int  # with a snapshot in each of them

    @staticmethod
    def full():
        return Size(100, 20, 5, 4_000_000, 200, {"1GiB": 70, "10GiB": 700, "files": 10}, 100_000, 600)

    @staticmethod
    def quick():
        return Size(25, 5, 1, 1_000_000, 100, {"1GiB": 7, "10GiB": 70, "files": 10}, 10_000, 60)


@dataclass
class Sample:
    """One measurement of one workload on one side."""

    turn: int  # those of all sides with the same number belong together
    workload: str
    side: str
    rate: float
    service_cpu_ms: float  # of the filesystem's own process, per transaction or MiB
    machine_cpu_ms: float  # of everything on the machine, per transaction or MiB
    stolen: float  # part of the machine's CPU time that its host took for others
    resident_bytes: int


@dataclass
class Load:
    """What one run of a workload came to."""

    rate: float
    amount: int
    meter: Meter


def pgbench(side, seconds, clients, *more):
    with Meter(side.service_pid()) as meter:
        transactions, rate = side.cluster.pgbench(clients, seconds, *more)
    return Load(rate, transactions, meter)


def warm(side):
    """Brings all of the database into the caches, which another side's cold start may have emptied."""
    read_all(side.cluster.data / "base")


def tpcb_with_snapshots(side, size):
    warm(side)
    side.cluster.sql("CHECKPOINT")
    with snapshots_every(size.snapshot_every, side):
        return pgbench(side, size.seconds, 8)


@contextmanager
def snapshots_every(seconds, side):
    """Takes snapshots beside what runs in the block, then removes them again."""
    over, tags = threading.Event(), []

    def take():
        while not over.wait(seconds):
            tags.append(f"load-{len(tags)}")
            side.snapshot(tags[-1])

    with ThreadPoolExecutor() as pool:
        taking = pool.submit(take)
        try:
            yield
        finally:
            over.set()
        taking.result()
    for tag in tags:
        side.drop_snapshot(tag)


def select_only_cold(side, size):
    """From caches that are empty when it begins."""
    restart_cold(side)
    return pgbench(side, size.seconds, 8, *SELECTS)


def wal_writes(side, size):
    """What a commit asks of the filesystem, without Postgres: pages that are overwritten one after the other, each made durable."""
    path = side.cluster.data / "pg_wal" / "pattern"
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(file, bytes(WAL_SEGMENT), 0)
    os.fsync(file)
    page, written = os.urandom(PAGE), 0
    with Meter(side.service_pid()) as meter:
        end = time.monotonic() + size.seconds / 2
        while time.monotonic() < end:
            os.pwrite(file, page, written * PAGE % WAL_SEGMENT)
            os.fdatasync(file)
            written += 1
    os.close(file)
    path.unlink()
    return Load(written / meter.seconds, written, meter)


def bulk_load(side, statement):
    """MiB a second until the table is on disk: a load that is only in memory is not done."""
    side.cluster.sql("DROP TABLE IF EXISTS bulk; CREATE TABLE bulk (LIKE pgbench_accounts); CHECKPOINT")
    with Meter(side.service_pid()) as meter:
        side.cluster.sql(f"{statement}; CHECKPOINT")
    megabytes = int(side.cluster.sql("SELECT pg_relation_size('bulk') >> 20"))
    side.cluster.sql("DROP TABLE bulk; CHECKPOINT")
    return Load(megabytes / meter.seconds, megabytes, meter)


def copy(side, size):
    rows = side.options.work / "bulk.csv"
    if not rows.exists():
        with rows.open("w") as file:
            file.writelines(f"{row}\t1\t0\t{'x' * 84}\n" for row in range(size.bulk_rows))
    return bulk_load(side, f"COPY bulk FROM '{rows}'")


def create_table_as(side, size):
    return bulk_load(side, f"DROP TABLE bulk; CREATE TABLE bulk AS SELECT * FROM pgbench_accounts WHERE aid <= {size.bulk_rows}")


def restart_cold(side):
    side.cluster.stop()
    drop_caches()
    side.cluster.start()


def cold_scan(side, _size):
    """Postgres' caches and the kernel's are empty. Whatever the filesystem's own process remembers, it may use. What was updated is scanned
    before, so that nothing is left to prune, which writes."""
    side.cluster.sql("SELECT count(*) FROM pgbench_accounts")
    side.cluster.sql("CHECKPOINT")
    restart_cold(side)
    with Meter(side.service_pid()) as meter:
        side.cluster.sql("SELECT count(*) FROM pgbench_accounts")
    megabytes = int(side.cluster.sql("SELECT pg_relation_size('pgbench_accounts') >> 20"))
    return Load(megabytes / meter.seconds, megabytes, meter)


def crash_recovery(side, size):
    """The start of a server that was stopped without a checkpoint: it replays its WAL."""
    warm(side)
    side.cluster.sql("CHECKPOINT")
    side.cluster.pgbench(8, size.seconds)
    wal = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), redo_lsn)::bigint >> 20 FROM pg_control_checkpoint()"
    megabytes = int(side.cluster.sql(wal))
    side.cluster.stop("immediate")
    with Meter(side.service_pid()) as meter:
        side.cluster.start()
    return Load(megabytes / meter.seconds, megabytes, meter)


class InTurns:
    """pgbench with so many clients and options. All of the table fits the kernel's cache and not Postgres' own."""

    def __init__(self, clients, *options):
        self.pgbench = clients, "-n", *options


# In this order: the later ones read what TPC-B has written between snapshots.
WORKLOADS = {
    "tpcb-1": InTurns(1),
    "tpcb-8": InTurns(8),
    "tpcb-8-snapshots": tpcb_with_snapshots,
    "select-8": InTurns(8, "-S"),
    "select-8-cold": select_only_cold,
    "wal-writes": wal_writes,
    "copy": copy,
    "create-table-as": create_table_as,
    "cold-scan": cold_scan,
    "crash-recovery": crash_recovery,
}


def settle(cluster):
    """So that nothing is left to prune, which writes, or for the kernel to write out in another's turn."""
    cluster.sql("VACUUM pgbench_branches, pgbench_tellers")
    cluster.sql("SELECT count(*) FROM pgbench_accounts")
    cluster.sql("CHECKPOINT")


def measure_in_turns(sides, name, size, number):
    seconds = size.seconds // TURNS
    with ExitStack() as servers:
        for side in sides:
            servers.enter_context(side.cluster.running())
        for side in sides:
            warm(side)
            side.cluster.pgbench(8, seconds, *SELECTS)
            settle(side.cluster)
        for turn in range(number * TURNS, (number + 1) * TURNS):
            for side in rotated(sides, turn):
                load = pgbench(side, seconds, *WORKLOADS[name].pgbench)
                side.cluster.sql("CHECKPOINT")
                yield sample(turn, name, side, load)


def measure_by_themselves(sides, name, size, number):
    for side in rotated(sides, number):
        with side.cluster.running():
            load = WORKLOADS[name](side, size)
        yield sample(number, name, side, load)


def rotated(sides, number):
    first = number % len(sides)
    return sides[first:] + sides[:first]


def sample(turn, name, side, load):
    progress(f"turn {turn + 1}  {name:18}  {side.name:8}  {load.rate:12.1f}")
    per_piece, meter = 1000 / max(load.amount, 1), load.meter
    return Sample(turn, name, side.name, load.rate, meter.process_cpu * per_piece, meter.machine_cpu * per_piece,
                  meter.stolen_cpu / (meter.seconds * os.cpu_count()), meter.resident_bytes)


def run_rounds(sides, chosen, rounds, size):
    samples = []
    for number in range(rounds):
        for name in chosen:
            measure = measure_in_turns if isinstance(WORKLOADS[name], InTurns) else measure_by_themselves
            samples += [asdict(found) for found in measure(sides, name, size, number)]
    return samples
