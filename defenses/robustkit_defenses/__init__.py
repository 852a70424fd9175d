"""Native defenses. One defense, one file; this table is all that adding one needs besides."""

from robustkit.plugins import Entry, Plugin

PLUGIN = Plugin(
    defenses={
        "multires": Entry(
            "robustkit_defenses.multires:MultiRes", "random multi-resolution stack (arXiv:2408.05446), for its networks"
        ),
        "crossmax": Entry(
            "robustkit_defenses.crossmax:CrossMax",
            "joins an ensemble (arXiv:2408.05446); claimed 72/48 %, evaluated again 11/14 %",
        ),
        "jpeg": Entry("robustkit_defenses.jpeg:Jpeg", "JPEG compression, BPDA inside", "robustkit[data]"),
        "bit-depth": Entry("robustkit_defenses.bit_depth:BitDepth", "fewer levels a pixel, BPDA inside"),
        "median": Entry("robustkit_defenses.median:Median", "a median filter"),
        "gaussian-smoothing": Entry(
            "robustkit_defenses.gaussian_smoothing:GaussianSmoothing", "randomised smoothing (arXiv:1902.02918)"
        ),
        "random-resize-pad": Entry(
            "robustkit_defenses.random_resize_pad:RandomResizePad", "random size and place (arXiv:1711.01991)"
        ),
        "raw-isp": Entry(
            "robustkit_defenses.raw_isp:RawIsp", "to RAW and back (arXiv:2112.09219); claims not verified"
        ),
    },
)
