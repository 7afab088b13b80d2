"""Package chitu_like, with its values (config/) and, where it can be built, its compiled extension.

Usage:
    pip install .                            no extension: torch stays out of builds
    pip install -r requirements-build.txt
    pip install --no-build-isolation .       the extension too, if it can be built
    CHITU_LIKE_BUILD_EXT=0|1 pip install ... never build it | fail if it cannot be built
"""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError

ROOT = Path(__file__).resolve().parent
EXTENSION_NAME = "chitu_like._C"

CORE_REQUIREMENTS = [
    "torch>=2.9",
    "hydra-core>=1.3",
    "omegaconf>=2.3",
    "numpy",
    "safetensors",
    "tokenizers",
    "jinja2>=3.1.6",  # chat templates run in its sandbox, which older versions let one leave
    "msgspec",
    "pyzmq",
    "fastapi",
    "uvicorn",
    "prometheus-client",
    "pyyaml",  # clusters and placements; hydra-core brings it too
    "rich",
]

TEST_REQUIREMENTS = [
    "gguf",  # writes the model of bench llama-cpp
    "highspy",
    "httpx",
    "hypothesis",
    "matplotlib",
    "mypy>=1.18",
    "networkx",  # what max flow is checked against
    "openai>=1.60",
    "psutil",
    "pytest>=8",
    "pytest-timeout",
    "pytest-xdist>=3.8",  # the first that can keep the order of files
    "ruff>=0.14",
    "schemathesis",
    "selenium>=4.20",  # drives the Chromium and ChromeDriver of the system
    "sentencepiece",
    "tiktoken",
    "transformers>=4.57",
    "triton; platform_system == 'Linux'",  # its interpreter, where torch comes without it
    "types-PyYAML",
    "types-psutil",
]

EXTRAS = {
    # Attention backends. flash-attn compiles against the torch that is there: add
    # --no-build-isolation.
    "flash_attn": ["flash-attn>=2.7; platform_system == 'Linux'"],
    "flashinfer": ["flashinfer-python>=0.6; platform_system == 'Linux'"],
    # FlashMLA is built from its own repository; no registry has it. The extra exists so that its
    # install line works, and the backend itself says what is missing when it is asked for.
    "flash_mla": [],
    "structured": ["llguidance>=0.7"],
    # Every scheme has a path in torch and kernels of ours; nothing more is needed today.
    "quant": [],
    "plot": ["matplotlib"],
    "planner": ["highspy", "matplotlib"],
    "test": TEST_REQUIREMENTS,
    "dev": [*TEST_REQUIREMENTS, "clang-format", "pre-commit"],
}


class BuildPy(build_py):
    """Copy the package, and config/ into it as `_values`."""

    def run(self) -> None:
        """Build into an empty folder: pip builds in the tree, where deleted modules would linger."""
        if self.editable_mode:
            super().run()
            return
        package = Path(self.build_lib) / "chitu_like"
        shutil.rmtree(package, ignore_errors=True)
        super().run()
        if (ROOT / "config").is_dir():
            shutil.copytree(ROOT / "config", package / "_values")


def read_version() -> str:
    """Find `__version__` without importing the package, whose requirements may not be here yet."""
    text = (ROOT / "chitu_like" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit('setup.py: chitu_like/__init__.py has no line `__version__ = "..."`')
    return found[1]


def extension_sources() -> list[str]:
    """List what csrc/ holds, relative to the root as setuptools wants it."""
    sources = [*ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("csrc/**/*.cu")]
    return sorted(str(source.relative_to(ROOT)) for source in sources)


def why_no_extension(sources: list[str]) -> str | None:
    """Say why the extension is not built here, or None if it is."""
    if not sources:
        return "csrc/ holds no source"
    if os.environ.get("CHITU_LIKE_BUILD_EXT") == "0":
        return "CHITU_LIKE_BUILD_EXT=0"
    if importlib.util.find_spec("torch") is None:
        return "torch is not visible to the build (add --no-build-isolation)"
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler})"
    return None


def tell(sentence: str) -> None:
    """Print one sentence of the build; `pip install -v` shows it."""
    print(f"chitu_like: {sentence}", flush=True)


def compiled_extension(sources: list[str]) -> tuple[Extension, type[build_ext]]:
    """Describe the extension and the command that builds it; torch must be importable.

    Without CUDA's compiler, or with a torch that has no CUDA, the C++ sources alone are built.
    """
    from torch.utils import cpp_extension
    from torch.version import cuda

    with_cuda = cuda is not None and cpp_extension.CUDA_HOME is not None
    if not with_cuda:
        sources = [source for source in sources if not source.endswith(".cu")]
    describe = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    extension = describe(
        EXTENSION_NAME,
        sources,
        define_macros=[("CHITU_LIKE_WITH_CUDA", "1")] if with_cuda else [],
        extra_compile_args={"cxx": ["-O3"], "nvcc": ["-O3"]},
    )

    class BuildOrSkip(cpp_extension.BuildExtension):
        """A compiler that fails costs speed, not the installation: every op has a torch path."""

        def run(self) -> None:
            try:
                super().run()
            except (BaseError, OSError, RuntimeError, subprocess.SubprocessError) as error:
                if os.environ.get("CHITU_LIKE_BUILD_EXT") == "1":
                    raise
                self.extensions = []
                tell(f"the extension was not built, its compilation failed: {error}")

    return extension, BuildOrSkip


def main() -> None:
    """Run setuptools with the extension where there is one to build."""
    commands: dict[str, type] = {"build_py": BuildPy}
    extensions: list[Extension] = []
    sources = extension_sources()
    reason = why_no_extension(sources)
    if reason is None:
        extension, commands["build_ext"] = compiled_extension(sources)
        extensions.append(extension)
    elif os.environ.get("CHITU_LIKE_BUILD_EXT") == "1":
        raise SystemExit(f"setup.py: CHITU_LIKE_BUILD_EXT=1, but {reason}")
    else:
        tell(f"building without the compiled extension: {reason}.")

    setup(
        name="chitu-like",
        version=read_version(),
        description="An inference engine for large language models, from a laptop to a cluster",
        license="Apache-2.0",
        license_files=["LICENSE"],
        python_requires=">=3.10",
        packages=find_packages(include=["chitu_like", "chitu_like.*"]),
        package_data={"chitu_like": ["py.typed", "assets/**/*", "**/static/**/*"]},
        install_requires=CORE_REQUIREMENTS,
        extras_require=EXTRAS,
        entry_points={"console_scripts": ["chitu-like = chitu_like.cli:main"]},
        ext_modules=extensions,
        cmdclass=commands,
        zip_safe=False,
    )


if __name__ == "__main__":
    main()
