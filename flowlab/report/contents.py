"""What a results folder holds, as a document: the answers, then what they rest on."""

import os
from pathlib import Path

from flowlab.analysis.verdicts import KEPT_WITHIN
from flowlab.errors import InputError
from flowlab.report import answers, claims, lookup, provenance, studies, theory
from flowlab.report.document import Document
from flowlab.report.reading import Reader, Watch


def gather(
    root: str | Path,
    title: str = "Gradient flow",
    kept_within: float = KEPT_WITHIN,
    watch: Watch | None = None,
) -> Document:
    """The document of a results folder, verdicts by the threshold ``kept_within`` (decades).

    ``watch`` follows the reading. What is missing, damaged or foreign is named in the document and
    left out. Raises InputError where there is no such folder or nothing in it.
    """
    root = Path(root)
    reader = Reader(root, kept_within, watch)
    chapters = reader.chapters()
    reader.at("reading claims")
    known, claimed = claims.read(reader)
    timed, benchmark = provenance.benchmark(reader)
    unreadable = os.path.lexists(root / "claims" / "claims.parquet")
    if not (chapters or known or timed or unreadable):
        raise InputError(f"results_dir must hold results; got none in {root} (make run, first)")
    sections = [
        *studies.section(chapters, reader),
        *lookup.section(chapters),
        *theory.section(chapters),
        *claims.section(known),
        *timed,
    ]
    made = {"claims": claimed, "benchmark": benchmark}
    sections.append(provenance.section(chapters, made, reader, answers.meaning(chapters)))
    opening = answers.opening(chapters, claims.verdicts(known), kept_within)
    return Document(title, opening, tuple(sections), tuple(reader.missing))
