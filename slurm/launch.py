"""Launches a grid of runs on a cluster, through submitit; what is under way or done already is left alone.

    python slurm/launch.py GRID.yaml [a.b=c ...]           submits what isn't there yet
    python slurm/launch.py GRID.yaml --dry-run             shows the batch scripts and what they ask for; writes nothing
    python slurm/launch.py GRID.yaml --local               the same jobs on this machine, one after the other, without
                                                           Slurm
    python slurm/launch.py GRID.yaml --status              a table of all runs
    python slurm/launch.py GRID.yaml --cancel              ends what is under way; --resubmit goes on from there
    python slurm/launch.py GRID.yaml --resubmit            submits again what failed (with --local: here), with today's
                                                           code and configuration

coderepairrl/cluster/grid.py says what a grid is, configs/grid/ has examples; configs/site/ describes clusters. a.b=c
overrides the grid's own
YAML: site=configs/site/h100.yaml, seeds=[0,1,2], jobs.train.minutes=30, jobs.train.overrides.training.steps=2.
"""

import signal
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from coderepairrl.cluster.grid import GridConfig, PlannedJob
from coderepairrl.cluster.plan import Plan, Submittable
from coderepairrl.cluster.plan_checks import check, more_steps
from coderepairrl.cluster.site import SiteConfig
from coderepairrl.cluster.slurm import Queued, queue
from coderepairrl.cluster.submission import Record, State, Submission, cancel, claimed, states
from coderepairrl.config import load
from coderepairrl.errors import CodeRepairError, ConfigError, did_you_mean
from coderepairrl.files import read_json
from coderepairrl.run.metrics import read_metrics
from coderepairrl.run.program import program

FLAGS = ("--dry-run", "--local", "--status", "--cancel", "--resubmit")


def dry_run(plan: Plan) -> None:
    """Prints what would be submitted. Ids in dependencies are not known before."""
    node_hours = gpu_hours = jobs = 0
    chains = plan.submittables()
    check(chains)
    for point, chain in chains:
        for job in chain:
            wanted = job.planned.config
            minutes, shards = wanted.time_minutes(plan.site), len(job.jobs)
            jobs, node_hours = jobs + shards, node_hours + shards * wanted.count * minutes / 60
            gpu_hours += shards * wanted.count * wanted.gpus_per_node * minutes / 60
            asked = [
                f"{shards} x" if shards > 1 else "",
                f"{wanted.count} node{'s' * (wanted.count > 1)}",
                f"({wanted.nodes.serve} serving, {wanted.nodes.train} training)" if wanted.nodes else "",
                f"{wanted.gpus_per_node} GPUs each,",
                f"{minutes} min",
            ]
            print(f"== {point.name}  {job.planned.name}: {' '.join(word for word in asked if word)}")
            print(f"# runs {job.jobs[0].program} {' '.join(job.jobs[0].arguments)}")
            print(job.script(plan.site, [f"<{wanted.after}>"] if wanted.after else []))
    print(
        f"== {len(plan.points)} runs, {jobs} jobs; at most {node_hours:.1f} node hours, {gpu_hours:.1f} GPU hours "
        f"before the first requeue; code {plan.code}"
    )


def launch(plan: Plan, again: bool) -> None:
    """Submits every job that is new, and what failed if `again`. A dependent waits for what it comes after."""
    queued = queue()
    chains = plan.submittables()
    check(chains)
    for point, chain in chains:
        live: dict[str, list[str]] = {}  # job -> ids that those after it have to wait for; a failed job is not in it
        again_now: set[str] = set()
        for job in chain:
            name, parent = job.planned.name, job.planned.config.after
            now = states_of(job, queued, plan.site.accounting)
            if parent and parent not in live:
                say(point.name, name, f"not submitted: {parent} did not end well")
                continue
            if parent in again_now and (waiting := [state for state in now if state.word == "live"]):
                cancel(job.folder, [state.id for state in waiting])  # for a job that is gone
                now = [State("failed") if state.word == "live" else state for state in now]
            shards = [i for i, state in enumerate(now) if state.word == "new" or (again and state.word == "failed")]
            ids = submit_once(job, plan, shards, live.get(parent, [])) if shards else []
            if ids is None:
                say(point.name, name, "another launcher is just submitting it, and what follows")
                break
            again_now |= {name} if any(now[i].word == "failed" for i in shards) else set()
            if ids or all(state.word != "failed" for state in now):
                live[name] = [*(state.id for state in now if state.word == "live"), *ids]
            say(point.name, name, f"submitted: {' '.join(ids)}" if ids else summary(now))


def submit_once(job: Submittable, plan: Plan, shards: list[int], after: list[str]) -> list[str] | None:
    """Ids; None when another launcher is, or was just now, at work on this job."""
    before = Record.read(job.folder)
    with claimed(job) as mine:
        if not mine or Record.read(job.folder) != before:
            return None
        if before is None and (found := Submission(job, plan).adopt()):
            return found.ids
        return Submission(job, plan).submit(shards, after)


def run_here(plan: Plan, again: bool) -> None:
    """One job after the other, each to its end. A job that fails ends its chain, not the grid."""
    chains = plan.submittables()
    check(chains)
    failures = 0
    for point, chain in chains:
        for job in chain:
            for shard, state in enumerate(states_of(job, [])):
                if state.word == "new" or (again and state.word == "failed"):
                    state = one_here(job, plan, shard)
                say(point.name, job.planned.name, summary([state]))
                failures += state.word == "failed"
            if any(state.word != "done" for state in states_of(job, [])):
                break
    if failures:
        raise CodeRepairError(f"{failures} of the jobs failed: see above; --local --resubmit starts them again")


def one_here(job: Submittable, plan: Plan, shard: int) -> State:
    """Runs it to its end. Ctrl-C and SIGTERM end it in its own way, with what it has kept."""
    with claimed(job) as mine:
        if not mine:
            return State("failed", cause="another launcher is at work on it: wait until it has ended")
        started = Submission(job, plan).start_here(shard)
    print(f"{job.name} runs; its log: {job.launch}/{started.job_id}_0_log.out", flush=True)
    try:
        while not started.done():
            time.sleep(0.2)
    except (KeyboardInterrupt, SystemExit):
        cancel(job.folder, [started.job_id])
        while not started.done():
            time.sleep(0.2)
        raise CodeRepairError("stopped: --local --resubmit goes on") from None
    return states(job.folder, job.runs, [])[shard]


def states_of(job: Submittable, queued: list[Queued], accounting: bool = False) -> list[State]:
    """One a shard; a training that is done, but is to have more steps, is one to submit again."""
    found = states(job.folder, job.runs, queued, accounting)
    more = [more_steps(job, shard) if state.word == "done" else "" for shard, state in enumerate(found)]
    return [
        State("failed", state.id, state.slurm, cause) if cause else state
        for state, cause in zip(found, more, strict=True)
    ]


def show(plan: Plan) -> None:
    """A row a job: what Slurm says, what the run folder says."""
    table = Table("run", "job", "id", "state", "step", "reward", "pass rate", "heartbeat")
    causes = []
    for point, planned, folder, run, state in all_states(plan):
        step, reward, passed = progress(run)
        word = state.slurm.lower() if state.word == "live" else state.word
        table.add_row(
            point,
            planned.name,
            state.id,
            f"{word} ({state.cause})" if state.word == "live" and state.cause else word,
            step,
            reward,
            passed,
            age(run),
        )
        if state.word == "failed":
            causes.append(
                f"{point}  {planned.name} {state.id}: {state.cause}; see {folder}/launch/{state.id}_0_log.out"
            )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print(*causes, sep="\n", end="\n" if causes else "")


def all_states(plan: Plan) -> list[tuple[str, PlannedJob, Path, Path, State]]:
    """(point, job, its folder, the shard's run folder, the shard's state)."""
    jobs = [(point, planned, Path(planned.folder(plan.run(point)))) for point in plan.points for planned in point.jobs]
    queued = (
        known(queue) if any((found := Record.read(folder)) and found.kind == "slurm" for _, _, folder in jobs) else []
    )
    rows = []
    for point, planned, folder in jobs:
        runs = [Path(planned.shard_folder(plan.run(point), shard)) for shard in range(planned.config.shards)]
        rows += [
            (point.name, planned, folder, run, state)
            for run, state in zip(runs, states(folder, runs, queued, plan.site.accounting), strict=True)
        ]
    return rows


def known(ask_queue) -> list[Queued]:
    """A table without Slurm's column is better than none; the reason is said."""
    try:
        return ask_queue()
    except CodeRepairError as error:
        print(f"what Slurm knows is missing here, so jobs under way look failed: {error}", file=sys.stderr)
        return []


def progress(run: Path) -> tuple[str, str, str]:
    """(step, reward, pass rate) of the newest step."""
    rows = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    if not rows:
        passed = (read_json(run / "summary.json") or {}).get("pass_rate")  # of an evaluation
        return (
            str((read_json(run / "status.json") or {}).get("step", "")),
            "",
            "" if passed is None else f"{passed:.3f}",
        )
    last = rows[-1]
    return str(last["step"] + 1), *(f"{last[key]:.3f}" if key in last else "" for key in ("reward", "pass_rate"))


def age(run: Path) -> str:
    """Since the run was last heard of."""
    heard = [path.stat().st_mtime for path in [*run.glob("heartbeats/*.json"), *run.glob("status.json")]]
    if not heard:
        return ""
    seconds = max(0.0, time.time() - max(heard))
    return next(
        f"{seconds / unit:.0f} {name}"
        for unit, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
        if seconds >= unit or unit == 1
    )


def end(plan: Plan) -> None:
    rows = [row for row in all_states(plan) if row[4].word == "live"]
    for folder in dict.fromkeys(row[2] for row in reversed(rows)):  # what waits first, so that it doesn't start
        cancel(folder, [state.id for _, _, its, _, state in rows if its == folder])
    for point, planned, _, _, state in rows:
        say(point, planned.name, f"{state.id} asked to end")
    if not rows:
        print("nothing is under way")


def summary(now: list[State]) -> str:
    """One line of the states of a job's shards."""
    if len({state.word for state in now}) > 1:
        return ", ".join(
            f"{sum(state.word == word for state in now)} {word}"
            for word in ("done", "live", "failed", "new")
            if any(state.word == word for state in now)
        )
    state = now[0]
    shown = {
        "live": f"under way already: {' '.join(s.id for s in now)} {state.slurm.lower()}",
        "done": "done",
        "failed": f"failed: {state.cause} (--resubmit)",
        "new": "not submitted yet",
    }
    return shown[state.word]


def say(point: str, job: str, what: str) -> None:
    print(f"{point}  {job}  {what}", flush=True)


@program(GridConfig, SiteConfig)
def main(arguments: list[str]) -> None:
    flags = [word for word in arguments if word.startswith("-")]
    for flag in flags:
        if flag not in FLAGS:
            remedy = did_you_mean(flag, FLAGS, f"known are {', '.join(FLAGS)}", written=str, likeness=0.6)
            raise ConfigError(f"{flag}: no such option: {remedy}")
    if len(flags) > 1 and set(flags) != {"--local", "--resubmit"}:
        raise ConfigError(f"{' '.join(flags)}: one at a time (but --local --resubmit)")
    words = [word for word in arguments if not word.startswith("-")]
    if not words:
        raise ConfigError("no grid given: name its YAML, for example configs/grid/quickstart.yaml")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    plan = Plan(load(GridConfig, words[0], words[1:]), local="--local" in flags)
    if "--dry-run" in flags:
        dry_run(plan)
    elif "--status" in flags:
        show(plan)
    elif "--cancel" in flags:
        end(plan)
    elif "--local" in flags:
        run_here(plan, "--resubmit" in flags)
    else:
        launch(plan, "--resubmit" in flags)


if __name__ == "__main__":
    main(sys.argv[1:])
