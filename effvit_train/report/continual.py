"""A stream on the card: what was learnt task by task, the accuracy matrix as a heat table, and what was forgotten."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from effvit_train.card import Card
from effvit_train.report import format as fmt
from effvit_train.report import markup
from effvit_train.report.charts import Series, clip, escape
from effvit_train.report.inputs import RunData
from effvit_train.report.sections import figure
from effvit_train.report.stream_facts import CLASS, DATA, DOMAIN, Matrix, StreamFacts, stream_of

SHOWN = 40  # tasks in a matrix
TERMINAL_TASKS = 10  # fit into 80 columns
_FEW = 7  # tasks whose numbers get a decimal, and a line each in the chart
_STYLES = ("val", "term0", "term1", "term2", "term3", "train", "other")
# What the three scenarios mean (van de Ven & Tolias 2019), and what accuracy is of in each.
_SCENARIOS = {
    CLASS: "Class-incremental: each task brings new classes. The model is not told the task: it chooses among all classes "
    "seen so far.",
    DOMAIN: "Domain-incremental: the same classes in other circumstances. The model is not told which: it chooses among "
    "all classes.",
    DATA: "Data-incremental: portions of one set. The model chooses among all classes, and is tested on the same images "
    "each time.",
}  # fmt: skip
_WITHIN = "Task-incremental: the model is told the task, and chooses among that task's classes only."


def section(data: RunData) -> str:
    """Tasks, what they cost, and the matrix of accuracies; nothing where all data came at once."""
    stream = stream_of(data.card)
    if stream is None:
        return ""
    lead = (
        f'<p class="facts">{markup.text(_how(stream))}</p><p class="told">{markup.text(sentence(stream))}</p>'
    )
    blocks = f'<div class="stack continual">{_matrices(stream)}{_tasks(stream)}</div>'
    return markup.section("Continual learning", lead + blocks + _hint(stream))


def sentence(stream: StreamFacts) -> str:
    """What was forgotten, and of which task most, in plain words."""
    last = stream.accuracy[-1]
    if stream.kind == DATA:
        first = stream.rows[0]
        return (
            f"After {stream.tasks[first].name}, {fmt.percent(stream.accuracy[first][-1])} of the test images are right, "
            f"after the last one, {fmt.percent(last[-1])}."
        )
    worst = stream.forgotten
    if worst is None:
        return "Nothing was forgotten: on no earlier task is it worse in the end than it was."
    lost = stream.lost
    text = (
        f"Most was forgotten of task {worst.task + 1} ({clip(stream.tasks[worst.task].name, 60)}): "
        f"{fmt.percent(worst.best)} of its test images were right at best, in the end {fmt.percent(worst.end)}"
    )
    text += ", no more than chance explains" if worst.chance else ""
    return f"{text}. Over the earlier tasks {_mean_lost([one.points for one in lost])}."


def scenario(stream: StreamFacts) -> str:
    """`class-incremental: among all classes seen so far`: what accuracies of the stream are of."""
    among = "all classes seen so far" if stream.kind == CLASS else "all classes"
    return f"{stream.kind}-incremental: among {among}"


def line(card: Card) -> str:
    """The sentence, or nothing."""
    stream = stream_of(card)
    return sentence(stream) if stream is not None else ""


def terminal_table(card: Card) -> RenderableType:
    """The matrix in the terminal; nothing where all data came at once, or with more tasks than fit."""
    stream = stream_of(card)
    if stream is None or len(stream.tasks) > TERMINAL_TASKS:
        return Group()
    columns = [len(stream.tasks) - 1] if stream.kind == DATA else list(range(len(stream.tasks)))
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    for _ in columns:
        table.add_column(justify="right", min_width=5, no_wrap=True)
    names = ["on all"] if stream.kind == DATA else [f"on {task + 1}" for task in columns]
    table.add_row("", *(Text(name, "dim") for name in names))
    for row in stream.rows:
        cells = [_number(stream, row, task) for task in columns]
        table.add_row(
            _after(stream, row),
            *(Text(cell, "dim" if task > row else "") for cell, task in zip(cells, columns, strict=True)),
        )
    title = f"Accuracy in % ({scenario(stream)})"
    return Group(Text(title, "bold"), table, Text(""))


def _mean_lost(points: list[float]) -> str:
    mean = 100 * sum(points) / len(points)
    return (
        f"{mean:.1f} points were lost on average"
        if mean >= 0.05
        else f"{-mean:.1f} points were gained on average"
    )


def _how(stream: StreamFacts) -> str:
    found = [stream.title[0].upper() + stream.title[1:]]
    if stream.epochs:
        found.append(f"{stream.epochs} epoch{'s' * (stream.epochs != 1)} each")
    if stream.strategies:
        found.append(
            f"strateg{'y' if len(stream.strategies) == 1 else 'ies'}: {', '.join(stream.strategies)}"
        )
    if stream.first:
        found.append(f"the first {stream.first} known before")
    return " · ".join(found)


def _matrices(stream: StreamFacts) -> str:
    chart = _chart(stream)
    alone = f'<div class="alone points">{chart}</div>' if chart else ""
    if stream.kind == DATA or len(stream.tasks) > SHOWN:
        return alone
    heat = _heat(stream, stream.accuracy, f"Accuracy in % ({scenario(stream)})")
    body = f'<div class="pair points">{heat}{chart}</div>' if len(stream.tasks) <= _FEW else heat + alone
    if stream.within and stream.within != stream.accuracy:
        told = _heat(stream, stream.within, "Accuracy in % (task-incremental: the task is told)")
        body += f"<details><summary>Within the task's own classes</summary>{told}</details>"
    return body


def _heat(stream: StreamFacts, matrix: Matrix, caption: str) -> str:
    """The matrix as a table: a row after each task, a column on each task."""
    size = len(stream.tasks)
    head = "".join(
        f'<th scope="col" class="num" title="{escape(task.name)}">{number + 1}</th>'
        for number, task in enumerate(stream.tasks)
    )
    body = "".join(
        f'<tr><th scope="row">{escape(_after(stream, row))}</th>'
        + "".join(_cell(stream, matrix, row, task) for task in range(size))
        + "</tr>"
        for row in stream.rows
    )
    foot = ""
    if matrix is stream.accuracy and stream.lost:
        cells = "".join(f'<td class="num">{_points(lost.points, size)}</td>' for lost in stream.lost)
        foot = f'<tfoot><tr><th scope="row">Forgotten</th>{cells}<td class="num">{fmt.NONE}</td></tr></tfoot>'
    return (
        f'<figure class="heat{"" if size <= _FEW else " many"}"><figcaption>{escape(caption)}</figcaption>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="shaded stream">'
        f'<thead><tr><td></td><th scope="colgroup" colspan="{size}">on the test images of task</th></tr>'
        f"<tr><td></td>{head}</tr></thead><tbody>{body}</tbody>{foot}</table></div></figure>"
    )


def _cell(stream: StreamFacts, matrix: Matrix, row: int, task: int) -> str:
    value = matrix[row][task]
    tip = f"{_after(stream, row)}, on task {task + 1}: "
    if task > row:
        tip += "not trained yet" if stream.kind == CLASS else f"{fmt.percent(value)}, not trained yet"
        shown = _number(stream, row, task) if matrix is stream.accuracy else fmt.NONE
        return f'<td class="num later" title="{escape(tip)}">{shown}</td>'
    own = " own" if task == row and row >= stream.first else ""
    return (
        f'<td class="num shade{own}" style="--share:{value:.3f}" title="{escape(tip + fmt.percent(value))}">'
        f"<span>{_share(value, len(stream.tasks))}</span></td>"
    )


def _number(stream: StreamFacts, row: int, task: int) -> str:
    """A cell without its sign: bracketed where the task is still to come, and a dash where its classes are."""
    if task <= row or stream.kind == DATA:
        return _share(stream.accuracy[row][task], len(stream.tasks))
    if stream.kind == CLASS:
        return fmt.NONE
    return f"({_share(stream.accuracy[row][task], len(stream.tasks))})"


def _share(value: float, tasks: int) -> str:
    return f"{100 * value:.{1 if tasks <= _FEW else 0}f}"


def _points(lost: float, tasks: int) -> str:
    text = _share(abs(lost), tasks)
    return text if lost >= 0 or float(text) == 0 else fmt.MINUS + text


def _after(stream: StreamFacts, row: int) -> str:
    return f"after {row + 1}" if row >= stream.first else f"before (knows {_span(row + 1)})"


def _span(last: int) -> str:
    return "1" if last == 1 else f"1–{last}"


def _chart(stream: StreamFacts) -> str:
    """Accuracy as training goes on: a line for each task, or of many their mean, the first and the worst one."""
    if len(stream.rows) < 2:
        return ""
    return figure(
        "As training goes on", _lines(stream), title="Accuracy on each task after each task", x_name="tasks learnt",
        write=lambda share: f"{share * 100:.1f}".removesuffix(".0") + " %", y_range=(0.0, 1.0),
    )  # fmt: skip


def _lines(stream: StreamFacts) -> list[Series]:
    def of(task: int) -> list[tuple[float, float]]:
        return [(row + 1, stream.accuracy[row][task]) for row in stream.rows if row >= task]

    def called(task: int) -> str:
        return f"task {task + 1}: {clip(stream.tasks[task].name, 24)}"

    trained = range(stream.rows[-1] + 1)
    if stream.kind == DATA:
        return [Series("all test images", of(0), _STYLES[0])]
    if len(stream.tasks) <= _FEW:
        return [Series(called(task), of(task), _STYLES[task]) for task in trained]
    means = [(row + 1.0, sum(stream.accuracy[row][: row + 1]) / (row + 1)) for row in stream.rows]
    lines = [Series("mean of the tasks so far", means, _STYLES[0]), Series(called(0), of(0), _STYLES[1])]
    worst = stream.forgotten
    if worst is not None and worst.task:
        lines.append(Series(called(worst.task), of(worst.task), _STYLES[2]))
    return lines


def _tasks(stream: StreamFacts) -> str:
    """Each task: its images, what is known of it, and what it cost."""
    shared = stream.kind == DATA
    heads = ["Training images", "Test images", "Classes", "Right after it", *([] if shared else ["In the end"]),
             "Steps", "Time", "Kept"]  # fmt: skip
    head = "".join(f'<th scope="col" class="num">{escape(name)}</th>' for name in heads)
    rows = "".join(_task(stream, number, shared) for number in range(len(stream.tasks)))
    return (
        "<figure><figcaption>Tasks</figcaption>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Tasks"><table class="pairs tasks"><thead><tr>'
        f'<th scope="col">Task</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></figure>'
    )


def _task(stream: StreamFacts, number: int, shared: bool) -> str:
    task, known = stream.tasks[number], number < stream.first
    trained = number < len(stream.accuracy)
    after = fmt.percent(stream.accuracy[number][number]) if trained and not known else fmt.NONE
    kept = task.memory_bytes
    cells = [
        _count(task.train),
        _count(task.test),
        f"{len(task.classes)}" if task.classes else fmt.NONE,
        after,
        *([] if shared else [fmt.percent(stream.accuracy[-1][number]) if trained else fmt.NONE]),
        "known before" if known else _count(task.steps),
        fmt.NONE if known or task.seconds is None else fmt.duration(task.seconds),
        fmt.NONE if kept is None else "nothing" if kept == 0 else fmt.megabytes(kept / 1e6),
    ]
    name = f'{number + 1}: <span title="{escape(task.name)}">{escape(clip(task.name, 48))}</span>'
    return f'<tr><th scope="row" class="name">{name}</th>' + "".join(
        f'<td class="num">{markup.text(cell)}</td>' for cell in cells
    ) + "</tr>"  # fmt: skip


def _count(value: int | None) -> str:
    return fmt.NONE if value is None else f"{value:,}"


def _hint(stream: StreamFacts) -> str:
    parts = [_SCENARIOS.get(stream.kind, "The model is not told the task.")]
    if stream.kind != DATA and len(stream.tasks) <= SHOWN:
        later = "has a dash" if stream.kind == CLASS else "is in brackets"
        parts.append(f"The cell of a task right after it has a frame; one that was not trained yet {later}.")
        parts.append(
            "Forgotten: points below the best accuracy on the task since it was trained (Chaudhry et al. 2018)."
        )
    if stream.within and stream.within != stream.accuracy:
        parts.append(_WITHIN)
    if stream.kind == CLASS:
        parts.append("Validation accuracy above is likewise among the classes seen so far.")
    parts.append("Time is of training alone; kept is what a strategy keeps of this and earlier tasks.")
    return f'<p class="hint">{markup.text(" ".join(parts))}</p>'
