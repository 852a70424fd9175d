"""What robustkit itself plugs in: its model sources and its datasets."""

from robustkit.plugins import Entry, Plugin

PLUGIN = Plugin(
    sources={
        "zoo": Entry("robustkit.sources.zoo:Zoo", "networks trained by this project, bundled; the default source"),
        "file": Entry("robustkit.sources.file:Files", "a .safetensors file or a state dict, with arch="),
        "python": Entry("robustkit.sources.python:Python", "package.module.callable of yours that returns the network"),
    },
    datasets={
        "digits": Entry("robustkit.datasets.digits:Digits", "8×8 handwritten digits, embedded (scikit-learn's)"),
        "cifar10": Entry("robustkit.datasets.cifar:Cifar10", "CIFAR-10 from a folder or file: path="),
        "cifar100": Entry("robustkit.datasets.cifar:Cifar100", "CIFAR-100 from a folder or file: path="),
        "mnist": Entry("robustkit.datasets.mnist:Mnist", "MNIST from a folder or file: path="),
        "file": Entry("robustkit.datasets.npz:Npz", "any .npz with x and y: ./images.npz"),
        "python": Entry("robustkit.datasets.python:from_callable", "package.module.callable of yours"),
    },
)
