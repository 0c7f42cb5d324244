"""A mistake that is planted: a replacement in one file."""

from dataclasses import dataclass
from pathlib import Path

from layout import ROOT


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str
    folder: str = "architectures"

    @property
    def source(self) -> Path:
        return ROOT / self.folder / self.file

    def plant(self, home: Path) -> None:
        """In a copy of the package."""
        file = home / "nnzoo" / Path(self.folder).name / self.file
        file.write_text(self.source.read_text().replace(self.old, self.new))
