"""What `deploy/` and docs/cluster.md name exists: extras, commands, options, paths, versions."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from automl.cli import _parser
from automl.store import read_study
from tests.automl.quadratic import NAME

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
MANIFEST = (DEPLOY / "kuberay-rayjob.yaml").read_text()
SLURM = DEPLOY / "slurm.sh"
PAGE = (ROOT / "docs" / "cluster.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCHEMA = yaml.safe_load((Path(__file__).parent / "kuberay.schema.yaml").read_text())


def instructions(word: str) -> list[str]:
    """The arguments of every such instruction of the Dockerfile, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return [line[len(word) + 1 :] for line in joined.splitlines() if line.startswith(f"{word} ")]


def documents() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all(MANIFEST)}


def commands_of_the_page() -> list[str]:
    lines = re.findall(r"^    (\S.*)$", PAGE, re.M)
    return [line.partition("#")[0].strip() for line in lines]


def parse(command: str) -> Any:
    """What our own parser makes of an `automl` command; it ends the test when it refuses."""
    arguments, rest = _parser().parse_known_args(shlex.split(command)[1:])
    assert not rest
    return arguments


def test_the_image_is_made_of_what_the_project_has() -> None:
    (base,) = instructions("FROM")
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu24\.04", base)
    for copied in instructions("COPY"):
        *sources, target = copied.split()
        assert sources
        assert target
        assert all((ROOT / source).exists() for source in sources), copied
    (install,) = [run for run in instructions("RUN") if "pip install" in run]
    (extras,) = re.findall(r'--editable "\.\[([\w,]+)\]"', install)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert "tensorrt" in extras.split(",")
    assert "--constraint constraints.txt" in install
    for command in re.findall(r"automl [^&>]+", install):
        with pytest.raises(SystemExit, match="0"):  # --help
            parse(command)


def test_what_is_packaged_beside_the_code_is_in_the_image() -> None:
    copied = {source for line in instructions("COPY") for source in line.split()[:-1]}
    assert {"automl", "stereo", "schemas", "spec_templates", "studies"} <= copied
    named = re.findall(r'parents\[\d\] / "(\w+)"|parent\.parent / "(\w+)"',
                       "".join(f.read_text() for f in (*ROOT.glob("automl/**/*.py"),
                                                       *ROOT.glob("stereo/**/*.py"))))  # fmt: skip
    assert {name for pair in named for name in pair if name} <= copied


@pytest.mark.parametrize("command", [*PROJECT["scripts"], "ray"])
def test_commands_of_deploy_are_programs(command: str) -> None:
    assert (Path(sys.executable).parent / command).exists()
    assert re.search(rf"\b{command}\b", DOCKERFILE + MANIFEST + SLURM.read_text()) or (
        command == "depth_net"
    )


def test_the_manifest_keeps_the_schema_of_its_kinds() -> None:
    found = documents()
    assert set(found) == {"PersistentVolumeClaim", "RayJob"}
    for kind, document in found.items():
        schema = SCHEMA | {"$ref": f"#/$defs/{kind}"}
        errors = [
            f"{error.json_path}: {error.message}"
            for error in jsonschema.Draft202012Validator(schema).iter_errors(document)
        ]
        assert errors == []


def test_a_misspelt_field_of_the_manifest_would_be_noticed() -> None:
    job = documents()["RayJob"]
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 2
    schema = SCHEMA | {"$ref": "#/$defs/RayJob"}
    assert not jsonschema.Draft202012Validator(schema).is_valid(job)


def test_the_manifest_agrees_with_itself_and_the_project() -> None:
    found = documents()
    cluster = found["RayJob"]["spec"]["rayClusterSpec"]
    constraints = (ROOT / "constraints.txt").read_text()
    assert f"\nray=={cluster['rayVersion']}\n" in constraints
    claims = {found["PersistentVolumeClaim"]["metadata"]["name"]}
    (image,) = re.findall(r"docker build .*--tag (\w+) ", DOCKERFILE)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        used = {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in volumes.values()
            if "persistentVolumeClaim" in volume
        }
        assert used == claims
        (container,) = pod["containers"]
        assert container["image"].partition(":")[0] == image
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) == set(volumes)
        assert mounts["studies"] == instructions("WORKDIR")[-1]  # one path on every node


def test_the_study_of_the_manifest_starts_on_its_cluster() -> None:
    entrypoint = documents()["RayJob"]["spec"]["entrypoint"]
    change, study = entrypoint.split(" && ")
    assert change == "cd /studies"
    arguments = parse(study)
    assert (arguments.command, arguments.address) == ("study", "$RAY_ADDRESS")
    assert (ROOT / "studies" / f"{arguments.target}.yaml").is_file()


def test_commands_and_files_of_the_page_exist() -> None:
    commands = commands_of_the_page()
    assert len(commands) > 9
    for command in commands:
        word = shlex.split(command)[0]
        assert word in ("automl", "ray", "docker", "kubectl", "sbatch")
        if word == "automl":
            assert parse(command).command == "study"
        if word == "sbatch":
            options = command.partition("deploy/slurm.sh")[2]
            assert parse(f"automl study{options}").target == "ffs"
    for path in re.findall(r"\bdeploy/[\w.-]+", PAGE + DOCKERFILE + MANIFEST + SLURM.read_text()):
        assert (ROOT / path).is_file(), path
    extras = re.findall(r"`(\w+)`", PAGE.partition("with its extras")[2].partition(". `deploy")[0])
    assert set(extras) == {"tensorrt", "dashboard", "s3"}


def test_the_slurm_script_is_sound() -> None:
    assert os.access(SLURM, os.X_OK)
    subprocess.run(["bash", "-n", SLURM], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SLURM], check=True)
    options = re.findall(r"^#SBATCH --([\w-]+)", SLURM.read_text(), re.M)
    assert {"nodes", "ntasks-per-node", "requeue", "open-mode", "signal"} <= set(options)


SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then tr ',' '\\n' <<<"$3"; else echo "$@" >>requeued; fi
"""
STUDY: dict[str, Any] = {
    "model": "quadratic",
    "budget": {"trials": 6},
    "spec": {"train": {"num_epochs": 6}, "behaviour": {"seconds_per_epoch": 0.5}},
    "algorithm": {"name": "asha", "rungs": [2, 4]},
    "promote": {"enabled": False},
}


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_the_slurm_script_runs_requeues_and_resumes_a_study(tmp_path: Path) -> None:
    """Two nodes, both this machine; only `srun` and `scontrol` are stand-ins."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "one,two",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_CPUS_PER_TASK": "2",
    }

    def submit() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [SLURM, "tiny.yaml", "--trainable", NAME],
            cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    job = submit()
    assert job.stdout is not None
    for line in job.stdout:
        if "epoch 2/6" in line:
            break
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 143, output
    assert (tmp_path / "requeued").read_text() == f"requeue {environment['SLURM_JOB_ID']}\n"
    assert not list(tmp_path.glob(".ray-token*"))

    job = submit()
    output, _ = job.communicate(timeout=180)

    assert job.returncode == 0, output
    study = read_study(tmp_path / "results" / "studies" / "tiny")
    assert study.state == "finished"
    assert len(study.trials) == 6
    assert len({event["node"] for event in study.events if event["kind"] == "trial_placed"}) > 1
    assert len((tmp_path / "requeued").read_text().splitlines()) == 1
