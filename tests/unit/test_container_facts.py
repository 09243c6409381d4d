"""What enroot 4.1.2, pyxis 0.24.0, docker 20.10 and modelscope 1.40.2 were seen to do, and which test holds it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from container_fakes import DIGEST, PROGRAMS, REGISTRY, Fakes

from containers import enroot
from containers.spec import parse_image
from jobs.core.errors import RunError

TESTS = Path(__file__).resolve().parents[1]

FACTS = {
    # enroot: import and create
    "GNU parallel gives each job of an import a process group of its own, in enroot's session": (
        "local/test_container_store.py::test_layers_that_a_child_goes_on_to_unpack_are_removed_after_its_end"
    ),
    "whoever is killed leaves children that go on, also in other sessions": (
        "local/test_process.py::test_what_a_program_left_in_other_groups_and_sessions_ends_with_whoever_waited_for_it"
    ),
    "a killed import leaves its layers in full size": (
        "unit/test_cli_image.py::test_a_recipe_is_imported_listed_verified_and_pruned"
    ),
    "a wrong login, or none, ends an import silently with code 1": (
        "local/test_container_one_image.py::test_a_question_that_failed_is_an_error_and_no_answer"
    ),
    "curl's exit codes come through an import; 404, 401 and a full disk have their words": (
        "local/test_container_store.py::test_a_failed_import_is_a_clear_error_and_leaves_nothing"
    ),
    "helpers without capabilities say so, in a line with docker:// in it": (
        "unit/test_diagnose_read.py::test_no_signature_overrules_an_error_that_says_itself_what_it_is"
    ),
    "enroot before 4.0 has no digest and prints its usage": (
        "unit/test_container_facts.py::test_an_enroot_before_4_knows_no_digests"
    ),
    "`unsquashfs -s` passes a file that was cut": (
        "local/test_container_store.py::test_a_failed_import_is_a_clear_error_and_leaves_nothing"
    ),
    "several creates of one name race, and a half root shows in the list and starts": (
        "local/test_container_store.py::test_twenty_creates_at_once"
    ),
    "several imports of one file race": "local/test_container_store.py::test_twenty_imports_at_once",
    "a batch job has no directories of enroot": (
        "unit/test_container_fakes.py::test_a_batch_job_has_no_directories_of_enroot"
    ),
    "remove asks on stdin, and refuses while something writes": (
        "unit/test_container_fakes.py::test_what_the_real_one_refuses"
    ),
    # enroot: start and exec
    "options of a mount replace the defaults": "unit/test_container_spec.py::test_the_start_of_enroot",
    "a login shell replaces the image's PATH; values lose quotes and end at a newline": (
        "unit/test_container_fakes.py::test_values_are_mangled_and_a_login_shell_replaces_path"
    ),
    "ENTRYPOINT stands before the command, in /etc/rc": (
        "local/test_container_one_image.py::test_an_image_with_an_entrypoint_is_started_without_it"
    ),
    "a command that is not there is 127; exit codes and signals pass": (
        "local/test_container_one_image.py::test_an_image_without_a_shell_says_so"
    ),
    "the process of a start becomes the command, and is joined by its number": (
        "local/test_client_inside.py::test_a_client_runs_where_the_engine_is"
    ),
    "a list that fails says nothing of what is there": (
        "local/test_container_one_image.py::test_a_question_that_failed_is_an_error_and_no_answer"
    ),
    # pyxis
    "a word without / or . is an image of a registry": "unit/test_container_fakes.py::test_what_the_real_one_refuses",
    "without an image or a name the step runs on the node, with code 0": (
        "unit/test_container_fakes.py::test_what_the_real_one_refuses"
    ),
    "a source that is not there is fatal": "unit/test_container_fakes.py::test_what_the_real_one_refuses",
    "an option's variable moves plain steps into a container": (
        "local/test_runtimes.py::test_a_stray_option_does_not_reach_a_step_of_ours"
    ),
    "a name alone joins, or takes the root that is there; `create` refuses": (
        "local/test_runtimes.py::test_pyxis_itself_refuses_a_name_that_nobody_could_look_up"
    ),
    "a named root stays for ever after its step was killed": (
        "local/test_container_one_image.py::test_a_named_root_of_pyxis_whose_rank_was_killed_is_removed_by_the_next"
    ),
    "the image's PATH is lost unless ENROOT_LOGIN_SHELL=n": (
        "local/test_runtimes.py::test_an_engine_lives_and_dies_in_its_container"
    ),
    "a nested step has one task, which is task 0 on every node": (
        "unit/test_diagnose_read.py::test_the_task_of_a_step_inside_a_rank_is_that_rank_whatever_its_number"
    ),
    "srun ends with 128 + the signal of its task, and says so": (
        "local/test_container_one_image.py::test_an_engine_that_is_killed_is_said_to_be_killed_behind_every_starter"
    ),
    "what cannot be executed is code 2 and a line of slurmstepd": (
        "local/test_container_one_image.py::test_an_image_without_a_shell_says_so"
    ),
    "--container-env is there since 0.15": (
        "unit/test_container_facts.py::test_a_pyxis_before_0_15_refuses_what_it_does_not_know"
    ),
    "a container without a name is called after its step and can be joined": (
        "local/test_client_inside.py::test_a_client_runs_where_the_engine_is"
    ),
    "unpacking takes its time inside of the step": (
        "unit/test_container_facts.py::test_pyxis_unpacks_inside_of_its_step"
    ),
    # docker and podman
    "a tag may stand for another image on each node": (
        "local/test_real_runtimes.py::test_images_by_tag_and_digest_and_a_tag_that_moves"
    ),
    "`docker run IMAGE bash` gives the shell to an ENTRYPOINT": (
        "local/test_real_runtimes.py::test_an_image_with_an_entrypoint_and_another_user_is_started_without_them"
    ),
    "`docker exec` ends with 128 + N, 126, 127": "local/test_real_runtimes.py::test_how_an_engine_ended_comes_through",
    "containers outlive the rank": "local/test_real_runtimes.py::test_what_a_killed_rank_left_is_removed_by_the_next",
    "a daemon that is gone answers nothing": (
        "local/test_real_runtimes.py::test_a_daemon_that_is_killed_is_named_and_what_is_left_is_not_called_nothing"
    ),
    "a full disk, a missing image, a missing login have their words": (
        "local/test_real_runtimes.py::test_a_full_disk_is_named"
    ),
    # modelscope
    "--max-workers is there from 1.22 on; the newest take the name by its place": (
        "unit/test_weights_fetch.py::test_the_client_is_run_as_its_own_help_says"
    ),
    "a cut, a 404, a wrong size": "local/test_modelscope.py::test_what_the_hub_lacks_or_tells_wrong_is_an_error",
    "a client outlives the one that started it": (
        "local/test_modelscope.py::test_a_fetch_that_is_ended_takes_its_client_along_and_is_resumed"
    ),
}
"""By fact. Not held by any test: NFS, Lustre, enroot 3.x beyond its missing commands, cgroup v2, rootless docker."""


@pytest.mark.parametrize("fact", FACTS)
def test_each_fact_has_its_case(fact: str) -> None:
    path, _, name = FACTS[fact].partition("::")
    text = (TESTS / path).read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{FACTS[fact]}: {fact}"


@pytest.fixture
def env(tmp_path: Path) -> tuple[Fakes, dict[str, str]]:
    fakes = Fakes(tmp_path / "bin", PROGRAMS)
    folders = {f"ENROOT_{name.upper()}_PATH": str(tmp_path / name) for name in ("data", "cache", "runtime")}
    return fakes, {**os.environ, **folders, "PATH": f"{fakes.folder}:{os.environ['PATH']}"}


def run(env: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


def test_an_enroot_before_4_knows_no_digests(
    env: tuple[Fakes, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes, variables = env
    monkeypatch.setenv("PATH", variables["PATH"])
    image = parse_image("test/image:v1", REGISTRY)
    assert enroot.digest(image, variables) == DIGEST
    fakes.tell(enroot_version="3.5.0")
    assert enroot.digest(image, variables) is None, "it cannot be asked"
    fakes.tell(private=True)
    with pytest.raises(RunError, match="the registry refused the login"):
        enroot.digest(image, variables)


STEP = ("srun", "--jobid=7", "--overlap", "--nodes=1", "--ntasks=1", "--nodelist=n1")


def test_a_pyxis_before_0_15_refuses_what_it_does_not_know(env: tuple[Fakes, dict[str, str]]) -> None:
    fakes, variables = env
    fakes.tell(node="n1", pyxis_version="0.14")
    done = run(variables, *STEP, f"--container-image={REGISTRY}#test/image:v1", "--container-env=A", "true")
    assert (done.returncode, "unrecognized option" in done.stderr) == (255, True)


def test_pyxis_unpacks_inside_of_its_step(env: tuple[Fakes, dict[str, str]]) -> None:
    fakes, variables = env
    fakes.tell(node="n1", lacks=["bash"])
    done = run(variables, *STEP, f"--container-image={REGISTRY}#test/image:v1", "bash")
    assert done.returncode == 2
    assert "execve(): bash: No such file or directory" in done.stderr
    assert "srun: error: n1: task 0: Exited with exit code 2" in done.stderr
    assert list(fakes.folder.glob("pyxis_*/root")), "it had unpacked before it looked for the program"
