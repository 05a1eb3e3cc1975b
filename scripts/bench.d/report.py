"""From samples to ratios, tables and JSON."""

import json
import statistics
import sys

BASE = "plain"


def progress(line):
    print(line, file=sys.stderr, flush=True)


def summarise(samples, claims, machine, size):
    workloads = dict.fromkeys(sample["workload"] for sample in samples)
    sides = [side for side in dict.fromkeys(sample["side"] for sample in samples) if side != BASE]
    return {
        "machine": machine,
        "size": size,
        "ratios": [ratio(samples, workload, side) for workload in workloads for side in sides],
        "claims": claims,
        "samples": samples,
    }


def ratio(samples, workload, side):
    """One side against the plain filesystem, turn by turn."""
    base, own = of_side(samples, workload, BASE), of_side(samples, workload, side)
    ratios = [mine["rate"] / theirs["rate"] for mine, theirs in zip(own, base, strict=True)]
    return {
        "workload": workload,
        "side": side,
        "median": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "mean": statistics.geometric_mean(ratios),
        "error": standard_error(ratios),
        "turns": len(ratios),
        "plain_rate": statistics.median(sample["rate"] for sample in base),
        "rate": statistics.median(sample["rate"] for sample in own),
        "plain_machine_cpu_ms": statistics.median(sample["machine_cpu_ms"] for sample in base),
        "machine_cpu_ms": statistics.median(sample["machine_cpu_ms"] for sample in own),
        "service_cpu_ms": statistics.median(sample["service_cpu_ms"] for sample in own),
        "stolen": max(sample["stolen"] for sample in base + own),
        "resident_bytes": max(sample["resident_bytes"] for sample in own),
    }


def standard_error(values):
    """Of their mean, as if none had to do with the one before."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def of_side(samples, workload, side):
    """In the order of the turns."""
    chosen = [sample for sample in samples if (sample["workload"], sample["side"]) == (workload, side)]
    return sorted(chosen, key=lambda sample: sample["turn"])


def write_json(results, path):
    path.write_text(json.dumps(results, indent=1) + "\n")


def print_tables(results):
    if results["ratios"]:
        print(f"\nRates against the plain filesystem; rounds: {results['machine']['rounds']} (CPU in ms per transaction or MiB; stolen: what a host "
              "took of the machine in the worst turn; ±: the standard error of the mean)\n")
        print_table([RATIO_HEADER, *map(ratio_row, results["ratios"])])
    if results["claims"]:
        print("\nPromises\n")
        print_table([CLAIM_HEADER, *map(claim_row, results["claims"])])


RATIO_HEADER = ["workload", "side", "median", "mean", "±", "turns", "min", "max", "plain /s", "side /s", "CPU plain", "CPU side", "of it service",
                "stolen, %", "RSS MiB"]


def ratio_row(row):
    error = "" if row["error"] is None else f"{row['error']:.3f}"
    figures = [f"{row['median']:.2f}", f"{row['mean']:.2f}", error, str(row["turns"]), f"{row['min']:.2f}", f"{row['max']:.2f}"]
    rates = [f"{row[name]:.0f}" for name in ("plain_rate", "rate")]
    cpu = [f"{row[name]:.3f}" for name in ("plain_machine_cpu_ms", "machine_cpu_ms", "service_cpu_ms")]
    return [row["workload"], row["side"], *figures, *rates, *cpu, f"{100 * row['stolen']:.1f}", f"{row['resident_bytes'] / (1 << 20):.0f}"]


CLAIM_HEADER = ["where", "what", "measured", "±", "limit", "unit", ""]


def claim_row(row):
    measured = [row["claim"], row["what"], f"{row['measured']:.2f}", "" if row["error"] is None else f"{row['error']:.2f}"]
    if row["limit"] is None:
        return [*measured, "", row["unit"], "to compare with"]
    return [*measured, f"{row['limit']:.0f}", row["unit"], verdict(row["measured"], row["limit"], row["error"] or 0)]


def verdict(measured, limit, error):
    if measured + 2 * error < limit:
        return "ok"
    return "MISSED" if measured - 2 * error >= limit else "cannot be told"


def print_table(rows):
    """Columns of figures to the right, of words to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = (cell.rjust(width) if is_figure(column, rows) else cell.ljust(width)
                 for column, (cell, width) in enumerate(zip(row, widths)))
        print("  ".join(cells).rstrip())


def is_figure(column, rows):
    return rows[-1][column][:1].isdigit()
