"""A strict stand-in for Slurm's commands as real programs: what the real ones refuse, these refuse.

Answers and exit codes as observed on Slurm 22.05. State is one JSON file beside the programs; every call is
written down there.
"""

from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core_help import executable

PROGRAMS = ("squeue", "sacct", "scontrol", "scancel", "sbatch", "srun")

PROGRAM = r'''#!PYTHON -SE
import fcntl, itertools, json, os, re, signal, sys, time
from pathlib import Path

here = Path(__file__).parent
name = Path(__file__).name
words = sys.argv[1:]
lock = (here / "lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX)
state = json.loads((here / "state.json").read_text())
state["calls"].append([name, *words])


def save():
    (here / "new").write_text(json.dumps(state))
    (here / "new").rename(here / "state.json")


def end(text="", error="", code=0):
    save()
    if text:
        print(text)
    if error:
        print(error, file=sys.stderr)
    sys.exit(code)


def fail(error):
    end(error=error, code=1)


def options(with_value, without):
    """Split words into {option: value} and the rest; an option that is not listed is refused."""
    found, rest, at = {}, [], 0
    while at < len(words):
        word = words[at]
        if word in without:
            found[word] = True
        elif word in with_value:
            at += 1
            if at == len(words):
                fail(f"{name}: option requires an argument -- '{word.strip('-')}'")
            found[word] = words[at]
        elif word.startswith("-"):
            fail(f"{name}: unrecognized option '{word}'")
        else:
            rest.append(word)
        at += 1
    return found, rest


def reachable(what):
    if what in state["down"]:
        if what == "slurmdbd":
            fail("sacct: error: Problem talking to the database: Connection refused")
        fail(f"{name}: error: Unable to contact slurm controller (connect failure)")


INVALID = "slurm_load_jobs error: Invalid job id specified"
LIVING = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED")
jobs = state["jobs"]

if name == "squeue":
    found, rest = options(("-j", "-o", "-t", "-p", "-u"), ("-h", "-s"))
    if rest:
        fail(f"squeue: error: Unrecognized option: {rest[0]}")
    reachable("slurmctld")
    if "-j" in found:
        if not found["-j"].isdigit():
            fail(f"squeue: error: Invalid job id: {found['-j']}")
        if found["-j"] not in jobs or jobs[found["-j"]].get("purged"):
            fail(INVALID)
        shown = [jobs[found["-j"]]]
        if "-s" in found:
            if found.get("-o") != "%i|%j":
                fail("squeue: error: Unrecognized field specification")
            running = shown[0].get("steps", {}) if shown[0]["state"] in LIVING else {}
            end("\n".join(f"{step}|{its}" for step, its in running.items()))
    else:
        shown = [{"id": number} | job for number, job in jobs.items()]
    shown = [job for job in shown if job["state"] in found.get("-t", ",".join(LIVING)).split(",")]
    if "-p" in found:
        shown = [job for job in shown if job.get("partition") == found["-p"]]
    form = {"%T": "state", "%L": "left", "%u": "user", "%r": "reason", "%N": "nodelist", "%S": "starts"}
    form |= {"%i": "id", "%D": "nodes", "%o": "script"}
    fields = found.get("-o", "").split("|")
    if unknown := [field for field in fields if field not in form]:
        fail(f"squeue: error: Unrecognized field specification {unknown[0]}")
    usual = {"reason": "None", "nodelist": "", "starts": "N/A"}
    end("\n".join("|".join(job.get(form[f], usual.get(form[f], "INVALID")) for f in fields) for job in shown))

elif name == "sacct":
    found, rest = options(("-j", "-o"), ("-n", "-P", "-X"))
    if rest or found.get("-o") != "State":
        fail("sacct: fatal: Invalid field requested")
    reachable("slurmdbd")
    job = jobs.get(found["-j"], {})
    end(job.get("accounted", job.get("state", "")))

elif name == "scontrol":
    found, rest = options((), ("-o",))
    if rest[:2] != ["show", "job"] or len(rest) != 3:
        fail("invalid entity")
    reachable("slurmctld")
    if rest[2] not in jobs or jobs[rest[2]].get("purged"):
        fail(INVALID)
    job = jobs[rest[2]]
    its = job.get("asked", {}).get("job-name", "x")
    owner, when = job.get("owner", f"me({os.geteuid()})"), job.get("submitted", time.strftime("%Y-%m-%dT%H:%M:%S"))
    more = f"Reason=None Restarts=0 SubmitTime={when}"
    end(f"JobId={rest[2]} JobName={its} UserId={owner} JobState={job['state']} {more}")

elif name == "scancel":
    found, rest = options((), ("--signal=TERM",))
    reachable("slurmctld")
    if len(rest) != 1 or not re.fullmatch(r"\d+(\.\d+)?", rest[0]):
        fail(f"scancel: error: Invalid job id {' '.join(rest)}")
    step = rest[0] if "." in rest[0] else None
    rest[0] = rest[0].partition(".")[0]
    if rest[0] not in jobs:
        fail(f"scancel: error: Kill job error on job id {rest[0]}: Invalid job id specified")
    if jobs[rest[0]].get("user", "me") != "me":
        fail(f"scancel: error: Kill job error on job id {rest[0]}: Access/permission denied")
    if step is None:
        jobs[rest[0]]["state"] = "CANCELLED"
    elif jobs[rest[0]].get("steps", {}).pop(step, None) is None:
        fail(f"scancel: error: Kill job error on job step id {step}: Invalid job id specified")
    end()

elif name == "sbatch":
    known = (
        "account cpus-per-task constraint dependency exclude exclusive gres job-name licenses mem nodelist nodes"
        " no-requeue ntasks-per-node open-mode output parsable partition qos reservation signal time"
    ).split()
    flags = ("no-requeue", "exclusive", "parsable")
    given = [word for word in itertools.takewhile(lambda word: word.startswith("--"), words)]
    if len(words) == len(given):
        fail("sbatch: error: a script is expected")
    reachable("slurmctld")
    script = Path(words[len(given)]).read_text()
    asked = {}
    for line in [*re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE), *given]:
        option, equals, value = line.removeprefix("--").partition("=")
        if not line.startswith("--") or option not in known or bool(equals) == (option in flags):
            fail(f"sbatch: unrecognized option '{line}'")
        asked[option] = value or True
    if "partition" in asked and asked["partition"] not in state["partitions"]:
        fail("sbatch: error: invalid partition specified: %s\nsbatch: error: Batch job submission failed: "
             "Invalid partition name specified" % asked["partition"])
    number = str(max([int(n) for n in jobs] or [100]) + 1)
    jobs[number] = {"state": "PENDING", "asked": asked, "user": "me"}
    end(number if "parsable" in asked else f"Submitted batch job {number}")

else:
    # A step that stands still until it is cancelled, or srun gets a signal: what it would run is not run.
    known = "jobid job-name nodes ntasks ntasks-per-node kill-on-bad-exit wait output chdir".split()
    given = [word.partition("=") for word in itertools.takewhile(lambda word: word.startswith("--"), words)]
    asked = {name.removeprefix("--"): value for name, _, value in given}
    if unknown := asked.keys() - {*known, "unbuffered"}:
        fail(f"srun: unrecognized option '--{unknown.pop()}'")
    if len(words) == len(given):
        fail("srun: fatal: No command given to execute.")
    reachable("slurmctld")
    number = asked.get("jobid")
    if jobs.get(number, {}).get("state") != "RUNNING":
        fail("srun: error: Unable to confirm allocation for job %s: Invalid job id specified" % number)
    step = f"{number}.{len(jobs[number].get('steps', {}))}"
    jobs[number].setdefault("steps", {})[step] = asked["job-name"]
    save()
    for task in range(int(asked["ntasks"])):
        Path(asked["output"].replace("%t", str(task))).touch()
    lock.close()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    while step in json.loads((here / "state.json").read_text())["jobs"][number]["steps"]:
        time.sleep(0.05)
    sys.exit(143)
'''


class FakeSlurm:
    """The state of the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "state.json"
        self._write({"jobs": {}, "down": [], "partitions": ["npu"], "calls": []})
        for name in PROGRAMS:
            executable(folder / name, PROGRAM.replace("PYTHON", sys.executable))

    def _write(self, state: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "new").write_text(json.dumps(state))
        (self.folder / "new").rename(self._file)

    @contextmanager
    def change(self) -> Iterator[dict[str, Any]]:
        """Change the state."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = json.loads(self._file.read_text())
            yield state
            self._write(state)

    def job(self, number: str, state: str, **more: Any) -> None:
        """Let there be a job."""
        with self.change() as all_state:
            all_state["jobs"][number] = {"state": state, **more}

    def down(self, *daemons: str) -> None:
        """Let daemons be out of reach: slurmctld, slurmdbd."""
        with self.change() as state:
            state["down"] = list(daemons)

    @property
    def jobs(self) -> dict[str, dict[str, Any]]:
        """All jobs."""
        return dict(json.loads(self._file.read_text())["jobs"])

    def calls(self, name: str | None = None) -> list[list[str]]:
        """Return the calls so far, of one program or of all."""
        return [call for call in json.loads(self._file.read_text())["calls"] if name in (None, call[0])]
