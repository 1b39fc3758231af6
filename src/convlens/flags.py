"""The command line's flags, each said once. The everyday ones have the names that timm and torchvision gave them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import UserError

# What a command works on
DataName = Annotated[
    str, typer.Argument(metavar="DATA", help="A data set's name, a folder or a .csv.", show_default=False)
]
DataOrNone = Annotated[
    str | None,
    typer.Argument(
        metavar="DATA",
        help="A data set's name (see `convlens datasets`), a folder of pictures, or a .csv that lists them.",
        show_default=False,
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]
RunPaths = Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders.", show_default=False)]
ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A run folder or a model file.", show_default=False)]
Network = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A network's name, package.module:function, a recipe or a run.", show_default=False
    ),
]
Pictures = Annotated[list[Path], typer.Argument(metavar="PICTURE|FOLDER...", show_default=False)]
Images = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="IMAGE...",
        help="Picture files, or test:7 and train:7 of the data set; none: the network itself.",
        show_default=False,
    ),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="D", help="Where data sets lie (else CONVLENS_DATA, the cache).")
]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]

# How pictures of your own are read
PictureSize = Annotated[
    str | None,
    typer.Option("--size", metavar="N|HxW", help="Pixels that your own pictures are brought to. [default: at most 64]"),
]
Gray = Annotated[bool, typer.Option("--gray", help="Read your own pictures in gray.")]
Resize = Annotated[
    str | None, typer.Option("--resize", metavar="fit|crop|stretch", help="Pad, cut or distort what is not as wide.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop where any file cannot be used.")]
PathColumn = Annotated[str | None, typer.Option("--path-column", metavar="NAME", help="A CSV's column of paths.")]
LabelColumn = Annotated[str | None, typer.Option("--label-column", metavar="NAME", help="Its column of classes.")]
SplitColumn = Annotated[
    str | None, typer.Option("--split-column", metavar="NAME", help="Its column of splits (train, val, test).")
]
GroupColumn = Annotated[
    str | None, typer.Option("--group-column", metavar="NAME", help="Its column of what stays on one side of a split.")
]

# What `check` looks at
Labels = Annotated[
    bool, typer.Option("--labels/--no-labels", help="Train small networks to find wrong labels, the slow part.")
]
Mirrored = Annotated[bool, typer.Option("--mirrored", help="Take a picture and its mirror image for copies.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="A page with thumbnails, too.")]
Show = Annotated[
    int, typer.Option("--show", min=0, metavar="N", help="Files named of every finding; --json names all.")
]
Gate = Annotated[bool, typer.Option("--strict", help="Exit with 3 where there is an error or a warning.")]

# How to train
ModelName = Annotated[
    str | None, typer.Option("-m", "--model", metavar="NAME", help="A network, or package.module:function.")
]
RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", metavar="R", help="A recipe's name or a .toml file; flags win over it. [default: quick]"),
]
Epochs = Annotated[int | None, typer.Option("--epochs", metavar="N", help="Passes over the training images.")]
BatchSize = Annotated[
    str | None, typer.Option("-b", "--batch-size", metavar="N|auto", help="Images a step; auto measures a few sizes.")
]
BatchNumber = Annotated[int | None, typer.Option("-b", "--batch-size", metavar="N", help="Images a step.")]
Lr = Annotated[float | None, typer.Option("--lr", metavar="F", help="Learning rate (its peak).")]
Opt = Annotated[str | None, typer.Option("--opt", metavar="NAME", help="sgd, adam, adamw, rmsprop or muon.")]
Sched = Annotated[str | None, typer.Option("--sched", metavar="NAME", help="constant, step, cosine or one-cycle.")]
WeightDecay = Annotated[float | None, typer.Option("--weight-decay", "--wd", metavar="F", help="L2.")]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="Decides weights, order, augmentation and the split.")
]
Aug = Annotated[
    str | None,
    typer.Option("--aug", metavar="none|light|strong", help="Random changes of the training images, for photographs."),
]
Balance = Annotated[
    str | None,
    typer.Option("--balance", metavar="none|weights|sample", help="Rare classes count as much: in the loss, or drawn."),
]
Patience = Annotated[
    int | None, typer.Option("--patience", metavar="N", help="Stop after N epochs without a better validation loss.")
]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")]
Compile = Annotated[
    str | None, typer.Option("--compile", metavar="auto|on|off", help="torch.compile; auto: on a GPU, for long runs.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any field of the recipe, such as optim.l1=1e-5; repeatable."),
]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="N", min=60, help="Only N training images, for a quick look.")
]
Resume = Annotated[Path | None, typer.Option("--resume", metavar="RUN", help="Go on with a run that was interrupted.")]
Finish = Annotated[
    bool, typer.Option("--finish", help="With --resume: train no more, evaluate and save what is there.")
]
OpenPage = Annotated[
    bool, typer.Option("--open", help="Watch it in the browser; weights of up to 50 epochs are kept for it.")
]
PrintRecipe = Annotated[bool, typer.Option("--print-recipe", help="Print the recipe as TOML and stop.")]
Plots = Annotated[bool, typer.Option("--plots/--no-plots", help="Draw the pictures at the end.")]
WithReport = Annotated[bool, typer.Option("--report/--no-report", help="Write report.html at the end.")]

# What `bench` measures
BenchRecipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name or a .toml file.")]
BenchData = Annotated[
    str | None, typer.Option("--data", metavar="DATA", help="A data set. [default: the one in the recipe's name]")
]
Runs = Annotated[int, typer.Option("--runs", "-n", min=1, metavar="N", help="Seeds, each a process of its own.")]
Peer = Annotated[
    str | None, typer.Option("--vs", metavar="PEER", help="article, keras, lightning or fastai, trained in turn.")
]
ToAccuracy = Annotated[
    float | None,
    typer.Option("--to-accuracy", min=0, max=1, metavar="A", help="Both stop after the epoch that reaches it."),
]
PeerEpochs = Annotated[int, typer.Option("--peer-epochs", min=1, metavar="N", help="Where no accuracy is to reach.")]
Peers = Annotated[Path, typer.Option("--peers", metavar="FOLDER", help="Where the peers' scripts are.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, metavar="N", help="Threads to compute with.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="A PNG: accuracy against seconds.")]

# What `cache` does
Clear = Annotated[bool, typer.Option("--clear", help="Take them all away; they can be decoded again.")]

# How fast `lr-find` climbs
RangeSteps = Annotated[int, typer.Option("--steps", min=5, metavar="N", help="Steps in which the rate rises tenfold.")]

# What `tune` searches
Trials = Annotated[
    int | None,
    typer.Option("--trials", min=1, metavar="N", help="Finished trials in all. [default: 20, or as --timeout allows]"),
]
Timeout = Annotated[
    float | None, typer.Option("--timeout", min=0, metavar="S", help="No trial begins after so many seconds.")
]
Vary = Annotated[
    list[str] | None,
    typer.Option(
        "--vary",
        metavar="KEY=...",
        help="LOW..HIGH, or A,B,C: what to vary; repeatable. [default: rates, decay, batch, width, augmentation]",
    ),
]
Searched = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="Where the trials are kept. [default: tuned/<data>-<recipe>]"),
]

# Where results go
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the result is put.")]
OutOrNone = Annotated[
    Path | None, typer.Option("--out", metavar="FOLDER", help="Where the pictures are put. [default: RUN/explain]")
]
RunName = Annotated[
    str | None, typer.Option("--name", metavar="N", help="The run's folder in it. [default: <data>-<model>-<n>]")
]
Page = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="The page. [default: report.html in the run's folder]")
]
Language = Annotated[str, typer.Option("--lang", metavar="en|zh", help="The page's language: English or Chinese.")]
OutputFile = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="A .csv or .json file. [default: CSV on stdout]")
]

# What tells others of runs
ComparePage = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="A page with the curves, too.")]
ComparePlot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="The curves, .png or .svg.")]
CardFile = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Where it is put. [default: RUN/MODEL_CARD.md]")
]

# What `open` shows
OtherRun = Annotated[Path | None, typer.Argument(metavar="[RUN2]", help="Another, to compare.", show_default=False)]
OpenPort = Annotated[
    int | None,
    typer.Option(
        "--port",
        min=0,
        max=65_535,
        metavar="N",
        help="Where the page is; 0 is any free one. [default: 8573, or a free one]",
        show_default=False,
    ),
]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="Open the browser, or only print the address.")]

# What leaves, and what is looked at
To = Annotated[
    list[str] | None,
    typer.Option("--to", metavar="FORMAT", help="onnx, pt2, onnx-int8 or web; repeatable. [default: onnx]"),
]
Exported = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE|FOLDER", help="Where it is put. [default: RUN/export, or beside the file]"),
]
WebRuntime = Annotated[
    Path | None,
    typer.Option("--runtime", metavar="FOLDER", help="Where npm has put onnxruntime-web. [default: ./node_modules]"),
]
ShippedFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="A model file, .onnx or .pt2, or a run folder.", show_default=False)
]
Original = Annotated[
    Path | None,
    typer.Option("--against", metavar="RUN", help="The run, or model file, that it must say the same as."),
]
TestData = Annotated[
    str | None, typer.Option("--data", metavar="DATA", help="The data whose test set to try. [default: the run's]")
]

# The rest
OwnModel = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="NAME",
        help="Allow this package.module:function, or an installed package's network, to be imported.",
    ),
]
Size = Annotated[
    str | None,
    typer.Option("--size", help="28, or 32x48 (height x width). [default: 28 for the MNIST networks, else 32]"),
]
Channels = Annotated[int | None, typer.Option("--channels", help="1 or 3. [default: 1 for the MNIST networks, else 3]")]
Classes = Annotated[int, typer.Option("--classes", min=2, help="How many.")]
Formula = Annotated[bool, typer.Option("--formula", help="The output-size formula with every layer's numbers.")]
Draw = Annotated[
    Path | None, typer.Option("--draw", metavar="FILE", help="A .png or .svg of the network, its boxes to scale.")
]
FeatureMaps = Annotated[
    bool, typer.Option("--feature-maps/--no-feature-maps", help="Draw the maps of every convolution.")
]
Method = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="M",
        help="saliency, input-x-gradient, integrated-gradients, grad-cam, occlusion, all or none; repeatable. "
        "[default: grad-cam, integrated-gradients, occlusion]",
    ),
]
Explained = Annotated[
    str | None,
    typer.Option("--class", metavar="C", help="The class to explain, by name or number. [default: the answer]"),
]
Against = Annotated[str | None, typer.Option("--against", metavar="C", help="Why that class and not this one.")]
Layer = Annotated[
    str | None, typer.Option("--layer", metavar="L", help="Grad-CAM's layer. [default: the last stage with maps]")
]
Wishes = Annotated[
    bool, typer.Option("--wishes", help="Draw what the network wants to see: class means, and images climbed to.")
]
Ranked = Annotated[
    bool, typer.Option("--channels/--no-channels", help="Draw the channels that move the prediction most.")
]
Examples = Annotated[
    bool,
    typer.Option("--examples/--no-examples", help="Look in training images for what else fires them, and neighbours."),
]
Plane = Annotated[str, typer.Option("--map", metavar="pca|umap", help="How test images are laid out, of the network.")]
MinAccuracy = Annotated[
    float | None, typer.Option("--min-accuracy", min=0, max=1, metavar="F", help="Exit with 3 below this, 0 to 1.")
]
Corruptions = Annotated[
    bool, typer.Option("--corruptions", help="Also under eight corruptions (noise, blur, JPEG, ...) at five strengths.")
]
Sample = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="With --corruptions: on N of the test images only.")
]
PlotsFolder = Annotated[
    Path | None,
    typer.Option("--plots", metavar="FOLDER", help="Draw calibration, coverage and corruptions into this folder."),
]
Top = Annotated[int, typer.Option("--top", min=1, metavar="K", help="How many classes a picture.")]
Threshold = Annotated[
    float | None, typer.Option("--threshold", min=0, max=1, metavar="P", help="Say unknown below this probability.")
]
TargetAccuracy = Annotated[
    float | None,
    typer.Option(
        "--target-accuracy", min=0, max=1, metavar="A", help="The threshold that had this accuracy on validation."
    ),
]

# What `serve` allows, and to whom
Host = Annotated[
    str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; others than loopback want a token.")
]
Port = Annotated[int, typer.Option("--port", min=0, max=65_535, metavar="N", help="0: a free one, which is printed.")]
Token = Annotated[
    str | None,
    typer.Option("--token", envvar="CONVLENS_TOKEN", metavar="T", help="Requests carry it: Authorization: Bearer T."),
]
NoAuth = Annotated[
    bool, typer.Option("--insecure-no-auth", help="Let everybody who reaches the address use it without a token.")
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option("--allow-host", metavar="NAME", help="A name by which requests may call this server; repeatable."),
]
Workers = Annotated[int, typer.Option("--workers", min=1, metavar="N", help="Processes that share the port.")]
ServeThreads = Annotated[int, typer.Option("--threads", min=1, metavar="N", help="Threads that compute a batch.")]
MaxBatch = Annotated[
    int, typer.Option("--max-batch", min=1, metavar="N", help="Pictures computed at once; 1: no batches.")
]
BatchWait = Annotated[
    float, typer.Option("--batch-wait", min=0, max=1000, metavar="MS", help="Wait so long for a batch to fill.")
]
MaxQueue = Annotated[int, typer.Option("--max-queue", min=1, metavar="N", help="Pictures that wait; more get a 503.")]
MaxBytes = Annotated[int, typer.Option("--max-bytes", min=1, metavar="N", help="Bytes of a request.")]
MaxHeld = Annotated[int, typer.Option("--max-held", min=1, metavar="N", help="Bytes of all requests together.")]
MaxPixels = Annotated[int, typer.Option("--max-pixels", min=1, metavar="N", help="Pixels of a picture.")]
MaxImages = Annotated[int, typer.Option("--max-images", min=1, metavar="N", help="Pictures of a request.")]
RequestSeconds = Annotated[float, typer.Option("--timeout", min=0.1, metavar="S", help="Seconds a request may take.")]
WithPage = Annotated[
    bool, typer.Option("--page", help="Of a run folder: also the page of `convlens open`; all then want a token.")
]
RequestLog = Annotated[bool, typer.Option("--log/--no-log", help="A line of JSON a request, on stderr.")]


def pixels(text: str) -> tuple[int, int]:
    """`28` or `32x48` -> (height, width)."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--size takes pixels such as 28, or 32x48 for height x width, not {text!r}")
    return int(parts[0]), int(parts[-1])


def reading(size: str | None, gray: bool, resize: str | None) -> dict[str, object]:
    """What the flags say of how pictures of your own are read, as settings of a recipe; None where they say nothing."""
    return {
        "data.size": size and list(pixels(size)),
        "data.channels": 1 if gray else None,
        "data.resize": resize,
    }


def columns(path: str | None, label: str | None, split: str | None, group: str | None) -> dict[str, str | None]:
    """What the flags call the columns of a CSV, as settings of a recipe; None where they say nothing."""
    return {
        "data.path_column": path,
        "data.label_column": label,
        "data.split_column": split,
        "data.group_column": group,
    }


def number(text: str) -> int:
    """The batch size that is not `auto`."""
    if not text.isdecimal():
        raise UserError(f"-b takes a whole number of images a step, or auto, not {text!r}")
    return int(text)
