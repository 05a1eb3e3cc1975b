#!/usr/bin/env bash
# The end of a machine of the power-cut tests: kills all its processes at once and unmounts what they had mounted.
#
# usage: clean-up.sh DIR [--kill|--at-end]
#   DIR       the machine's directory: it has run/ (zenith's mounts), disk/ (the filesystem), backing/ (the disk)
#   --kill    leaves the mounts: the machine goes on
#   --at-end  waits for the end of its input, that is, of the test, however it ends; then removes DIR too
set -uo pipefail
dir=$1
PATH=$PATH:/usr/sbin:/sbin
cd /

# One that sleeps for good on somebody's broken mount would keep everybody waiting who looks at it.
awake() {
    local process key state
    for process in /proc/[0-9]*; do
        while read -r key state _; do
            [ "$key" != State: ] || break
        done <"$process/status"
        [ "$state" = D ] || echo "$process"
    done 2>/dev/null
}

# Of the machine is what works in its directory or was told of a store in it.
processes() {
    local all
    mapfile -t all < <(awake)
    {
        timeout 10 find "${all[@]/%//cwd}" -maxdepth 0 -lname "$dir/*"
        timeout 10 grep -lz "^ZENITH_DIR=$dir/" "${all[@]/%//environ}"
    } 2>/dev/null | cut -d / -f 3 | sort -u
}

kill_all() {
    local pids
    while mapfile -t pids < <(processes) && [ ${#pids[@]} -gt 0 ]; do
        kill -KILL "${pids[@]}" 2>/dev/null
        sleep 0.02
    done
}

# Deepest first.
mounts() { awk -v dir="$dir/" 'index($2, dir) == 1 { print $2 }' /proc/self/mounts | sort -r; }

# unmount HOW...: what a killed process held is free only a moment later.
unmount_all() {
    local mount left tries=0
    while mapfile -t left < <(mounts) && [ ${#left[@]} -gt 0 ] && [ $((tries++)) -lt 100 ]; do
        for mount in "${left[@]}"; do umount "$@" "$mount" 2>/dev/null || break; done || true
        [ -z "$(mounts)" ] || { sleep 0.05 && kill_all; }
    done
    [ -z "$(mounts)" ]
}

case ${2:-} in
--kill) kill_all ;;
--at-end)
    cat >/dev/null
    kill_all
    unmount_all || unmount_all --lazy && rm -rf "$dir"
    ;;
*)
    kill_all
    unmount_all || { echo "still mounted: $(mounts)"; exit 1; }
    ;;
esac
