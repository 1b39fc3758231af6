"""What people read on the terminal: tables, the progress bar, one line an epoch."""

from __future__ import annotations

import atexit
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # torch takes a second to import, and `--help` needs none of it
    from torch import Tensor

    from .checking import Report
    from .evaluation import Metrics
    from .predict import Prediction
    from .recipe import Recipe
    from .robust import Robustness
    from .training import Position
    from .tune import Trial

# What a terminal obeys and does not show, but for tabs and line ends; and what turns the order of letters round
_OBEYED = {*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)} - {ord("\t"), ord("\n")}
_SHOWN = {code: f"\\u{code:04x}" for code in _OBEYED}


def visible(text: str) -> str:
    """The same with control characters as JSON's escapes: a class, or a file, may be called by what clears a screen or
    writes another answer over the one that is there."""
    return text.translate(_SHOWN)


class _Terminal(Console):
    """Rich's, which prints every string as `visible` gives it, those in tables too."""

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(visible(text), **settings)


# No markup: a folder may be called [old]. Soft wrap: a command that is printed can be copied whole.
out = _Terminal(highlight=False, markup=False, soft_wrap=True)
err = _Terminal(stderr=True, highlight=False, markup=False, soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[str] = ()) -> Table:
    """A plain table; the columns in `numbers` are set flush right."""
    made = Table(title=title or None, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    return made


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[str] = ()
) -> None:
    """Print a table on stdout; a pipe gets its lines unbroken, however long they are."""
    made = table(title, columns, rows, numbers)
    if sys.stdout.isatty():
        out.print(made, soft_wrap=False)
        return
    unbroken = _Terminal(width=1000, highlight=False, markup=False)
    with unbroken.capture() as text:
        unbroken.print(made)
    print("\n".join(line.rstrip() for line in text.get().splitlines()))


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """`epoch  3/10  loss 0.0812  accuracy 97.61 %  val 98.20 %  test 98.11 %  4.2 s  14,210 images/s`"""
    width = len(str(epochs))
    text = (
        f"epoch {row['epoch']:>{width}}/{epochs}  loss {row['train_loss']:.4f}  accuracy {row['train_accuracy']:7.2%}"
    )
    for split in ("val", "test"):
        if f"{split}_accuracy" in row:
            text += f"  {split} {row[f'{split}_accuracy']:7.2%} (loss {row[f'{split}_loss']:.4f})"
    return f"{text}  {row['seconds']:.1f} s  {row['images_per_second']:,.0f} images/s"


def watcher(recipe: Recipe) -> Callable[[Iterable[tuple[Tensor, Tensor]], Position], Any] | None:
    """On a terminal, what wraps an epoch's batches in a progress bar; elsewhere None: one line an epoch is enough."""
    if not sys.stderr.isatty():
        return None

    def watch(batches: Iterable[tuple[Tensor, Tensor]], position: Position) -> Iterator[tuple[Tensor, Tensor]]:
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
        )
        steps, first = len(position.losses), position.step
        with Progress(*columns, console=err, transient=True, refresh_per_second=8) as progress:
            epoch = f"{position.epoch}/{recipe.epochs}"
            task = progress.add_task("", total=steps, completed=first, epoch=epoch, now="")
            start = shown = time.perf_counter()
            for batch in batches:
                yield batch
                now = time.perf_counter()
                if now - shown > 0.2:  # seldom: reading the loss makes a GPU wait
                    shown = now
                    done = position.step
                    speed = (done - first) / (now - start)
                    left = (recipe.epochs - position.epoch) * steps + steps - done
                    recent = position.losses[max(first, done - 50) : done].mean().item()
                    ends = f"epoch ends in {duration((steps - done) / speed)}, run in {duration(left / speed)}"
                    now_text = f"loss {recent:.4f}  {speed * recipe.batch_size:,.0f} images/s  {ends}"
                    progress.update(task, completed=done, now=now_text)

    return watch


def decoding() -> Callable[[int, int], None]:
    """What is told how many pictures are decoded, of how many: a bar on a terminal, one line at the end elsewhere."""
    started = time.perf_counter()
    bar = Progress(TextColumn("decoding"), BarColumn(bar_width=30), MofNCompleteColumn(), console=err, transient=True)
    task = bar.add_task("")

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            if not bar.live.is_started:
                bar.start()
                atexit.register(bar.stop)  # also where decoding ends by an error: the terminal gets its cursor back
            bar.update(task, completed=done, total=total)
        if done == total:
            bar.stop()
            seconds = time.perf_counter() - started
            err.print(f"decoded {total:,} pictures in {seconds:.1f} s; later runs read them from the cache")

    return progress


def corrupting() -> Callable[[int, int], None] | None:
    """On a terminal a bar of how many corruptions are measured, of how many; elsewhere None."""
    if not sys.stderr.isatty():
        return None
    bar = Progress(TextColumn("corrupting"), BarColumn(bar_width=30), MofNCompleteColumn(), console=err, transient=True)
    task = bar.add_task("")
    bar.start()
    atexit.register(bar.stop)  # also where it ends by an error: the terminal gets its cursor back

    def progress(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if done == total:
            bar.stop()

    return progress


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `1 h 12 min`."""
    if not math.isfinite(seconds):
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def metrics_table(metrics: Metrics) -> None:
    """A line a class: precision, recall, F1, support; then the totals."""
    rows = [(c.name, f"{c.precision:.2%}", f"{c.recall:.2%}", f"{c.f1:.2%}", f"{c.support:,}") for c in metrics.classes]
    columns = ("class", "precision", "recall", "F1", "images")
    print_table("", columns, rows, columns[1:])
    totals = f"accuracy {metrics.accuracy:.2%}, top-5 {metrics.top5:.2%}, loss {metrics.loss:.4f}"
    out.print(f"\n{totals}, macro F1 {metrics.macro_f1:.2%}, {metrics.images:,} images")


def calibration_line(found: dict[str, Any]) -> str:
    """`temperature 1.31: ECE 3.10 % -> 0.92 % on test, 2.95 % -> 0.80 % on val`, or why it was not fitted."""
    splits = [name for name in ("test", "val") if name in found]
    if found["note"]:
        eces = [f"{found[name]['ece']:.2%} on {name}" for name in splits]
    else:
        eces = [f"{found[name]['ece']:.2%} -> {found[name]['ece_calibrated']:.2%} on {name}" for name in splits]
    head = found["note"] or f"temperature {found['temperature']:.3g}"
    return f"{head}: ECE {', '.join(eces)}"


def robustness_table(found: Robustness) -> None:
    """A line a corruption: the accuracy that each strength leaves, and their mean."""
    of = f"all {found.of:,}" if found.images == found.of else f"{found.images:,} of {found.of:,}"
    strengths = [str(i + 1) for i in range(len(found.rows[0].accuracy))]
    rows = [(row.corruption, *(f"{share:.2%}" for share in row.accuracy), f"{row.mean:.2%}") for row in found.rows]
    out.print(f"\naccuracy under corruptions of five strengths, on {of} test images")
    print_table("", ("corruption", *strengths, "mean"), rows, (*strengths, "mean"))
    out.print(f"mean of all {found.mean:.2%}, clean {found.clean:.2%}")


def counted(rows: Iterable[Prediction], counts: Counter[str], bar: bool) -> Iterator[Prediction]:
    """Rows as they come, counted: `pictures`, and of these `bad`, `unknown` and `unusual` ones. With `bar` a terminal
    shows how many there are so far; how many there will be is not known before the last."""
    columns = (TextColumn("{task.completed:,} pictures"), TextColumn("{task.fields[now]}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not (bar and sys.stderr.isatty())) as progress:
        task, start = progress.add_task("", total=None, now=""), time.perf_counter()
        for row in rows:
            counts["pictures"] += 1
            counts["bad"] += bool(row.error)
            counts["unknown"] += bool(row.top) and row.label != row.top[0][0]
            counts["unusual"] += bool(row.unusual)
            bad = f"  {counts['bad']:,} could not be read" if counts["bad"] else ""
            rate = counts["pictures"] / max(time.perf_counter() - start, 1e-3)
            progress.update(task, completed=counts["pictures"], now=f"{rate:,.0f} a second{bad}")
            yield row


def predictions_line(counts: Counter[str], threshold: float | None) -> str:
    """`1,204 pictures classified, 3 could not be read, 41 unknown (below 0.93), 5 unusual`."""
    good = counts["pictures"] - counts["bad"]
    parts = [f"{good:,} picture{'s' * (good != 1)} classified"]
    parts += [f"{counts['bad']:,} could not be read"] if counts["bad"] else []
    parts += [] if threshold is None else [f"{counts['unknown']:,} unknown (below {threshold:.9g})"]
    parts += [f"{counts['unusual']:,} unusual"] if counts["unusual"] else []
    return ", ".join(parts)


def passed_over_line(counts: Counter[str]) -> str:
    """`passed over: 12 .heic, 1 folder that cannot be read`, and what can be."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())
    return f"passed over: {kinds} (pictures are read from JPEG, PNG, WebP, GIF, TIFF and BMP)"


def bench_line(report: dict[str, Any]) -> str:
    """One run of `bench`: `convlens  99.04 %  train 2.31 s  26,120 images/s`."""
    return (
        f"{report['peer']:<10} {report['accuracy']:7.2%}  train {report['seconds']['train']:.2f} s  "
        f"{report['images_per_second']:,.0f} images/s"
    )


def bench_table(found: dict[str, Any]) -> None:
    """Ours and the peer's side by side: medians, with the spread of the runs, and the ratios of the pairs."""

    def seconds(of: dict[str, Any], stage: str) -> str:
        spread = of["seconds"][stage]
        return f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})"

    def column(of: dict[str, Any]) -> list[str]:
        rate, peak = of["flops_per_second"], of["peak_flops_per_second"]
        memory = of["peak_memory_bytes"]
        return [
            str(of["n"]),
            f"{of['accuracy']['mean']:.2%} ± {of['accuracy']['std']:.2%}",
            *([f"{of['tta_accuracy']:.2%}" if of["tta_accuracy"] else "-"] if found["tta_accuracy"] else []),
            *(seconds(of, stage) for stage in of["seconds"]),
            f"{of['images_per_second']:,.0f}",
            f"{memory / 1e6:,.0f} MB" if memory else "-",
            f"{of['flops'] / 1e12:,.2f}" if of["flops"] else "-",
            f"{rate / 1e9:,.0f} of {peak / 1e9:,.0f} GFLOP/s ({rate / peak:.0%})" if rate else "-",
        ]

    names = ["runs", "accuracy, mean ± std"]
    names += ["with test-time augmentation"] if found["tta_accuracy"] else []
    names += [f"seconds: {stage}" for stage in found["seconds"]]
    names += ["images/s in training", "peak memory", "10^12 operations", "of the peak of a matrix product"]
    peer = found["peer"]
    columns = [column(found), *([column(peer)] if peer else [])]
    titles = ["", "convlens", *([peer["name"]] if peer else [])]
    title = f"{found['recipe']} on {found['data']}: {found['precision']}, {found['threads']} threads, {found['device']}"
    print_table(title, titles, list(zip(names, *columns, strict=True)), titles[1:])
    if peer:
        for name, ratio in peer["ratio"].items():
            out.print(
                f"{name.replace('_', ' ')}: {ratio['median']:.2f} times as fast as {peer['name']} "
                f"(median of {found['n']} pairs, {ratio['min']:.2f} to {ratio['max']:.2f})"
            )


def trial_line(trial: Trial, trials: int | None) -> str:
    """`trial  3/20  val  97.61 %  4.2 s  optim.lr=0.0812 batch_size=64`, or what became of it instead."""
    number = f"{trial.number:>{len(str(trials))}}/{trials}" if trials else str(trial.number)
    accuracy = "-" if trial.accuracy is None else f"{trial.accuracy:.2%}"
    ended = {"complete": "", "pruned": f"  pruned after epoch {trial.epochs}", "failed": f"  {trial.error}"}
    drawn = " ".join(f"{key}={_short(value)}" for key, value in trial.settings.items())
    return f"trial {number}  val {accuracy:>7}  {trial.seconds:.1f} s  {drawn}{ended[trial.state]}"


def trials_table(trials: Sequence[Trial], title: str) -> None:
    """A line a trial, a column a setting."""
    keys = list(trials[0].settings) if trials else []
    rows = [
        (t.number, f"{t.accuracy:.2%}", f"{t.seconds:.1f}", *(_short(t.settings[key]) for key in keys)) for t in trials
    ]
    columns = ("trial", "validation", "seconds", *keys)
    print_table(title, columns, rows, columns)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def check_report(report: Report, shown: int) -> None:
    """What `check` found: the counts, then every kind of fault with what to do and the first `shown` of its files."""
    found = report.to_dict()
    splits = list(next(iter(found["counts"].values())))
    counts = [(label, *(f"{row[split]:,}" for split in splits)) for label, row in found["counts"].items()]
    out.print(f"{found['data']}: {found['pictures']:,} pictures\n")
    print_table("", ("class", *splits), counts, splits)
    if found["sizes"]:
        sizes = ", ".join(f"{name} {size[0]} x {size[1]}" for name, size in found["sizes"].items())
        modes = ", ".join(f"{mode} {count:,}" for mode, count in found["modes"].items())
        out.print(f"\npixels (height x width): {sizes}; modes: {modes}")
    for finding in report.findings:
        out.print(f"\n{finding.severity}: {finding.what}  [{finding.kind}]")
        for item in finding.items[:shown]:
            names = " = ".join(item.files[:4]) + (f" = and {len(item.files) - 4:,} more" if len(item.files) > 4 else "")
            out.print("  " + ": ".join(text for text in (names, item.note) if text))
        if len(finding.items) > shown:
            out.print(f"  and {len(finding.items) - shown:,} more")
        out.print(f"  -> {finding.todo}")
    kinds = found["severities"]
    labels = "" if report.labels else "; the labels were not looked at"
    out.print(
        f"\nerrors: {kinds['error']}, warnings: {kinds['warning']}, notes: {kinds['note']}; "
        f"{duration(report.seconds)}{labels}"
    )
