"""What sealed layers cost in the long run: a history of many snapshots that is pruned, and layers that are packed."""

import json
import math
import os
import random
import shutil
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from machine import AS_ROOT, Failed, Meter, bytes_on_disk, drop_caches, read_all, resident_bytes, run
from postgres import Cluster
from report import progress, standard_error
from sides import Plain, Zenith
from workloads import TURNS, rotated, settle, warm

MIB = 1 << 20
BLOCK = 4096
PAGE = 8192
PROBES = 20  # turns in which speeds are compared
READS = 5  # scans, and readings of pages, of which the median counts
PROBED = {"select-only": ["-S"], "TPC-B": []}
RANDOM_READS = 3000
KEPT = 10
BRANCHES = 20
IDLE_VIEWS = 50


class Place:
    """A cluster whose speed is compared with others'; `around` is entered for each of its turns."""

    def __init__(self, side, name=None, cluster=None, around=nullcontext):
        self.name = name or side.name
        self.cluster = cluster or side.cluster
        self.around = around
        self.service_pid = side.service_pid


@dataclass
class Ratio:
    """The mean of many turns' ratios, and its standard error."""

    mean: float
    error: float

    def against(self, before):
        mean = self.mean / before.mean
        return Ratio(mean, mean * math.hypot(self.error / self.mean, before.error / before.mean))


def speeds(first, others, size):
    """How fast TPC-B and selects are in each of the others against the first, by place and kind. A snapshot's first minute, when each block is
    written for the first time, is not in it: tpcb-8-snapshots measures that."""
    places = [first, *others]
    for place in places:
        warm(place)
        place.cluster.pgbench(8, 3 * size.seconds)
        settle(place.cluster)
    turns = [{place.name: probe(place, size) for place in rotated(places, number)} for number in range(PROBES)]
    return {place.name: {kind: compared(first, place, kind, turns) for kind in PROBED} for place in others}


def compared(first, place, kind, turns):
    ratios = [turn[place.name][kind] / turn[first.name][kind] for turn in turns]
    found = Ratio(statistics.geometric_mean(ratios), standard_error(ratios))
    progress(f"{kind}: {place.name} against {first.name}: {found.mean:.3f} ± {found.error:.3f}")
    return found


def probe(place, size):
    """Transactions a second, by kind."""
    rates = {}
    with place.around():
        for kind, more in PROBED.items():
            with Meter(place.service_pid()) as meter:
                transactions, rates[kind] = place.cluster.pgbench(8, size.seconds // TURNS, "-n", *more)
            machine, service = (1e6 * cpu / max(transactions, 1) for cpu in (meter.machine_cpu, meter.process_cpu))
            progress(f"{kind:11}  {place.name:8}  {rates[kind]:9.1f}  {machine:6.1f} us of CPU each, {service:.1f} of the service")
        settle(place.cluster)
    return rates


def slower(answer, claim, what, ratio, limit):
    """An answer: by how much a speed is less, in percent."""
    return answer(claim, what, 100 * (1 - ratio.mean), limit, "%", 100 * ratio.error)


def storage(side, name="local"):
    storages = json.loads(side.zenith("storage", "list", "--json"))
    return next(storage for storage in storages if storage["name"] == name)


def wait_for_upkeep(side, name="local"):
    """Until the storage has nothing to do any more: nothing waits, and its size and what can be merged have stopped to change."""
    states = []
    while len(states) < 3 or len(set(states[-3:])) > 1:
        time.sleep(3)
        found = storage(side, name)
        states.append((found["used"], found["unmerged"]))
        waits = "unpacked" if found["options"] else "unmerged"
        if found["unsummed"] or found[waits]:
            states.clear()


def write_with_snapshots(side, seconds):
    """Eight clients write, and every second a snapshot is taken; returns their names."""
    tags, deadline = [], time.monotonic() + seconds
    with ThreadPoolExecutor() as pool:
        load = pool.submit(side.cluster.pgbench, 8, seconds)
        while not load.done() and time.monotonic() < deadline:
            tags.append(f"second-{len(tags):04}")
            side.snapshot(tags[-1])
            time.sleep(max(0, 1 - (seconds - (deadline - time.monotonic())) % 1))
        load.result()
    return tags


def copy_changes(old, new, to):
    """Makes `to`, which is as `old`, as `new`: writes only the blocks that differ."""
    for directory, subdirectories, files in os.walk(new):
        relative = os.path.relpath(directory, new)
        target = to / relative
        target.mkdir(exist_ok=True)
        for name in set(os.listdir(target)) - set(subdirectories) - set(files) - {".zenith"}:
            run("rm", "-r", target / name)
        for name in files:
            before = old / relative / name if old else None
            copy_file(before, os.path.join(directory, name), target / name)


def copy_file(old, new, to):
    with open(new, "rb") as source, open(to, "r+b" if to.exists() else "w+b") as target:
        then = open(old, "rb") if old and old.exists() else None
        offset = 0
        while block := source.read(MIB):
            known = then.read(MIB) if then else b""
            if block != known:
                for at in range(0, len(block), BLOCK):
                    if block[at:at + BLOCK] != known[at:at + BLOCK]:
                        target.seek(offset + at)
                        target.write(block[at:at + BLOCK])
            offset += len(block)
        target.truncate(offset)
        if then:
            then.close()


def fresh_copy(side, tags):
    """Bytes of a new store with the same snapshots and nothing else, and of the one that is measured."""
    new = Zenith(side.options, f"{side.home.name}-fresh")
    views = []
    for tag in tags:
        view = side.home / f"view-{tag}"
        side.mount(f"main@{tag}", view)
        copy_changes(views[-1] if views else None, view, new.home / "data")
        new.snapshot(tag)
        views.append(view)
    wait_for_upkeep(new)
    used = bytes_on_disk(new.store / "layers"), bytes_on_disk(side.store / "layers")
    for view in views:
        side.zenith("umount", view)
    new.close()
    return used


def history_costs(claim, side, size, answer):
    """A cluster with a snapshot each second, and when most of these are gone, against itself before, as far as the plain filesystem has not become
    slower, too: tables grow there as well."""
    plain = Plain(side.options, f"{claim}-plain")
    plain.fill(size.claim_scale["1GiB"])
    with plain.cluster.running(), side.cluster.running():
        before = speeds(Place(plain), [Place(side)], size)[side.name]
        plain.cluster.pgbench(8, size.history_seconds)
        tags = write_with_snapshots(side, size.history_seconds)
        progress(f"{claim}: {len(tags)} snapshots")
        wait_for_upkeep(side)
        after = speeds(Place(plain), [Place(side)], size)[side.name]
        for tag in tags[:-KEPT]:
            side.drop_snapshot(tag)
        wait_for_upkeep(side)
        pruned = speeds(Place(plain), [Place(side)], size)[side.name]
        side.cluster.sql("CHECKPOINT")
        side.snapshot("end")
    wait_for_upkeep(side)
    answers = []
    for when, then in ((f"after {len(tags)} snapshots", after), ("after pruning", pruned)):
        for name in PROBED:
            what = f"{name} {when}, slower against plain than before"
            answers.append(slower(answer, claim, what, then[name].against(before[name]), 5))
    fresh, used = fresh_copy(side, [*tags[-KEPT:], "end"])
    answers.append(answer(claim, f"{used / MIB:.0f} MiB held after pruning, more than a fresh copy", 100 * (used / fresh - 1), 5, "%"))
    return answers


def write_and_snapshot(side, count, seconds):
    """Eight clients write, and meanwhile so many snapshots are taken; returns their names."""
    tags = []
    with ThreadPoolExecutor() as pool:
        load = pool.submit(side.cluster.pgbench, 8, seconds)
        for number in range(count):
            tags.append(f"number-{number:04}")
            side.snapshot(tags[-1])
        load.result()
    return tags


def branch_deep(side, tag):
    """A data directory that is twenty branches away from a snapshot; each of them has changed something."""
    for number in range(BRANCHES):
        directory, branch = side.home / f"deep-{number}", f"deep-{number}"
        side.mount(tag, directory, "--cow", branch)
        cluster = Cluster(side.options.postgres, directory, side.home / f"deep-{number}-sockets")
        with cluster.running():
            cluster.pgbench(8, 2)
        tag = f"{branch}@next"
        side.zenith("snapshot", "create", tag)
    return cluster


def depth_costs(claim, side, size, answer):
    """A cluster after a thousand snapshots, and a view far from where it began, against one that was filled and written to alike and has one snapshot:
    a first write costs the same everywhere then."""
    fresh = Zenith(side.options, f"{claim}-fresh")
    fresh.fill(size.claim_scale["1GiB"])
    with fresh.cluster.running(), side.cluster.running():
        fresh.cluster.pgbench(8, size.history_seconds // 4)
        tags = write_and_snapshot(side, size.snapshots * 5, size.history_seconds // 4)
        for each in (fresh, side):
            each.snapshot("last")
        deep = branch_deep(side, "main@last")
        wait_for_upkeep(side)
        wait_for_upkeep(fresh)
        with deep.running():
            places = [Place(side, f"after {len(tags)} snapshots"), Place(side, f"{BRANCHES} branches deep", deep)]
            found = speeds(Place(fresh, "fresh"), places, size)
    for number in range(BRANCHES):
        side.zenith("umount", side.home / f"deep-{number}")
    fresh.close()
    shutil.rmtree(fresh.store)
    return [slower(answer, claim, f"{kind} {place}, slower than without", ratio, 3) for place, kinds in found.items() for kind, ratio in kinds.items()]


def company_costs(claim, side, size, answer):
    """A cluster while many other views are mounted, which do nothing, against itself while they are not."""
    views = [side.home / f"idle-{number}" for number in range(IDLE_VIEWS)]

    @contextmanager
    def company():
        for view in views:
            side.mount(view.name, view)
        yield
        for view in views:
            side.zenith("umount", view)

    with side.cluster.running():
        side.snapshot("start")
        for view in views:
            side.zenith("branch", view.name, "main@start")
        wait_for_upkeep(side)
        alone = resident_bytes(side.service_pid())
        with company():
            resident = resident_bytes(side.service_pid())
        beside = Place(side, f"beside {IDLE_VIEWS} idle views", around=company)
        found = speeds(Place(side, "alone"), [beside], size)[beside.name]
    answers = [slower(answer, claim, f"{kind} {beside.name}, slower than alone", ratio, 3) for kind, ratio in found.items()]
    answers.append(answer(claim, "service resident, more by each of them", (resident - alone) / IDLE_VIEWS / MIB, None, "MiB"))
    return answers


class Packed:
    """A data directory in a compressed storage, and the same bytes elsewhere."""

    def __init__(self, side):
        self.home = side.home
        side.zenith("storage", "attach", "-c", f"path={self.home}/packed", "-c", "compression=zstd", "-n", "packed")
        side.zenith("branch", "base", "--empty", "--storage", "packed")
        self.files = self.home / "base"
        side.mount("base", self.files)
        run("cp", "-a", f"{self.home}/data/.", self.files)
        side.zenith("snapshot", "create", "base@cold")
        wait_for_upkeep(side, "packed")
        side.zenith("umount", self.files)
        side.zenith("mount", "base@cold", self.files)

    def bytes(self):
        return bytes_on_disk(self.home / "packed/packs") + bytes_on_disk(self.home / "packed/layers")


def raw_bytes(directory):
    return sum(os.path.getsize(os.path.join(where, name)) for where, _, names in os.walk(directory) for name in names)


def zstd_bytes(directory):
    """All files one after the other, in frames of 128 KiB."""
    command = "find . -type f -print0 | sort -z | xargs -0 cat | split -b 131072 --filter='zstd -3 -q -c' | wc -c"
    return int(subprocess.run(["bash", "-c", command], cwd=directory, check=True, capture_output=True, text=True).stdout)


def on_btrfs(home, source):
    """The directory on a btrfs that compresses, and the bytes that it takes there."""
    image, top = home / "image", home / "btrfs"
    run("truncate", "-s", "40G", image)
    run("mkfs.btrfs", "-q", image)
    top.mkdir()
    run(*AS_ROOT, "mount", "-o", "loop,compress=zstd:3", image, top)
    before = used(top)
    run("cp", "-a", f"{source}/.", top)
    return top, used(top) - before


def used(top):
    run("sync", "-f", top)
    time.sleep(1)
    space = os.statvfs(top)
    return (space.f_blocks - space.f_bfree) * space.f_frsize


def scan(directory):
    """MiB a second of reading all files, one after the other, that nothing has in memory."""
    drop_caches()
    with Meter(None) as meter:
        done = read_all(directory)
    return done / MIB / meter.seconds


def pages(directory):
    """Microseconds of reading a page at a random place of the largest file, that nothing has in memory."""
    largest = max((os.path.join(where, name) for where, _, names in os.walk(directory) for name in names), key=os.path.getsize)
    count = os.path.getsize(largest) // PAGE
    chosen = random.Random(1).choices(range(count), k=RANDOM_READS)
    drop_caches()
    file = os.open(largest, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    with Meter(None) as meter:
        for page in chosen:
            if len(os.pread(file, PAGE, page * PAGE)) != PAGE:
                raise Failed(f"{largest}: a short read")
    os.close(file)
    return meter.seconds / RANDOM_READS * 1e6


def packed_costs(claim, side, answer):
    packed = Packed(side)
    plain = side.home / "plain"
    run("cp", "-a", f"{packed.files}/.", plain)
    btrfs, btrfs_bytes = on_btrfs(side.home, plain)
    sizes = {"plain": raw_bytes(plain), "zstd": zstd_bytes(plain), "btrfs zstd:3": btrfs_bytes, "packed": packed.bytes()}
    answers = [answer(claim, f"{name}: bytes", size / MIB, None, "MiB") for name, size in sizes.items()]
    answers.append(answer(claim, "packed, more than zstd -3 in frames of 128 KiB", 100 * (sizes["packed"] / sizes["zstd"] - 1), 5, "%"))
    places = {"plain": plain, "btrfs zstd:3": btrfs, "packed": packed.files}
    for what, measure, unit in (("cold scan", scan, "MiB/s"), ("cold page at random", pages, "us")):
        found = {name: [] for name in places}
        for _ in range(READS):
            for name, place in places.items():
                found[name].append(measure(place))
        answers += [answer(claim, f"{name}: {what}", statistics.median(values), None, unit) for name, values in found.items()]
    side.zenith("umount", packed.files)
    run(*AS_ROOT, "umount", btrfs)
    return answers
