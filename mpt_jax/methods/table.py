"""The table of methods. One of your own: ``register(Method(...))`` in the module that MIXTURE_OR_TASK_MODULE names, then METHOD."""

from mpt_jax.config import WEIGHT_STAGES, Settings, TrainSettings
from mpt_jax.errors import UserError
from mpt_jax.methods import adapter, attempt, bitfit, dept, ia3, lora, prefix, prompt, spot, vectors, weights
from mpt_jax.methods.method import Method

METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        prompt.METHOD,
        weights.METHOD,
        lora.METHOD,
        ia3.METHOD,
        bitfit.METHOD,
        adapter.METHOD,
        prefix.METHOD,
        dept.METHOD,
        spot.METHOD,
        attempt.METHOD,
        vectors.METHOD,
    )
}


def register(method: Method) -> None:
    """Adds a method, or replaces the one of the same name. A name that is not in the table raises UserError where METHOD is read.

    >>> register(METHODS["prompt"]._replace(name="slow_prompt", learning_rate=0.05))
    >>> method_named("slow_prompt").learning_rate
    0.05
    """
    METHODS[method.name] = method


def method_named(name: str) -> Method:
    """A row of the table. Raises UserError for a name that it does not have."""
    if name not in METHODS:
        raise UserError(f"METHOD = {name!r} is not one of {', '.join(METHODS)}.")
    return METHODS[name]


def method_of(train: TrainSettings) -> Method:
    """The method of a stage: stages that train the backbone have their own. Raises UserError where another one is given."""
    if not train.trains_backbone:
        if train.method == weights.METHOD.name:
            stages = ", ".join(WEIGHT_STAGES)
            raise UserError(f"METHOD = {train.method!r} is of the stages {stages}: type `mpt-jax train {WEIGHT_STAGES[0]}`.")
        return method_named(train.method)
    if train.method not in (TrainSettings.method, weights.METHOD.name):
        message = f"METHOD = {train.method!r} trains nothing of the backbone, and stage {train.stage!r} trains all of it"
        raise UserError(f"{message}: leave METHOD out, or take stage 'teacher'.")
    return weights.METHOD


def own_settings(settings: Settings, method: Method) -> Settings:
    """The settings with the method's own and its learning rates where none are given.

    Raises UserError where those given are another method's.
    """
    settings = settings._replace(optimizer=method.rates(settings.optimizer, settings.train.stage))
    if settings.method is None:
        return settings._replace(method=method.settings() if method.settings else None)
    if type(settings.method) is not method.settings:
        name = type(settings.method).__name__
        owner = next((row.name for row in METHODS.values() if row.settings is type(settings.method)), "another method")
        raise UserError(f"{name} is set, and METHOD = {method.name!r} does not read it: type --method {owner}, or leave it out.")
    return settings
