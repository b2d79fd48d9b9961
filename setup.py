"""All metadata of the package; pyproject.toml holds tool settings only."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "anomaly_lib" / "__init__.py").read_text()).group(1)

REQUIRED = [
    "torch>=2.4",
    "numpy>=1.26",
    "open_clip_torch>=2.24",
    "timm>=1.0.9",
    "transformers>=4.56",
    "tokenizers>=0.20",
    "huggingface_hub>=0.24",
    "safetensors>=0.4.3",
    "filelock>=3.30",
    "scikit-learn>=1.3",
    "scipy>=1.11",
    "opencv-python-headless>=4.8",
    "librosa>=0.10.1",
    "soundfile>=0.12",
    "pandas>=2.0",
    "matplotlib>=3.8",
    "pillow>=10",
    "tqdm>=4.65",
    "argparse-dataclass==2.0.0",
    "vesin>=0.3",
    "ase>=3.23",
]
EXTRAS = {
    "mamba": ["mamba-ssm>=2.2", "causal-conv1d>=1.4"],  # CUDA kernels; the pure-PyTorch scan is the default
    "wandb": ["wandb>=0.16"],
    "tensorboard": ["tensorboard>=2.14"],
    "describe": ["robocrys>=0.2.9", "pymatgen>=2024.1"],  # descriptions of crystals by robocrystallographer
    "export": ["onnx>=1.16", "onnxscript>=0.1", "onnxruntime>=1.18"],
    "openvino": ["openvino>=2024.4", "onnx>=1.16", "onnxscript>=0.1"],
    "cluster": ["ray>=2.10"],
    "serve": ["fastapi>=0.115", "starlette>=0.40", "uvicorn>=0.30", "python-multipart>=0.0.13"],
}
EXTRAS["docs"] = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]
EXTRAS["test"] = [
    "pytest>=8",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "ruff>=0.9",
    "mypy>=1.11",
    "torchmetrics>=1.4",
    "torchvision>=0.19",
    "pandas-stubs",
    "types-tqdm",
    "scikit-image>=0.22",
    "nbformat>=5.9",
    *EXTRAS["docs"],
    *EXTRAS["tensorboard"],
    *EXTRAS["export"],
    *EXTRAS["serve"],
    "httpx>=0.27",
]
EXTRAS["bench"] = [
    "torchmetrics>=1.4",
    "scikit-image>=0.22",
    "jarvis-tools>=2024.4",
    *EXTRAS["export"],
]

setup(
    name="anomaly_lib",
    version=VERSION,
    description="Five published anomaly-detection systems on one plain-PyTorch library",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").is_file() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["anomaly_lib", "anomaly_lib.*"]),
    package_data={
        "anomaly_lib": ["py.typed", "**/*.pyi", "**/*.json", "**/*.safetensors", "**/*.html", "**/*.css", "**/*.js"]
    },
    entry_points={"console_scripts": ["anomaly-lib = anomaly_lib.__main__:main"]},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
