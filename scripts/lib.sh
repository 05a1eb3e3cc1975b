# What the scripts share: where things lie, what a machine needs, the build, and Postgres.
#
# Sourced, never run. Two rules hold everywhere:
# * Postgres refuses to run as root, so as root every Postgres program runs as user `postgres`. That user must
#   be able to reach the files, so root's cache is /var/cache/zenith and not below /root.
# * Servers listen on Unix sockets in a directory of their own and on nothing else, so a port is never taken.
# shellcheck shell=bash

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH=$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin
export LC_ALL=C
unset "${!PG@}" ZENITH_DIR

is_root() { [ "$(id -u)" = 0 ]; }

if is_root; then default_cache=/var/cache/zenith; else default_cache=${XDG_CACHE_HOME:-$HOME/.cache}/zenith; fi
# Everything kept between runs, and the scratch directories of the runs themselves.
CACHE=${ZENITH_CACHE:-$default_cache}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/zenith/target}

say() { echo "$*" >&2; }

# fail MESSAGE [HINT]
fail() {
    say "error: $1"
    [ $# -lt 2 ] || say "HINT: $2"
    exit 1
}

as_root() {
    if is_root; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "this must be done by root: $*" "run it as root, or install sudo"
    fi
}

as_postgres() {
    if is_root; then runuser -u postgres -- "$@"; else "$@"; fi
}

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Installs those of the Debian packages named that are missing.
need() {
    local missing=() package
    command -v apt-get >/dev/null || fail "this is no Debian or Ubuntu" "install by hand what $* provide there"
    for package; do installed "$package" || missing+=("$package"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing ${missing[*]}"
    # The lists of some unrelated source may be out of reach; what counts is that the install works.
    as_root apt-get update -qq >/dev/null 2>&1 || true
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
        fail "could not install ${missing[*]}" "see the messages of apt-get above"
}

need_build_tools() {
    need build-essential pkg-config libclang-dev
    command -v cargo >/dev/null || fail "cargo is missing" "install Rust (see rust-version in Cargo.toml) with rustup"
}

need_postgres() { need postgresql postgresql-contrib; }

need_fuse() {
    need fuse3
    [ -e /dev/fuse ] || as_root modprobe fuse || fail "/dev/fuse is missing" "this kernel has no FUSE"
    # What udev does where it runs.
    [ -w /dev/fuse ] || as_root chmod 666 /dev/fuse
}

# install_tool CRATE VERSION: built once per machine, into the cache.
install_tool() {
    local tools=$CACHE/tools
    grep -qs "^\"$1 $2 " "$tools/.crates.toml" && [ -x "$tools/bin/$1" ] && return
    say "building $1"
    CARGO_TARGET_DIR=$tools/target cargo install --quiet --locked --force --root "$tools" "$1@$2"
    rm -rf "$tools/target"
}

# Builds the release binary; prints its path.
zenith_binary() {
    (cd "$REPO" && cargo build --release --quiet --bin zenith) || fail "the build failed"
    echo "$CARGO_TARGET_DIR/release/zenith"
}

# postgres_bin MAJOR: the directory of the programs of one Postgres; '*' for the newest that Debian installed.
postgres_bin() {
    local bin
    bin=$(find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -path "*/$1/bin" 2>/dev/null | sort -V | tail -n 1)
    [ -n "$bin" ] || fail "no Postgres $1 in /usr/lib/postgresql"
    echo "$bin"
}

# A new directory of this run alone, on a filesystem that can carry a store.
scratch_dir() {
    local dir kind
    mkdir -p "$CACHE"
    kind=$(stat -f -c %T "$CACHE")
    case $kind in
    ext2/ext3 | xfs | btrfs) ;;
    *) fail "$CACHE lies on $kind" "set ZENITH_CACHE to a directory on ext4, xfs or btrfs" ;;
    esac
    dir=$(mktemp -d "$CACHE/$1.XXXXXX")
    chmod 711 "$dir"
    echo "$dir"
}

# A directory that the Postgres servers may write to.
postgres_dir() {
    mkdir -p "$1"
    if is_root; then chown postgres: "$1"; fi
    chmod 700 "$1"
}

# start_server BIN DATA SOCKETS [OPTIONS]: the server's log stands in the directory of its socket. It may outlive the
# script, so it gets no descriptor of it.
start_server() {
    as_postgres "$1/pg_ctl" start -D "$2" -w -t 120 -s -l "$3/server.log" \
        -o "-c unix_socket_directories=$3 -c listen_addresses='' ${4:-}" 3>&-
}

# stop_server BIN DATA MODE
stop_server() { as_postgres "$1/pg_ctl" stop -D "$2" -s -w -t 120 -m "$3"; }

# Mounts at or below a directory, deepest first.
mounts_below() { awk -v dir="$1" '$2 == dir || index($2, dir "/") == 1 { print $2 }' /proc/self/mounts | sort -r; }

# Process ids of the Postgres servers (with all their children) whose data lies below a directory.
servers_below() {
    local process
    for process in /proc/[0-9]*; do
        [[ $(readlink "$process/exe") == */postgres && $(readlink "$process/cwd") == "$1"/* ]] || continue
        basename "$process"
    done 2>/dev/null
}

# remove_scratch DIR [ZENITH]: ends what a run left in its scratch directory, whatever state that is in, and removes it.
remove_scratch() {
    local dir=$1 zenith=${2:-} mount store servers
    mapfile -t servers < <(servers_below "$dir")
    if [ ${#servers[@]} -gt 0 ]; then as_postgres kill -QUIT "${servers[@]}" 2>/dev/null || true; fi
    for store in "$dir"/store*; do
        if [ -n "$zenith" ] && [ -d "$store" ]; then ZENITH_DIR=$store "$zenith" stop --force >/dev/null || true; fi
    done
    for mount in $(mounts_below "$dir"); do
        umount "$mount" 2>/dev/null || umount -l "$mount" 2>/dev/null || fusermount3 -uz "$mount" || say "still mounted: $mount"
    done
    if [ -z "$(mounts_below "$dir")" ]; then rm -rf "$dir"; fi
}
