"""Arm's Ethos-U NPUs, and the clocks and memories about each that stand for it unless others are named.

An NPU's speed is that of its memories as much as its own, so that Vela estimates for an accelerator in a **system**
(clock and bandwidths) and a **memory mode** (what lies where). Both have names in Vela's configuration file
``Arm/vela.ini``; a board of one's own has a file of its own.

Source: ethos-u-vela 5.2, option ``--accelerator-config`` and ``config_files/Arm/vela.ini``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detloom.errors import RecipeError, suggest

__all__ = ["ACCELERATORS", "MEMORY_MODES", "SYSTEMS", "Machine", "Optimise", "family_of"]

Optimise = Literal["performance", "size"]

FLASH = ("Ethos_U55_High_End_Embedded", "Shared_Sram")
DRAM = ("Ethos_U65_High_End", "Dedicated_Sram")
SMALL_CACHE = ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_384KB")
LARGE_CACHE = ("Ethos_U85_SYS_DRAM_High", "Dedicated_Sram_512KB")

ACCELERATORS: Mapping[str, tuple[str, str]] = {
    "ethos-u55-32": FLASH,
    "ethos-u55-64": FLASH,
    "ethos-u55-128": FLASH,
    "ethos-u55-256": FLASH,
    "ethos-u65-256": DRAM,
    "ethos-u65-512": DRAM,
    "ethos-u85-128": SMALL_CACHE,
    "ethos-u85-256": SMALL_CACHE,
    "ethos-u85-512": SMALL_CACHE,
    "ethos-u85-1024": LARGE_CACHE,
    "ethos-u85-2048": LARGE_CACHE,
}
"""The usual system and memory mode of each; the last number is that of multiply-accumulates in a cycle."""

SYSTEMS: Mapping[str, tuple[str, ...]] = {
    "ethos-u55": ("Ethos_U55_Deep_Embedded", "Ethos_U55_High_End_Embedded"),
    "ethos-u65": (
        "Ethos_U65_Embedded",
        "Ethos_U65_Mid_End",
        "Ethos_U65_High_End",
        "Ethos_U65_Client_Server",
    ),
    "ethos-u85": (
        "Ethos_U85_SYS_Flash_Low",
        "Ethos_U85_SYS_Flash_High",
        "Ethos_U85_SYS_DRAM_Low",
        "Ethos_U85_SYS_DRAM_Mid",
        "Ethos_U85_SYS_DRAM_High",
    ),
}
"""Those of Vela's file, by the family of accelerators that they are for."""

MEMORY_MODES = (
    "Sram_Only",
    "Shared_Sram",
    "Dedicated_Sram",
    "Dedicated_Sram_256KB",
    "Dedicated_Sram_384KB",
    "Dedicated_Sram_512KB",
)


def family_of(accelerator: str) -> str:
    """Return ``"ethos-u55"`` of ``"ethos-u55-256"``."""
    return accelerator.rpartition("-")[0]


@dataclass(frozen=True, slots=True)
class Machine:
    """What a network is compiled for.

    Attributes:
        accelerator: Of ``ACCELERATORS``.
        system: Clock and bandwidths.
        memory: What lies where.
        config: Vela's file that has both; empty for its own.
        optimise: What the schedule is made for.
        arena_kib: What the network may take of the SRAM; None for what the memory mode has of it.
    """

    accelerator: str
    system: str
    memory: str
    config: str
    optimise: Optimise
    arena_kib: int | None

    @classmethod
    def of(
        cls,
        accelerator: str,
        *,
        system: str = "",
        memory: str = "",
        config: str = "",
        optimise: Optimise = "performance",
        arena_kib: int | None = None,
    ) -> "Machine":
        """Return a machine with its usual system and memory where they are empty.

        Raises:
            RecipeError: A name is not known, a system is another family's, the file is missing, or the arena is empty.
        """
        if accelerator not in ACCELERATORS:
            raise RecipeError(_unknown("accelerator", accelerator, ACCELERATORS))
        if arena_kib is not None and arena_kib < 1:
            raise RecipeError(f"arena_kib must be at least 1, got {arena_kib}")
        usual_system, usual_memory = ACCELERATORS[accelerator]
        machine = cls(accelerator, system or usual_system, memory or usual_memory, config, optimise, arena_kib)
        if config:
            if not Path(config).is_file():
                raise RecipeError(
                    f"config = '{config}': there is no such file; give the path of a configuration file of Vela, or "
                    "leave it out for Vela's own"
                )
            return machine
        # Vela itself takes a system of another family, and its figures are then of no machine at all.
        if machine.system not in SYSTEMS[family_of(accelerator)]:
            raise RecipeError(_unknown("system", machine.system, SYSTEMS[family_of(accelerator)], f" of {accelerator}"))
        if machine.memory not in MEMORY_MODES:
            raise RecipeError(_unknown("memory", machine.memory, MEMORY_MODES))
        return machine


def _unknown(setting: str, name: str, known: Mapping[str, object] | tuple[str, ...], of: str = "") -> str:
    return (
        f"{setting} = '{name}': there is no such {setting}{of}.{suggest(name, known)}\n  known: {', '.join(known)}"
        + ("" if setting == "accelerator" else "; others need `config`, a configuration file of Vela's that has them")
    )
