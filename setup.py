"""Package metadata, and the modules that are compiled where NUMLLM_COMPILE=1 asks for it."""

import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent
COMPILED = ("numllm/numbers", "numllm/numct")
"""Packages whose modules mypyc compiles, from the source that is run without it."""
COMPILE = os.environ.get("NUMLLM_COMPILE", "0")
if COMPILE not in ("0", "1"):
    sys.exit(f"Error: NUMLLM_COMPILE must be 0 or 1, got {COMPILE!r}")
if COMPILE == "1" and {"develop", "editable_wheel"} & set(sys.argv):
    sys.exit("Error: what is compiled would stay as it is when an editable installation's source changes; leave out -e")


def compiled() -> list[Extension]:
    """The extension modules; none for the commands that only read metadata, before mypy is there."""
    if COMPILE == "0" or not {"bdist_wheel", "build", "build_ext"} & set(sys.argv):
        return []
    from mypyc.build import mypycify

    # a package's __init__ stays as it is: it resolves names when first used
    paths = [str(path.relative_to(ROOT)) for name in COMPILED for path in sorted((ROOT / name).glob("[!_]*.py"))]
    return mypycify(paths, opt_level="1", group_name="numllm")  # level 3 takes twice as long and is no faster


MYPYC = "mypy[mypyc]>=2.0,<3"

EXTRAS = {
    "textbooks": ["lxml>=5.0", "pdfminer.six>=20231228"],
    "plots": ["matplotlib>=3.8"],
    "chat": ["jinja2>=3.1"],
    "tensorboard": ["tensorboard>=2.16"],
}
EXTRAS["test"] = [
    *(name for names in EXTRAS.values() for name in names),
    "cn2an>=0.5.24",
    "hypothesis>=6.100",
    MYPYC,
    "opencc-python-reimplemented>=0.1.7",
    "peft>=0.21",
    "pypdf>=5.0",
    "pytest>=8.0",
    "python-docx>=1.1",
    "rapidfuzz>=3.9",
    "reportlab>=4.2",
    "ruff>=0.9",
    "sentencepiece>=0.2",
    "tiktoken>=0.8",
    "transformers>=5.0",
]

setup(
    name="numllm",
    version="0.1.0",
    description="Numeric-sensitive LoRA adapters for Chinese finance: corpus, training, SVD merge, evaluation",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The numllm authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Financial and Insurance Industry",
        "Intended Audience :: Science/Research",
        "Natural Language :: Chinese (Simplified)",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10",
    packages=[*find_packages(include=["numllm", "numllm.*"]), "numllm_kernels"],
    package_dir={"numllm_kernels": "kernels/numllm_kernels"},
    package_data={
        "numllm": ["py.typed", "recipes.toml", "demo/base/*", "demo/textbook/*.md", "demo/workbook/*"],
        "numllm_kernels": ["py.typed", "processor.c"],
    },
    install_requires=[
        "torch>=2.10",
        "triton>=3.5; platform_system == 'Linux'",
        "safetensors>=0.5",
        "tokenizers>=0.21",
        "numpy>=1.26",
        "click>=8.1",
        "huggingface-hub>=0.30",
        "tqdm>=4.66",
        "tomli>=2.0; python_version < '3.11'",
    ],
    extras_require=EXTRAS,
    setup_requires=[MYPYC, "numpy>=1.26"] if COMPILE == "1" else [],
    ext_modules=compiled(),
    entry_points={
        "console_scripts": [
            "numllm = numllm.cli:main",
            "numllm-train = numllm.cli:train_main",
            "numllm-merge = numllm.cli:merge_main",
        ]
    },
)
