"""`dualseg-audit`: a table of loss term x network -> gradient norm, for any configuration of dualseg-train."""

from typing import Any

from dualseg.command.start import run_with_hydra
from dualseg.train import OUT_OF_MEMORY

BATCHES = 3
# iterations before the audit, and how many more where a mask was empty: early, confident predictions are rare
WARM_UP = (10, 30, 60, 100)

HELP = """dualseg-audit [any key=value of dualseg-train; see dualseg-train --help]

  Trains a few iterations of that configuration, more while the mask of a term is empty (200 at the most), then prints,
  for each loss term and network, the norm of the weighted gradient that the term sends at full ramp. A term that is on
  and sends none is red, and the exit code is 2. With weights=RUN_FOLDER it audits the networks of a trained run.
"""


def audit_config(config: Any) -> None:
    """Train a few iterations, audit the next batches, print the table.

    Raises:
        DualsegError: a term that is on sends no gradient where it should (exit code 2).
    """
    from dualseg.training.dataset import check_data
    from dualseg.training.settings import check_weights, resolve

    settings = resolve(config)
    check_weights(settings)
    check_data(settings)

    import pytorch_lightning as pl
    from rich.console import Console

    from dualseg.errors import DualsegError
    from dualseg.machine import MemoryLimit
    from dualseg.methods.audit import audit
    from dualseg.reporting.audit_table import audit_table
    from dualseg.training import assembly
    from dualseg.training.progress import shows_bar
    from dualseg.training.weights import start_from

    assembly.use_threads(settings)
    data = assembly.build_data(settings)
    data.check_memory(MemoryLimit.of("data.memory", settings["data"].get("memory")))
    method = assembly.build_method(settings, data.source)
    if settings["weights"]:
        start_from(settings["weights"], method, settings["weights_as"])
    trained = 0
    for iterations in WARM_UP:
        trainer = pl.Trainer(
            max_steps=max(settings["trainer"]["max_iterations"], iterations + BATCHES),
            limit_train_batches=iterations,
            max_epochs=1,
            limit_val_batches=0,
            accelerator=settings["trainer"]["accelerator"],
            devices=1,
            # whatever trainer.precision says: in float16 a weak term's unscaled gradient would be rounded to zero
            precision="32-true",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=shows_bar(settings["trainer"]),
        )
        trainer.fit(method, data)
        trained += iterations
        loader = data.train_dataloader()
        batches = [trainer.strategy.batch_to_device(batch) for _, batch in zip(range(BATCHES), loader, strict=False)]
        method.to(trainer.strategy.root_device)
        rows = audit(method, batches, settings["trainer"]["max_iterations"])
        if all(row.verdict != "empty" for row in rows):
            break
    Console().print(audit_table(rows, list(method.takes), len(batches)))
    empty = sorted({row.term for row in rows if row.verdict == "empty"})
    if empty:
        fix = "weights=RUN_FOLDER audits trained networks"
        print(f"Never audited: {', '.join(empty)}, no voxel of its mask in batches after {trained} iterations; {fix}.")
    dead = [f"{row.term} ({row.network or 'shared'})" for row in rows if row.verdict in ("dead", "leak")]
    if dead:
        raise DualsegError(f"{', '.join(dead)}: on, but the gradient does not go where it should; see the red rows.")


def main() -> None:
    """Console script."""
    run_with_hydra(audit_config, "train", help_text=HELP, out_of_memory=OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
