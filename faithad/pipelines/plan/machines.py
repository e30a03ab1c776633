"""The machines to plan for: this one as it is, or a cluster that a file describes (cluster/machines.yaml)."""

from __future__ import annotations

import os
from collections import Counter
from typing import Annotated

from pydantic import Field

from faithad.config.file import parse, read_text
from faithad.config.sections import AnySection, Section
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
    def count(self) -> int:
        return sum(group.count for group in self.groups)

    @property
    def nodes(self) -> Nodes:
        """As Ray would list them."""
        return [{"CPU": group.cpus, "GPU": group.gpus} for group in self.groups for _ in range(group.count)]

    @property
    def dollars_per_hour(self) -> float | None:
        """Of all of them; None where a price is missing."""
        total = 0.0
        for group in self.groups:
            if group.dollars_per_hour is None:
                return None
            total += group.count * group.dollars_per_hour
        return total

    def times(self, factor: int) -> Machines:
        """So many times as many of each."""
        groups = tuple(group.model_copy(update={"count": factor * group.count}) for group in self.groups)
        return self.model_copy(update={"groups": groups})

    def __str__(self) -> str:
        if self.count == 1:
            return f"{self.groups[0].name} ({self.groups[0].equipment})"
        return " and ".join(f"{group.count} x {group.name} ({group.equipment})" for group in self.groups)


def this_machine() -> Machines:
    """The machine that this runs on, with the cores that this process may use."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    group = Group(name="this machine", cpus=usable_cores(), memory=round(gib, 1))
    return Machines(groups=(group,))


def machines_of(nodes: Nodes) -> Machines:
    """The machines of a Ray, from what each of them has."""
    kinds = Counter((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes)
    if len(nodes) == 1:
        ((cpus, gpus),) = kinds
        return Machines(groups=(this_machine().groups[0].model_copy(update={"cpus": cpus, "gpus": gpus}),))
    return Machines(
        groups=tuple(
            Group(name=f"machine-{number}", count=count, cpus=cpus, gpus=gpus)
            for number, ((cpus, gpus), count) in enumerate(kinds.items(), start=1)
        )
    )


def read_machines(location: str) -> Machines:
    """Read a cluster's description.

    Raises:
        ConfigError: the file cannot be read, or keys are unknown, missing or impossible; each is named.
    """
    return read_section(Machines, location)


def read_section(kind: type[AnySection], location: str) -> AnySection:
    """Read a YAML file that is one section, with lists or tables of sections in it.

    Raises:
        ConfigError: as `read_machines`.
    """
    return parse(kind, read_text(location), name=location)
