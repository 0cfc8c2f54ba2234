"""What stands on top: what was measured in a line, the answers, and the figure of the first."""

from flowlab.analysis.comparison import answer
from flowlab.analysis.verdicts import AGREEMENTS, TRENDS, tally
from flowlab.report import claims
from flowlab.report.document import Opening, Reference, Text
from flowlab.report.reading import Chapter
from flowlab.report.words import count, listing

MOST = 7  # answers on the first screen
NOTE = (
    "The change is that of log10‖δ‖ (δ = ∂L/∂z, z the preactivation) going backward from the last "
    "layer to the first, in decades (powers of ten): negative where the gradient vanishes on its "
    "way. Brackets hold the 95 % interval over seeds."
)
MEANING = (
    "How do gradients travel backward through deep networks at initialization? For each "
    "configuration an ensemble of networks (one per seed) is drawn, a batch is sent forward and a "
    "cotangent backward, and the norm of δ is taken in every layer. Its change over the body (all "
    "layers but the read-out of a loss) says whether gradients vanish, explode or are kept; theory "
    "predicts it without drawing anything, and the verdict says whether the two agree."
)
TIME = (
    "A recurrent net is asked how gradients travel back through time: the change is that of "
    "log10‖∂L/∂h_t‖ over the steps of its last recurrent layer, h_t the state at step t."
)
OWN = (
    "A user's model is measured where it runs: its layers are its modules in the order in which "
    "they run, or the blocks that it repeats, δ is the cotangent of their output, and its body is "
    "all of them."
)
STRICT = (
    "Theory takes the upstream gradient as independent of the forward pass; that of a loss is not "
    "quite: runs with upstream=gaussian are the strict test."
)


def opening(chapters: list[Chapter], claimed: dict[str, int], kept_within: float) -> Opening:
    """The top of the report; ``claimed`` counts verdicts on claims."""
    ranked = [
        (rank, chapter.name, text)
        for chapter in chapters
        for rank, text in sentences(chapter, kept_within)
    ]
    answers = [Reference(text, name) for _, name, text in sorted(ranked)]
    picture = next((p for c in chapters for p in c.pictures.values()), None)
    note = NOTE if any(chapter.verdicts for chapter in chapters) else ""
    return Opening(_measured(chapters, claimed), tuple(answers[:MOST]), note, picture)


def sentences(chapter: Chapter, kept_within: float) -> list[tuple[int, str]]:
    """What an experiment answers, by rank: each study's sentence, a comparison's without one."""
    if chapter.own and chapter.verdicts:
        return [(chapter.studies[0].rank, answer(chapter.comparison, kept_within))]
    return sorted((study.rank, text) for study, text in chapter.answers)


def meaning(chapters: list[Chapter]) -> tuple[Text, ...]:
    """How numbers and verdicts are to be read; of time, of users' models and of losses where there
    are such runs.
    """
    verdicts = [verdict for chapter in chapters for verdict in chapter.verdicts.values()]
    upstreams = {u for c in chapters if "upstream" in c.settings for u in c.settings["upstream"]}
    texts = [MEANING] if verdicts else []
    texts += [TIME] if any(verdict.along == "step" for verdict in verdicts) else []
    read = [chapter.reading.table for chapter in chapters if chapter.reading]
    own = any("module" in table and table["module"].notna().any() for table in read)
    texts += [OWN] if own else []
    texts += [STRICT] if "loss" in upstreams else []
    return tuple(map(Text, texts))


def _measured(chapters: list[Chapter], claimed: dict[str, int]) -> str:
    """How much was measured and how it turned out."""
    verdicts = [verdict for chapter in chapters for verdict in chapter.verdicts.values()]
    parts = []
    if verdicts:
        measured = [chapter for chapter in chapters if chapter.verdicts]
        seeds = sum(int(chapter.judged["seeds"].sum()) for chapter in measured)
        named = [c.settings["network"] for c in measured if "network" in c.settings]
        kinds = ", ".join(sorted({str(network) for networks in named for network in networks}))
        trends = tally((verdict.trend for verdict in verdicts), TRENDS)
        theory = tally((verdict.agreement for verdict in verdicts), AGREEMENTS)
        predicted = len(verdicts) - theory.get("no theory", 0)
        parts.append(
            f"{count(len(verdicts), 'run')} in {count(len(measured), 'experiment')}: "
            f"{count(seeds, 'network')} drawn ({kinds}). The gradient: {listing(trends)}."
        )
        if predicted:
            differs = theory.get("differs", 0)
            parts.append(
                f"Of {predicted:,} predictions theory agrees with {theory.get('agrees', 0):,} "
                f"and differs from {differs:,}."
            )
    if claimed:
        parts.append(f"{count(sum(claimed.values()), 'claim')}: {claims.counted(claimed)}.")
    return " ".join(parts)
