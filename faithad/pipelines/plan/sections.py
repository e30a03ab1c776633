"""What a plan multiplies, as sections of YAML files: machines (cluster/machines.yaml), rates and counts (--rates)."""

from __future__ import annotations

import json
from typing import Annotated, Any

import yaml
from pydantic import Field

from faithad import storage
from faithad.config.base import AnySection, Section
from faithad.config.file import parse
from faithad.config.yaml_text import read_text
from faithad.pipelines.cluster.machines import Nodes

_HEADER = """\
# Rates for `faithad plan --rates`, in seconds and bytes. They hold for the settings below and may be edited. To plan
# for other recordings than those of the configuration, say how many clips they have:
# `clips: {train: , validation: , test: , annotated: , recordings: }`.
"""


class MachineGroup(Section):
    """Machines of one kind: what each of them has and costs; `dollars_per_hour` null where that is not known."""

    name: Annotated[str, Field(min_length=1)]
    count: int = Field(1, ge=1)
    cpus: float = Field(ge=0)
    gpus: float = Field(0, ge=0)
    dollars_per_hour: float | None = Field(None, ge=0)

    def __str__(self) -> str:
        return f"{self.count} x {self.name} ({self.cpus:g} CPU" + (f", {self.gpus:g} GPU)" if self.gpus else ")")


class Storage(Section):
    """Where tables and models are kept."""

    dollars_per_gb_month: float | None = Field(None, ge=0)


class Machines(Section):
    """A cluster. The driver runs on a machine of the first group."""

    groups: Annotated[tuple[MachineGroup, ...], Field(min_length=1)]
    storage: Storage = Storage()

    @property
    def nodes(self) -> Nodes:
        """As Ray would list them."""
        return [{"CPU": group.cpus, "GPU": group.gpus} for group in self.groups for _ in range(group.count)]

    @property
    def dollars_per_hour(self) -> float | None:
        """Of all of them; None where a price is missing."""
        prices = [group.count * group.dollars_per_hour for group in self.groups if group.dollars_per_hour is not None]
        return sum(prices) if len(prices) == len(self.groups) else None

    def total(self, resource: str) -> float:
        """How many `CPU` or `GPU` all of them have."""
        return sum(node[resource] for node in self.nodes)


class Counts(Section):
    """Clips of each split, test clips with reference intervals, and recordings."""

    train: int = Field(0, ge=0)
    validation: int = Field(0, ge=0)
    test: int = Field(ge=1)
    annotated: int = Field(0, ge=0)
    recordings: int = Field(ge=1)


class Cost(Section):
    """Seconds of an actor with one core, or with its GPU, and bytes written, for a clip."""

    seconds: float = Field(ge=0)
    bytes: float = Field(0, ge=0)


class Rates(Section):
    """What is measured of a configuration.

    `fixed`: seconds of each stage, however many clips there are: the start of processes, most of all. `read`: seconds
    of a core for the features of a clip. `score`, `explain`: of each model. `learn`: seconds of a training for a clip
    in one epoch, by model, on `threads` threads. `feature_bytes`: of a clip whose features are kept. `report_bytes`: of
    the report and the summaries.
    """

    measured: str = ""
    settings: dict[str, Any] = Field({})
    clips: Counts | None = None
    fixed: dict[str, float] = Field({})
    read: float = Field(0, ge=0)
    score: dict[str, Cost] = Field({})
    explain: dict[str, Cost] = Field({})
    learn: dict[str, float] = Field({})
    threads: int = Field(1, ge=1)
    feature_bytes: float = Field(0, ge=0)
    report_bytes: float = Field(0, ge=0)


def write_rates(rates: Rates, location: str) -> None:
    """Write them with four digits, which are more than a measurement gives."""
    values = json.loads(rates.model_dump_json(exclude_none=True), parse_float=lambda text: float(f"{float(text):.4g}"))
    storage.write_text(location, _HEADER + yaml.safe_dump(values, sort_keys=False))


def read_section(kind: type[AnySection], location: str) -> AnySection:
    """Read a YAML file that holds one section: `Machines` or `Rates`.

    Raises:
        ConfigError: the file cannot be read, or keys are unknown, missing or impossible; each is named.
    """
    return parse(kind, read_text(location), name=location)
