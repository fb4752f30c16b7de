"""`dalle compile`: compile the step of a model for this machine, once."""

from typing import Annotated

import typer

from dalle.cli.look import ModelArgument
from dalle.command_line import exit_on_mistake
from dalle.defaults import DEFAULT_MODEL, NUM_SLOTS, Weights
from dalle.files import CannotWriteError
from dalle.interrupt import heavy_imports

__all__ = ["compile_step_of_model"]


@exit_on_mistake()
def compile_step_of_model(
    model: ModelArgument = DEFAULT_MODEL,
    num_slots: Annotated[
        int, typer.Option(min=2, max=1024, help="Slots of the engine, as in the settings of the service.")
    ] = NUM_SLOTS,
    weights: Annotated[
        Weights,
        typer.Option(
            help="Type of the decoder's weights: float32 leaves them as they are; bfloat16 and int8 round them, which "
            "is faster and changes some codes."
        ),
    ] = "float32",
) -> None:
    """Compile a model for this machine, once: faster drawing.

    The engine's step becomes one program for this processor, which `generate`, the
    service and batches then use, if it was measured to be faster. It takes a C++
    compiler now (g++), and none later. It is kept in ~/.cache/dalle, or the folder
    that the environment variable DALLE_CACHE names, and takes about twice the room
    of the model's decoder on disk and in memory.

        dalle compile
        dalle compile models/mine --num-slots 16
        dalle compile --weights int8
    """
    with heavy_imports():
        from dalle.model import Model
        from dalle.steps import CompiledModel, compile_model, equal_codes
    loaded = Model.load(model, device="cpu")
    found = CompiledModel.find(loaded.digest, num_slots, weights)
    if found is None or not found.can_be_loaded(loaded.decoder, num_slots, weights):
        print(f"compiling {loaded.name} for {num_slots} slots ...", flush=True)
        try:
            found = compile_model(loaded, num_slots, weights)
        except OSError as error:
            raise CannotWriteError(f"cannot keep the compiled step: {error}") from error
    eager, compiled = found.milliseconds["eager"], found.milliseconds["compiled"]
    kind = f"with {num_slots} slots" + ("" if weights == "float32" else f" and {weights} weights")
    use = f"is used from now on {kind}" if found.is_faster else "is not faster here, and is not used"
    print(f"compiled {found.folder}: {compiled:.2f} ms a step, {eager:.2f} without; it {use}")
    if weights != "float32":
        share = equal_codes(loaded, weights)
        print(f"{weights} weights draw {100 * share:.1f} % of the codes that float32 weights draw after the same codes")
