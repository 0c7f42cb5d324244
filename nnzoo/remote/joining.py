"""Several programs as one, so that the prompts of several requests share a pass; each gets what it gets alone."""

from collections.abc import Iterable, Sequence

from nnzoo.remote.limits import Limits
from nnzoo.remote.reading import Job
from nnzoo.tracing.arguments import name_of
from nnzoo.tracing.graph import Node
from nnzoo.tracing.infer import Answer
from nnzoo.tracing.recorder import Recorder
from nnzoo.tracing.replay import Replayed

_DRAWING_EDITS = set("bernoulli_ cauchy_ exponential_ geometric_ log_normal_ normal_ random_ uniform_".split())


def groups(jobs: Iterable[Job], limits: Limits) -> list[list[Job]]:
    """Jobs that may share their passes, each group within the limits of one request."""
    found: list[list[Job]] = []
    for job in jobs:
        group = next((one for one in found if _fits(job, one, limits)), None)
        if group is None:
            found.append([job])
        else:
            group.append(job)
    return found


def _fits(job: Job, group: list[Job], limits: Limits) -> bool:
    if not all(map(_shares, (job, group[0]))) or _kind(job) != _kind(group[0]):
        return False
    invokes = [invoke for one in (*group, job) for invoke in one.new.invokes]
    rows = sum(invoke.rows for invoke in invokes)
    padded = rows * max((invoke.n_pos for invoke in invokes), default=0)
    alive = sum(one.alive for one in (*group, job))
    return rows <= limits.rows and padded <= limits.prompt_tokens and alive <= limits.alive_bytes


def _shares(job: Job) -> bool:
    """Whether a job's passes may have others' rows in them: nothing in them is about the pass as a whole."""
    if job.new.recorder.needs_grad or job.program.grad or job.program.max_batch is not None:
        return False
    if any(_may_draw(node, answer) for node, answer in job.new.answers.items()):
        return False
    # a generation that goes on with others beyond what is asked of it would draw more than it does alone
    drawn = [
        invoke for invoke in job.new.invokes if invoke.decoder is not None and invoke.decoder.generator is not None
    ]
    return all(invoke.decoder.options.seed is not None or job.asks_for_end(invoke) for invoke in drawn)


def _may_draw(node: Node, answer: Answer) -> bool:
    """Whether a call draws random numbers from wherever the generator stands when it runs."""
    unknown = not answer.leaves and name_of(getattr(node, "fn", None)) in _DRAWING_EDITS
    return (answer.draws or unknown) and getattr(node, "random", None) is None


def _kind(job: Job) -> tuple:
    return job.new.recorder.modes, any(invoke.decoder is not None for invoke in job.new.invokes)


def join(parts: Sequence[Replayed]) -> Replayed:
    """One program of several, whose nodes and prompts it takes over."""
    if len(parts) == 1:
        return parts[0]
    execution, first = parts[0].execution, parts[0].recorder
    whole = Recorder(first.device, first.order, execution.look)
    whole.modes = first.modes
    joined = Replayed(whole, execution, [], False, {})
    for part in parts:
        for node in part.recorder.nodes:
            node.index += len(whole.nodes)
        for invoke in part.invokes:
            invoke.index += len(joined.invokes)
        whole.nodes += part.recorder.nodes
        joined.invokes += part.invokes
        whole.puts += part.recorder.puts
        whole.roots += part.recorder.roots
    return joined
