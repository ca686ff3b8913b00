"""A study as a Ray Tune experiment, on this machine or on an existing cluster.

Ray keeps its own files in a short directory under /tmp (a Unix socket's path holds at most 107
bytes) and is removed completely at the end. `ray/session.json` of the study names the processes
and that directory, so that the next start ends what a `kill -9` left; `ray/ray.log` has what Ray
would print. Nothing in `ray/` is read to resume.

Written against Ray 2.60. Its processes on Linux are tied to the driver by the kernel (parent
death signal), workers notice that their raylet is gone.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# Ray's types are partial.
from __future__ import annotations

import json
import logging
import os
import queue
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import TuneError

from automl.contract import Status
from automl.errors import StoreError, StudyFailedError
from automl.lock import is_running
from automl.resources import TrialResources, gpus, of_study
from automl.runners import Interruption, conclude
from automl.runners.environment import quiet_ray
from automl.runners.ray_cluster import living_nodes
from automl.runners.ray_search import Place, StopWhen, StudyScheduler, StudySearcher, StudyWatch
from automl.trial import WORKER_LOG, Driver, Job, Outcome, TrialDriver, run_trial

if TYPE_CHECKING:
    from automl.algorithms.table import Algorithm
    from automl.store import Study

SESSION_FILE = "session.json"
SESSIONS, PREFIX = Path("/tmp"), "depthtune-"  # where Ray's own files are, while it runs
LOG_FILE = "ray.log"
TOKEN_FILE = Path("~/.ray/auth_token")  # Ray's own place; RAY_AUTH_TOKEN_PATH moves it
OBJECT_STORE_BYTES = 100 * 2**20  # configurations and epoch reports only; Ray's minimum is 75 MiB
STOP_PATIENCE_S = 60.0  # a trainer told to stop has so long before its worker is replaced


def run(
    study: Study,
    algorithm: Algorithm,
    trainable: str,
    *,
    live: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Run or resume a study to the end of its budget; call it from the main thread.

    Args:
        study: opened for writing; with an `address` (`HOST:PORT` of a running cluster) its
            directory is shared by all nodes, else trials run on this machine.
        algorithm: asks and decides.
        trainable: name of the trainer, found again in every worker.
        live: sees every event after it was recorded.

    Raises:
        AutoMLError: the study cannot go on (full disk, trials keep failing, Ray broke).
        KeyboardInterrupt: SIGINT arrived; SystemExit(143): SIGTERM. Both resume.
    """
    drive(TrialDriver(study, algorithm, trainable, live))


def drive(driver: Driver) -> None:
    """Run the jobs of a driver; raises as `run` does."""
    study, address = driver.study, driver.study.resolved.study.address
    scratch = study.directory / "ray"
    scratch.mkdir(exist_ok=True)
    end_leftovers(scratch)
    share = of_study(study.resolved.study)
    with Interruption() as interruption:
        if driver.has_work():
            with (
                quiet_ray(),
                _ray_log(scratch),
                _session(scratch, share, address) as directory,
            ):
                interruption.catch()  # Ray has installed its own handler of SIGTERM
                if address is not None:
                    nodes = [asdict(node) for node in living_nodes()]
                    study.append({"kind": "cluster_joined", "address": address, "nodes": nodes})
                _fit(driver, interruption, share, directory)
        conclude(driver, interruption)


def _fit(
    driver: Driver, interruption: Interruption, share: TrialResources, directory: Path
) -> None:
    watch = StudyWatch(driver, interruption)
    on_cluster = driver.study.resolved.study.address is not None
    tuner = tune.Tuner(
        tune.with_resources(StudyWorker, {"cpu": share.cpus, "gpu": share.gpus}),
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(driver, names_nodes=on_cluster),
            scheduler=StudyScheduler(driver),
            num_samples=-1,  # the searcher says when it is finished
            max_concurrent_trials=share.max_concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(directory),
            verbose=0,
            stop=StopWhen(watch),
            callbacks=[watch],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        tuner.fit()
    except (RayError, TuneError, OSError) as error:
        log = driver.study.directory / "ray" / LOG_FILE
        driver.fail(StudyFailedError(f"Ray stopped: {error}. See {log}; the same command resumes"))


class StudyWorker(tune.Trainable):
    """Trains one trial after another in one process; `train` is one epoch or the end.

    The trainer runs in a thread that waits inside every report until the driver has answered it
    and Ray asks for more, so nothing trains unasked. On a cluster the first `train` of a trial
    only says on which node it is.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first job."""
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next job; the process is kept."""
        self._finish()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Return the next `(epoch, metrics, checkpoint)`, a `Place` or an `Outcome` as message."""
        if self._names_node:
            self._names_node = False
            return {"message": Place(ray.get_runtime_context().get_node_id())}
        if not self._thread.is_alive() and self._thread.ident is None:
            with suppress(OSError):
                os.write(1, f"process {os.getpid()}\n".encode())
            self._thread.start()
        elif self._answer is not None:
            self._answers.put(self._answer)
            self._answer = None
        return {"message": self._messages.get()}

    def answer(self, stop: bool) -> None:
        """Take the driver's decision about the last epoch; given before the next `step`."""
        self._answer = stop

    def cleanup(self) -> None:
        """End training before the process ends."""
        self._finish()

    def _begin(self, config: Mapping[str, Any]) -> None:
        job: Job = config["job"]
        self._names_node: bool = config["names_node"]
        with suppress(OSError):  # a full disk ends the trial where it matters
            _write_output_to(job.directory / WORKER_LOG)
        self._answer: bool | None = None
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._train, args=(job,), daemon=True)

    def _train(self, job: Job) -> None:
        def report(epoch: int, metrics: Mapping[str, float], checkpoint: Path | None) -> bool:
            self._messages.put((epoch, dict(metrics), checkpoint))
            return self._answers.get()

        outcome = Outcome(Status.FAILED, "the trainer left its thread")  # e.g. by SystemExit
        try:
            if job.directory.is_dir():
                outcome = run_trial(job, report)
            else:
                host = ray.util.get_node_ip_address()
                outcome = Outcome(Status.FAILED, f"{job.directory}: is not seen by node {host}")
        finally:
            self._messages.put(outcome)

    def _finish(self) -> None:
        """Let the thread end; a trainer that does not stop takes its process with it.

        A trainer whose last epoch is not decided about must not go on: it would tidy up what the
        log still needs. Its process ends as if it had been killed.
        """
        if self._thread.is_alive():
            if self._answer:
                self._answers.put(True)
                self._thread.join(STOP_PATIENCE_S)
            if self._thread.is_alive():
                os._exit(1)


def _write_output_to(path: Path) -> None:
    """Send this process's output, native libraries included, to a file of the trial."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


# --- Ray's processes ---------------------------------------------------------------------------


def end_leftovers(scratch: Path) -> None:
    """End what an earlier session of this study left running, and remove its directory.

    The file may be a copy, made with the study's directory while its driver runs: the session of a
    living driver is left alone, and so is every directory that is not one of ours.
    """
    try:
        facts = json.loads((scratch / SESSION_FILE).read_text())
        directory, driver = Path(facts["directory"]), facts["driver"]
    except (OSError, ValueError, KeyError):
        return
    if driver["pid"] != os.getpid() and is_running(driver["pid"], driver["started"]):
        return
    if directory.parent != SESSIONS or not directory.name.startswith(PREFIX):
        return
    leftovers = _processes_of(directory)
    for process in leftovers:
        process.kill()
    psutil.wait_procs(leftovers, timeout=10)
    shutil.rmtree(directory, ignore_errors=True)
    (scratch / SESSION_FILE).unlink(missing_ok=True)


def _processes_of(directory: Path) -> list[psutil.Process]:
    """Return the processes that have a file of this session open: each writes a log there.

    Ray's processes overwrite their command line, so open files are the reliable mark.
    """
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            files = process.open_files()
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(directory in Path(f.path).parents for f in files):
            found.append(process)
    return found


@contextmanager
def _session(scratch: Path, share: TrialResources, address: str | None) -> Generator[Path]:
    """Yield the directory of a running Ray; nothing of it is left afterwards.

    Raises:
        StoreError: the study's directory cannot be written.
        StudyFailedError: Ray did not start.
    """
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=SESSIONS))
    driver = {"pid": os.getpid(), "started": psutil.Process().create_time()}
    session: dict[str, Any] = {"directory": str(directory), "driver": driver}
    try:
        _write_session(scratch, session)
        try:
            _start_ray(directory, share, address)
        except SystemExit as error:  # Ray's handler of SIGTERM, which stands until ours is back
            raise SystemExit(128 + signal.SIGTERM) from error
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise StudyFailedError(
                f"Ray did not start: {error}. See {scratch / LOG_FILE}"
            ) from error
        token_file()  # Ray makes it 0644
        _write_session(scratch, {**session, "dashboard": _dashboard_facts()})
        yield directory
    finally:
        ray.shutdown()
        end_leftovers(scratch)
        shutil.rmtree(directory, ignore_errors=True)


def _start_ray(directory: Path, share: TrialResources, address: str | None) -> None:
    worker_environment = {"env_vars": share.environment() | {"RAY_CHDIR_TO_TRIAL_DIR": "0"}}
    quiet = {"log_to_driver": False, "logging_level": "WARNING"}
    if address is not None:
        ray.init(address, runtime_env=worker_environment, **quiet)
        return
    ray.init(
        "local",
        num_cpus=max(1, round(share.cpus * share.max_concurrent)),
        num_gpus=gpus() if share.gpus else 0,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,  # `automl.dashboard` attaches one when it is wanted
        runtime_env=worker_environment,
        _temp_dir=str(directory),
        **quiet,
    )


def token_file() -> Path:
    """Return the file of Ray's API token, made readable by its owner only."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE).expanduser()
    if file.is_file():
        file.chmod(0o600)
    return file


def _write_session(scratch: Path, facts: Mapping[str, Any]) -> None:
    temporary = scratch / f"{SESSION_FILE}.tmp"
    try:
        temporary.write_text(json.dumps(facts), encoding="utf-8")
        temporary.replace(scratch / SESSION_FILE)
    except OSError as error:
        raise StoreError(f"{scratch}: cannot be written: {error.strerror}") from error


def _dashboard_facts() -> dict[str, str]:
    """Return what a dashboard needs to attach to this session (`automl.dashboard`)."""
    node = ray._private.worker._global_node
    return {
        "gcs-address": node.gcs_address,
        "cluster-id-hex": node.cluster_id.hex(),
        "node-ip-address": node.node_ip_address,
        "session-dir": node.get_session_dir_path(),
        "log-dir": node.get_logs_dir_path(),
        "temp-dir": node.temp_dir,
    }


@contextmanager
def _ray_log(scratch: Path) -> Generator[None]:
    """Send what Ray logs in this process to `ray.log` instead of the terminal.

    The notes of its background thread (a worker died) have no switch in Ray 2.60, so they are
    turned off where its own debugger does it; our log names every such death.
    """
    logger = logging.getLogger("ray")
    handlers, propagate = list(logger.handlers), logger.propagate
    file = logging.FileHandler(scratch / LOG_FILE, encoding="utf-8", delay=True)
    file.handleError = lambda record: None  # a full disk is reported by the event log
    logger.handlers, logger.propagate = [file], False
    ray._private.worker._worker_logs_enabled = False
    try:
        yield
    finally:
        ray._private.worker._worker_logs_enabled = True
        logger.handlers, logger.propagate = handlers, propagate
        file.close()
