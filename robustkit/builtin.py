"""What robustkit itself plugs in: its model sources and its datasets."""

from robustkit.plugins import Entry, Plugin

PLUGIN = Plugin(
    sources={
        "zoo": Entry("robustkit.models.sources.zoo:Zoo", "networks of this project, bundled; the default source"),
        "file": Entry(
            "robustkit.models.sources.file:Files",
            "weights (.safetensors, a state dict) with arch=; TorchScript, ONNX, .pt2",
        ),
        "python": Entry(
            "robustkit.models.sources.python:Python", "package.module.callable of yours that returns the network"
        ),
        "robustbench": Entry(
            "robustkit.models.sources.robustbench:Robustbench",
            "RobustBench's zoo of robust networks: NAME:dataset=cifar10,threat=Linf",
            "robustkit-bench[zoo]",
        ),
        "timm": Entry(
            "robustkit.models.sources.timm_models:Timm",
            "timm's classifiers: NAME[.TAG]:pretrained=false,classes=10",
            "robustkit-bench[zoo]",
        ),
        "torchvision": Entry(
            "robustkit.models.sources.torchvision_models:Torchvision",
            "torchvision's classifiers: NAME:weights=IMAGENET1K_V2",
            "robustkit-bench[zoo]",
        ),
        "hf": Entry(
            "robustkit.models.sources.hf:HuggingFace",
            "image classifiers of transformers: ORG/NAME, or a folder: ./FOLDER",
            "robustkit-bench[zoo]",
        ),
        "defended": Entry(
            "robustkit.models.sources.defended:Defended", "(MODEL):by=DEFENSE, any model behind inference-time defenses"
        ),
        "ensemble": Entry(
            "robustkit.models.sources.ensemble:Ensembles", "(A)+(B)+(C):mean=logits|probs|vote, any models"
        ),
    },
    datasets={
        "digits": Entry("robustkit.datasets.digits:digits", "8×8 handwritten digits, embedded"),
        "scenes": Entry(
            "robustkit.datasets.scenes:Scenes", "synthetic: a shape (the class) before a background, 32×32"
        ),
        "cifar10": Entry("robustkit.datasets.cifar:cifar10", "CIFAR-10, 32×32: found (path=) or fetched"),
        "cifar100": Entry("robustkit.datasets.cifar:cifar100", "CIFAR-100, 32×32: found (path=) or fetched"),
        "mnist": Entry("robustkit.datasets.mnist:mnist", "MNIST, grey 28×28: found (path=) or fetched"),
        "fashion-mnist": Entry(
            "robustkit.datasets.mnist:fashion_mnist", "Fashion-MNIST, grey 28×28: found (path=) or fetched"
        ),
        "svhn": Entry("robustkit.datasets.svhn:svhn", "SVHN house numbers, 32×32: found (path=) or fetched"),
        "imagenet": Entry(
            "robustkit.datasets.imagenet:imagenet",
            "ImageNet validation, 224×224, from your folder: path=; subset=robustbench for its 5,000",
            "robustkit-bench[data]",
        ),
        "tiny-imagenet": Entry(
            "robustkit.datasets.imagenet:tiny_imagenet",
            "Tiny ImageNet, 64×64, from your folder: path=",
            "robustkit-bench[data]",
        ),
        "cifar10-c": Entry(
            "robustkit.datasets.corruption_archives:cifar10_c",
            "CIFAR-10-C: kind=, severity=; found or fetched (2.9 GB)",
        ),
        "cifar100-c": Entry(
            "robustkit.datasets.corruption_archives:cifar100_c",
            "CIFAR-100-C: kind=, severity=; found or fetched (2.9 GB)",
        ),
        "imagenet-c": Entry(
            "robustkit.datasets.corruption_archives:imagenet_c",
            "ImageNet-C from your folder: path=, kind=, severity=",
            "robustkit-bench[data]",
        ),
    },
    dataset_sources={
        "file": Entry("robustkit.datasets.npz:Npz", "any .npz with x and y"),
        "folder": Entry(
            "robustkit.datasets.folder:Folder",
            "a folder with one folder of images a class: size=, classes=",
            "robustkit-bench[data]",
        ),
        "hf": Entry(
            "robustkit.datasets.hf:HuggingFace",
            "hf/ORG/NAME of the Hugging Face hub, or hf/./folder: split=, image=, label=",
            "robustkit-bench[data]",
        ),
        "samples": Entry(
            "robustkit.datasets.samples:Samples", "20 real images, which come with foolbox", "robustkit-bench[attacks]"
        ),
        "corrupted": Entry(
            "robustkit.datasets.corrupted:CorruptedSource",
            "any dataset, corrupted here: kind=gaussian-blur,severity=3",
            "robustkit-bench[data]",
        ),
        "python": Entry("robustkit.datasets.python:Python", "package.module.callable of yours"),
    },
)
