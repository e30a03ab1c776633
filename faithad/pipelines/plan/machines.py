"""The machines to plan for: this one, or a cluster that a file describes (cluster/machines.yaml)."""

from __future__ import annotations

import os
from typing import Annotated

import torch
from pydantic import Field

from faithad.config.file import parse
from faithad.config.sections import AnySection, Section
from faithad.config.yaml_text import read_text
from faithad.pipelines.cluster.machines import Nodes
from faithad.pipelines.cluster.session import usable_cores


class Group(Section):
    """Machines of one kind. `memory`: GiB of each; `dollars_per_hour` of each, null where it is not known."""

    name: Annotated[str, Field(min_length=1)]
    count: int = Field(1, ge=1)
    cpus: float = Field(ge=0)
    gpus: float = Field(0, ge=0)
    memory: float | None = Field(None, gt=0)
    dollars_per_hour: float | None = Field(None, ge=0)

    @property
    def equipment(self) -> str:
        """Of each of them."""
        gpus = f", {self.gpus:g} GPU" if self.gpus else ""
        memory = f", {self.memory:g} GiB" if self.memory else ""
        return f"{self.cpus:g} CPU{gpus}{memory}"


class Storage(Section):
    """Where tables and models are kept."""

    dollars_per_gb_month: float | None = Field(None, ge=0)


class Machines(Section):
    """A cluster. The driver runs on a machine of the first group."""

    groups: Annotated[tuple[Group, ...], Field(min_length=1)]
    storage: Storage = Storage()

    @property
    def cpus(self) -> float:
        return sum(group.count * group.cpus for group in self.groups)

    @property
    def gpus(self) -> float:
        return sum(group.count * group.gpus for group in self.groups)

    @property
    def nodes(self) -> Nodes:
        """As Ray would list them."""
        return [{"CPU": group.cpus, "GPU": group.gpus} for group in self.groups for _ in range(group.count)]

    @property
    def dollars_per_hour(self) -> float | None:
        """Of all of them; None where a price is missing."""
        prices = [group.count * group.dollars_per_hour for group in self.groups if group.dollars_per_hour is not None]
        return sum(prices) if len(prices) == len(self.groups) else None

    def twice(self) -> Machines:
        """Twice as many of each."""
        groups = tuple(group.model_copy(update={"count": 2 * group.count}) for group in self.groups)
        return self.model_copy(update={"groups": groups})

    def __str__(self) -> str:
        if len(self.nodes) == 1:
            return f"{self.groups[0].name} ({self.groups[0].equipment})"
        return " and ".join(f"{group.count} x {group.name} ({group.equipment})" for group in self.groups)


def this_machine() -> Machines:
    """The machine that this runs on, with the cores that this process may use."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = torch.cuda.device_count()
    return Machines(groups=(Group(name="this machine", cpus=usable_cores(), gpus=gpus, memory=round(gib, 1)),))


def read_section(kind: type[AnySection], location: str) -> AnySection:
    """Read a YAML file that holds one section: `Machines` or `Rates`.

    Raises:
        ConfigError: the file cannot be read, or keys are unknown, missing or impossible; each is named.
    """
    return parse(kind, read_text(location), name=location)
