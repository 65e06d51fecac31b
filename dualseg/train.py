"""`dualseg-train`: from a configuration to a finished run folder; started again, it resumes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dualseg.cli import run_with_hydra


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
    from dualseg.runs import checkpoints, provenance

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
    data.check_evaluation(dict.fromkeys([*along, *settings["evaluate_on"]]))
    resumed_at = iteration_of(latest) if latest else 0
    if latest is not None:
        provenance.check_same_data(folder.manifest_file, data.fingerprint())
    trainer = assembly.build_trainer(settings, folder, resumed_at, provenance.resume_command())
    new = trainer.is_global_zero and (settings["overwrite"] or not folder.path.exists())
    try:
        if trainer.is_global_zero:
            folder.open(settings)
            facts = {"dataset": settings["data"]["name"], "fingerprint": data.fingerprint(), **data.cases_used}
            provenance.start(folder.manifest_file, provenance.describe(settings["seed"], facts), resumed_at)
            print(f"Resuming {folder.path} from iteration {resumed_at}" if latest else f"Training {folder.path}")
        with _closing_wandb(trainer, folder):
            _fit_and_evaluate(trainer, method, data, latest, settings["evaluate_on"])
            if trainer.is_global_zero:
                _write(folder, trainer, method, data)
    except BaseException:
        if new:
            folder.remove_if_bare()
        raise
    if trainer.is_global_zero:
        _show(folder)


@contextmanager
def _closing_wandb(trainer: Any, folder: Any) -> Iterator[None]:
    """`logger=wandb`: results go to the W&B run when the block ends well; it is closed however the block ends."""
    from dualseg.runs.wandb_logger import WandbLogger

    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    failed = True
    try:
        yield
        if trainer.is_global_zero:
            from dualseg.reporting.wandb import log_results

            for logger in loggers:
                log_results(folder.path, logger.experiment)
        failed = False
    finally:
        for logger in loggers:
            logger.close(failed)


def _fit_and_evaluate(trainer: Any, method: Any, data: Any, latest: Path | None, evaluate_on: list[str]) -> None:
    trainer.fit(method, data, ckpt_path=latest)
    method.results.clear()
    trainer.limit_val_batches = 1.0
    stages = {"validation": (trainer.validate, data.split.validation), "test": (trainer.test, data.split.test)}
    for evaluate, cases in (stages[stage] for stage in evaluate_on):
        if cases:
            evaluate(method, data, verbose=False)


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
    run_with_hydra(train, "train")


if __name__ == "__main__":
    main()
