"""Train configs over several seeds and compare them in pairs: python tools/study.py STUDY.py.

Run it again to go on where it was stopped. It writes report.md, report.json and report.png.
"""

import argparse
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kd_detr_mmdet.utils.cli import one_line_errors
from kd_detr_mmdet.utils.runs import at_least_one
from kd_detr_mmdet.utils.study import (
    Results,
    add_report,
    check_taught,
    collect,
    make_data,
    make_tasks,
    read_study,
    select,
    train_all,
)
from kd_detr_mmdet.utils.study_report import write_report


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", help="study file")
    parser.add_argument(
        "--work-dir", type=Path, help="where runs are kept; work_dirs/study/<name of the file>"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the file's")
    parser.add_argument("--jobs", type=at_least_one, default=2, help="runs at a time, a core each")
    parser.add_argument(
        "--runs", nargs="+", metavar="NAME", help="train only these, and the teachers they need"
    )
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    parser.add_argument(
        "--add",
        type=Path,
        nargs="+",
        default=[],
        metavar="REPORT_JSON",
        help="reports of other seeds of this study, trained elsewhere, to be added to this one's",
    )
    parser.add_argument("--out", type=Path, help="where to write the report; the work directory")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    study = read_study(args.study, args.seeds)
    work_dir = args.work_dir or ROOT / "work_dirs" / "study" / Path(args.study).stem
    tasks = make_tasks(study, work_dir.resolve())
    chosen = select(tasks, args.runs)

    # Once, so that a report that does not fit is told before hours of training.
    elsewhere: Results = {}
    notes = [note for path in args.add for note in add_report(study, work_dir, path, elsewhere)]

    def report() -> None:
        results = collect(tasks)
        for name, by_seed in elsewhere.items():
            results[name] = {**by_seed, **results.get(name, {})}
        write_report(args.out or work_dir, study, results, notes)

    failures = []
    if not args.report_only:
        check_taught(tasks)
        make_data(study)
        failures = train_all(chosen, args.jobs, report, leave_if_terminated)
    if not failures:
        report()
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


terminated: list[int] = []


def leave_if_terminated() -> None:
    """Ended from outside, it ends its jobs as on Ctrl-C."""
    if terminated:
        sys.exit("terminated: run it again to go on")


def terminate(signum: int, _: object) -> None:
    # Python drops what is raised in a garbage collector's callback, so it is looked at again.
    terminated.append(signum)
    leave_if_terminated()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminate)
    try:
        with one_line_errors():
            main()
    except KeyboardInterrupt:
        sys.exit("interrupted: run it again to go on")
