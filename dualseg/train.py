"""`dualseg-train`: from a configuration to a finished run folder; started again, it resumes."""

import sys
from pathlib import Path
from typing import Any

from dualseg.cli import run_with_hydra
from dualseg.sweeps.job import run_job


def train(config: Any) -> None:
    """Train, evaluate and write the run folder of a composed configuration; a finished run is not repeated.

    Raises:
        DualsegError: whatever the user can mend; nothing half-written is left behind.
    """
    from dualseg.runs.folder import RunFolder, iteration_of
    from dualseg.runs.settings import check_data, check_weights, resolve

    settings = resolve(config)
    folder = RunFolder.of(settings)
    folder.claim(settings)
    if folder.finished and not settings["overwrite"]:
        _show(folder)
        return
    latest = None if settings["overwrite"] else folder.latest_checkpoint()
    if latest is None:
        check_weights(settings)
    check_data(settings)

    from dualseg import assembly
    from dualseg.runs import checkpoints, curves, provenance

    assembly.use_threads(settings)
    data = assembly.build_data(settings)
    method = assembly.build_method(settings, data.source)
    networks = dict(method.networks.items())
    if latest is not None:
        checkpoints.check_architecture(latest, networks)
    elif settings["weights"]:
        checkpoints.load_networks(settings["weights"], networks)
    data.setup("fit")
    along = ["validation"] if settings["trainer"]["validate_every"] else []
    stages = list(dict.fromkeys([*along, *settings["evaluate_on"]]))
    data.check_evaluation(stages)
    resumed_at = iteration_of(latest) if latest else 0
    if latest is not None:
        provenance.check_same_data(folder.manifest_file, data.fingerprint())
    trainer = assembly.build_trainer(settings, folder, resumed_at, provenance.resume_command())
    data.check_processes(trainer.world_size, stages)
    new = trainer.is_global_zero and (settings["overwrite"] or not folder.path.exists())
    try:
        if trainer.is_global_zero:
            folder.open(settings)
            facts = {"dataset": settings["data"]["name"], "fingerprint": data.fingerprint(), **data.cases_used}
            provenance.start(folder.manifest_file, provenance.describe(settings["seed"], facts), resumed_at)
            print(f"Resuming {folder.path} from iteration {resumed_at}" if latest else f"Training {folder.path}")
        _fit_and_evaluate(trainer, method, data, latest, settings["evaluate_on"])
    except BaseException:
        if new:
            folder.remove_if_bare()
        raise
    if trainer.is_global_zero:
        _write(folder, trainer, method, data)
        _show(folder)
        warning = curves.collapse(folder.curves_file)
        if warning:
            print(f"warning: {warning}", file=sys.stderr)


def _fit_and_evaluate(trainer: Any, method: Any, data: Any, latest: Path | None, evaluate_on: list[str]) -> None:
    from pytorch_lightning.loggers import WandbLogger

    failed = True
    try:
        trainer.fit(method, data, ckpt_path=latest)
        method.results.clear()
        trainer.limit_val_batches = 1.0
        stages = {"validation": (trainer.validate, data.split.validation), "test": (trainer.test, data.split.test)}
        for evaluate, cases in (stages[stage] for stage in evaluate_on):
            if cases:
                evaluate(method, data, verbose=False)
        failed = False
    finally:
        # an open W&B run is reused: the next run of `-m` would log into this one's
        if any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            import wandb

            wandb.finish(exit_code=int(failed))


def _write(folder: Any, trainer: Any, method: Any, data: Any) -> None:
    from dualseg.runs import provenance, results
    from dualseg.runs.callbacks import RunTime

    cases = {"validation": data.split.validation, "test": data.split.test}
    results.write_cases(folder.cases_file, method.results, cases)
    run_time = next(callback for callback in trainer.callbacks if isinstance(callback, RunTime))
    provenance.finish(folder.manifest_file, run_time.seconds)
    folder.finish(results.metrics_of(method.results, trainer.max_steps))


def _show(folder: Any) -> None:
    from dualseg.files import read_json
    from dualseg.runs.tables import results_table

    print(f"Finished: {folder.path}\n{results_table(read_json(folder.metrics_file), folder.config())}")


def main() -> None:
    """Console script."""
    run_with_hydra(train, "train", in_sweep=run_job)


if __name__ == "__main__":
    main()
