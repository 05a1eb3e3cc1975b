"""Postgres on zenith against Postgres on the plain filesystem below it.

Every workload runs on every side in every round, the sides directly after one another and in an order that
rotates, so that a machine that drifts drifts for all; what leaves warm caches warm has five short turns a
round. A ratio is always taken within one turn: this side's rate divided by the plain side's. After a failure
scripts/bench clears everything away.
"""

import argparse
import sys
from pathlib import Path

import claims
import machine
import plot
import report
from sides import Btrfs, JuiceFs, Plain, Zenith
from workloads import WORKLOADS, Size, run_rounds

OPTIONAL_SIDES = {"btrfs": Btrfs, "juicefs": JuiceFs}


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often every pair is measured (default 3)")
    parser.add_argument("--quick", action="store_true", help="short measurements on a small database: for a first look only")
    parser.add_argument("--with", dest="extra", action="append", default=[], choices=OPTIONAL_SIDES, help="measure this too; may be repeated")
    parser.add_argument("--only", action="append", metavar="WORKLOAD", choices=[*WORKLOADS, *claims.CLAIMS],
                        help=f"one of {', '.join([*WORKLOADS, *claims.CLAIMS])}; may be repeated")
    parser.add_argument("--output", type=Path, help="directory for bench.json and bench.svg")
    for hidden in ("--zenith", "--postgres", "--juicefs", "--work"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def measure_ratios(options, chosen, size):
    sides = []
    for kind in [Plain, Zenith, *(OPTIONAL_SIDES[name] for name in options.extra)]:
        report.progress(f"preparing {kind.name}: pgbench scale {size.scale}")
        sides.append(kind(options))
        sides[-1].fill(size.scale)
    samples = run_rounds(sides, chosen, options.rounds, size)
    for side in sides:
        side.close()
    return samples


def main():
    options = arguments()
    machine.warn_if_unfit()
    wanted = options.only or [*WORKLOADS, *claims.CLAIMS]
    size = Size.quick() if options.quick else Size.full()
    chosen = [name for name in WORKLOADS if name in wanted]
    samples = measure_ratios(options, chosen, size) if chosen else []
    answers = [answer for name in claims.CLAIMS if name in wanted for answer in claims.measure(name, options, size)]
    results = report.summarise(samples, answers, machine.describe(options), vars(size))
    options.output.mkdir(parents=True, exist_ok=True)
    report.write_json(results, options.output / "bench.json")
    plot.write_svg(results["ratios"], options.output / "bench.svg")
    report.print_tables(results)
    print(f"\nfigures: {options.output}/bench.json   plot: {options.output}/bench.svg")


try:
    main()
except machine.Failed as failed:
    sys.exit(f"error: {failed}")
except KeyboardInterrupt:
    sys.exit(130)
