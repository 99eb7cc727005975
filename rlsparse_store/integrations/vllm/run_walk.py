"""Walking one loaded engine through the checkpoints of a run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsparse_store.delta.run_files import delta_names
from rlsparse_store.errors import NotFoundError
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike

__all__ = ["walk"]


def walk(
    llm: Any,  # noqa: ANN401 - vllm.LLM
    run: str | PathLike[str],
    *,
    only: Sequence[str] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Load each checkpoint of a run into a running engine, in natural order of their names.

    Each delta is verified in full before the engine's weights are touched. The engine stays at the
    last checkpoint.

    Args:
        llm: A ``vllm.LLM`` with ``load_format="rlsparse"``, the base or a delta of the run as its
            model, ``model_loader_extra_config={"roots": [RUN]}`` and
            ``weight_transfer_config={"backend": "rlsparse"}``.
        run: Folder of the run, as the engine's processes see it.
        only: Names of the checkpoints, in the order to visit them; by default all.

    Yields:
        The name of a checkpoint, and the engine with its weights.

    Raises:
        NotFoundError: The run holds no such checkpoint.

    Example:
        >>> for name, engine in walk(llm, "runs/grpo"):  # doctest: +SKIP
        ...     print(name, evaluate(engine))
    """
    folder = Path(run).absolute()
    names = delta_names(folder)
    missing = [name for name in only or () if name not in names]
    if missing or not names:
        msg = f"the run has no checkpoint {printable(missing[0])}" if missing else "holds no delta"
        raise NotFoundError(msg, file=printable(str(folder)))
    llm.collective_rpc("init_weight_transfer_engine", args=({},))
    for name in only or names:
        llm.collective_rpc("start_weight_update")
        try:
            llm.collective_rpc("update_weights", args=({"place": str(folder / name)},))
        except BaseException:
            # Ends the update on ranks that did not raise, and is an error on the one that did.
            with suppress(Exception):
                llm.collective_rpc("finish_weight_update")
            raise
        llm.collective_rpc("finish_weight_update")
        # It holds attention states that the old weights computed.
        llm.reset_prefix_cache()
        yield name, llm
