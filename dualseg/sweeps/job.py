"""One run of a sweep, as a launcher calls it: in processes of its own, whatever it does to the others."""

from typing import Any


def run_job(config: Any) -> None:
    """Train the composed configuration of one job of `dualseg-train -m`, and record how that ended.

    The run gets fresh processes, so that nothing of it is left to the next one; its console output goes to a file of
    the sweep. A failure is recorded, not raised: the other runs go on. In a Slurm job the processes are fresh already,
    one a task.

    Raises:
        KeyboardInterrupt: Ctrl-C, which ends the sweep as well.
        Exception: in a Slurm job, whatever fails: its launcher collects it.
    """
    from hydra.core.hydra_config import HydraConfig

    from dualseg.processes import processes_of, run_group
    from dualseg.runs.folder import RunFolder
    from dualseg.runs.settings import resolve
    from dualseg.sweeps.index import Sweep

    hydra = HydraConfig.get()
    if hydra.runtime.choices["hydra/launcher"] == "submitit_slurm":
        from dualseg.train import train

        train(config)
        return
    settings = resolve(config)
    run, sweep = RunFolder.of(settings).path.name, Sweep(hydra.sweep.dir)
    config_dirs = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    words = [word for path in config_dirs for word in ("--config-dir", path)]
    words += [word for word in hydra.overrides.task if not word.startswith("launcher=")]
    words.append("trainer.progress_bar=false")
    ended = run_group(words, processes_of(settings["trainer"]), log=sweep.log_file(run))
    if ended.code == 130:
        raise KeyboardInterrupt
    if ended.code:
        sweep.record_failure(run, ended.reason or f"exit code {ended.code}")
