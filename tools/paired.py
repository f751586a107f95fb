"""How far ahead of one run of a study the others are: python tools/paired.py REPORT_JSON RUN.

A study compares each run with its baseline; this compares any two, seed by seed, from the study's
report.json alone.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kd_detr_mmdet.utils.cli import one_line_errors
from kd_detr_mmdet.utils.study import read_report
from kd_detr_mmdet.utils.study_report import ahead_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, metavar="REPORT_JSON", help="of tools/study.py")
    parser.add_argument("run", metavar="RUN", help="its name in the study, as 'both' or 'alone'")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    report = read_report(args.report)
    differences = ahead_of(report, args.run)
    print(f"| AP ahead of {report['rows'][args.run]['title']} | mean | 95 % interval | by seed |")
    print("|---|---|---|---|")
    for name, told in sorted(differences.items(), key=lambda item: -item[1]["mean"]):
        limits = "" if told["low"] is None else f"{told['low']:+.1f} to {told['high']:+.1f}"
        by_seed = ", ".join(f"{gain:+.1f} ({seed})" for seed, gain in told["per_seed"].items())
        title = report["rows"][name]["title"]
        print(f"| {title} | {told['mean']:+.1f} | {limits} | {by_seed} |")


if __name__ == "__main__":
    with one_line_errors():
        main()
