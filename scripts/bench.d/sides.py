"""The filesystems that are compared: each gives a place for a data directory and has its own way to take a snapshot."""

import http.client
import json
import os
import socket
import subprocess

from machine import AS_ROOT, Failed, postgres_directory, run
from postgres import Cluster


class Side:
    """A cluster on one kind of filesystem, all of it below one directory of the backing filesystem."""

    name = ""

    def __init__(self, options, directory=None):
        self.options = options
        self.home = options.work / (directory or self.name)
        self.home.mkdir()
        self.home.chmod(0o711)
        self.cluster = Cluster(options.postgres, self.make(), self.home / "sockets")

    def make(self):
        """Makes the filesystem; returns the directory for the cluster's data."""
        raise NotImplementedError

    def fill(self, scale):
        self.cluster.initdb()
        with self.cluster.running():
            self.cluster.fill(scale)
            self.cluster.sql("CHECKPOINT")

    def service_pid(self):
        """The process that serves the filesystem, if there is one."""
        return None

    def snapshot(self, tag):
        """Takes a snapshot of the data directory, under load or not."""

    def drop_snapshot(self, tag):
        """Removes a snapshot."""

    def close(self):
        """Ends what the side has running."""


class Plain(Side):
    """The backing filesystem itself: it has no snapshots, so it runs without."""

    name = "plain"

    def make(self):
        return postgres_directory(self.home / "data")


class Zenith(Side):
    name = "zenith"

    def make(self):
        # The store's place tells the clean-up after a failure what to stop.
        self.store = self.options.work / f"store-{self.home.name}"
        self.zenith("init", "--empty")
        self.mount("main", self.home / "data")
        return self.home / "data"

    def zenith(self, *arguments):
        return run(self.options.zenith, *arguments, env={**os.environ, "ZENITH_DIR": str(self.store)})

    def mount(self, what, directory, *more):
        self.zenith("mount", what, directory, "--create", *more)

    def ask(self, method, path, body):
        """One request to the service's socket."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.store / "zenith.sock"))
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        if answer.status >= 300:
            raise Failed(f"{method} {path}: {answer.status} {text}")

    def service_pid(self):
        return json.loads(self.zenith("status", "--json"))["service"]["pid"]

    def snapshot(self, tag):
        self.zenith("snapshot", "create", f"main@{tag}")

    def drop_snapshot(self, tag):
        self.zenith("snapshot", "destroy", f"main@{tag}", "--yes")

    def close(self):
        self.zenith("umount", self.home / "data")
        self.zenith("stop")


class Btrfs(Side):
    """btrfs in an image on the backing filesystem, as a loop device."""

    name = "btrfs"

    def make(self):
        image, top = self.home / "image", self.home / "top"
        run("truncate", "-s", "40G", image)
        run("mkfs.btrfs", "-q", image)
        top.mkdir()
        run(*AS_ROOT, "mount", "-o", "loop", image, top)
        run(*AS_ROOT, "btrfs", "subvolume", "create", top / "data")
        run(*AS_ROOT, "chown", "postgres:" if os.geteuid() == 0 else str(os.geteuid()), top / "data")
        run(*AS_ROOT, "chmod", "700", top / "data")
        return top / "data"

    def snapshot(self, tag):
        run(*AS_ROOT, "btrfs", "subvolume", "snapshot", "-r", self.home / "top/data", self.home / "top" / tag)

    def drop_snapshot(self, tag):
        run(*AS_ROOT, "btrfs", "subvolume", "delete", self.home / "top" / tag)

    def close(self):
        run(*AS_ROOT, "umount", self.home / "top")


class JuiceFs(Side):
    """JuiceFS with SQLite for its metadata and files on the backing filesystem for its objects."""

    name = "juicefs"

    def make(self):
        top, meta = self.home / "top", f"sqlite3://{self.home}/meta.db"
        top.mkdir()
        run(self.options.juicefs, "format", "--no-update", "--storage", "file", "--bucket", f"{self.home}/objects/", meta, "bench")
        # The daemon keeps its standard output open: it must not inherit the pipe that run() reads to the end.
        subprocess.run([self.options.juicefs, "mount", "-d", "--no-usage-report", "--cache-dir", self.home / "cache",
                        "--log", self.home / "juicefs.log", meta, top], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.meta = meta
        return postgres_directory(top / "data")

    def service_pid(self):
        sessions = json.loads(run(self.options.juicefs, "status", self.meta))["Sessions"]
        return sessions[-1]["ProcessID"]

    def snapshot(self, tag):
        run(self.options.juicefs, "clone", "--preserve", self.home / "top/data", self.home / "top" / tag)

    def drop_snapshot(self, tag):
        run(self.options.juicefs, "rmr", self.home / "top" / tag)

    def close(self):
        run(self.options.juicefs, "umount", self.home / "top")
